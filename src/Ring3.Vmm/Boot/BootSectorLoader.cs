namespace Ring3.Vmm;

/// <summary>A PC boot sector: the first 512 bytes at 0x7c00, entered in real mode with DL = 0x80. The rest of the file is the disk that INT 13h
/// reads.</summary>
internal static class BootSectorLoader
{
    private const ulong LoadAddress = 0x7c00;
    private const int SectorBytes = 512;

    public static EntryState Load(ImageView image, MachineRam ram)
    {
        ram.Write(LoadAddress, image.Slice(0, SectorBytes, "boot sector"), "boot sector");
        return new EntryState { Mode = EntryMode.Real16, Rip = LoadAddress, Rsp = LoadAddress, Cs = 0, Ds = 0, Rdx = 0x80, Protocol = "boot sector",
            IsBootDisk = true };
    }
}

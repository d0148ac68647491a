namespace Ring3.Vmm;

/// <summary>A loadable segment of an ELF file.</summary>
internal readonly record struct ElfSegment(uint Type, ulong Offset, ulong PhysicalAddress, ulong FileBytes, ulong MemoryBytes);

/// <summary>The parts of an x86 ELF executable that a boot loader needs. SPEC: System V ABI, "Program Loading".</summary>
internal sealed class ElfImage
{
    public static ReadOnlySpan<byte> Magic => [0x7f, (byte)'E', (byte)'L', (byte)'F'];
    public const uint PtLoad = 1, PtNote = 4;
    private const uint XenPhys32Entry = 18;
    private const ushort MachineI386 = 3, MachineX64 = 62;
    private const int MaxSegments = 256;

    /// <summary>Class 64. A file of class 32 may still be for an x86-64 processor (x32, or a PVH kernel that changes to long mode itself).</summary>
    public bool Is64 { get; private init; }
    /// <summary>The machine is x86-64, whatever the class.</summary>
    public bool IsX64 { get; private init; }
    public ulong Entry { get; private init; }
    public IReadOnlyList<ElfSegment> Segments { get; private init; } = [];
    /// <summary>PVH entry from the XEN_ELFNOTE_PHYS32_ENTRY note; 0 = none.</summary>
    public ulong PvhEntry { get; private init; }

    public static ElfImage Parse(ImageView image)
    {
        const string Part = "ELF header";
        byte cls = image.U8(4, Part), data = image.U8(5, Part);
        ushort type = image.U16(16, Part), machine = image.U16(18, Part);
        bool is64 = cls == 2;
        if (cls is not (1 or 2) || data != 1)
            throw BootException.BadImage($"{image.Name}: not a little-endian ELF file");
        if (machine is not (MachineI386 or MachineX64))
            throw BootException.BadImage($"{image.Name}: ELF machine {machine} is not x86");
        if (type is not (2 or 3))
            throw BootException.BadImage($"{image.Name}: ELF type {type} is not an executable{(type == 1 ? " (an object file or module)" : "")}");
        ulong phoff = is64 ? image.U64(32, Part) : image.U32(28, Part);
        uint entrySize = image.U16(is64 ? 54UL : 42, Part), count = image.U16(is64 ? 56UL : 44, Part);
        if (count == 0 || count > MaxSegments || entrySize < (is64 ? 56 : 32))
            throw BootException.BadImage($"{image.Name}: ELF program header table is not valid ({count} entries of {entrySize} bytes)");
        var segments = new List<ElfSegment>();
        ulong pvh = 0;
        for (uint i = 0; i < count; i++)
        {
            if (phoff > (ulong)image.Length)
                throw BootException.BadImage($"{image.Name}: ELF program headers lie outside the file");
            ElfSegment s = ReadSegment(image, phoff + i * entrySize, is64);
            if (s.Type == PtLoad && s.MemoryBytes != 0)
                segments.Add(s);
            else if (s.Type == PtNote && pvh == 0)
                pvh = FindPvhEntry(image.Slice(s.Offset, s.FileBytes, "ELF notes"));
        }
        if (segments.Count == 0)
            throw BootException.BadImage($"{image.Name}: ELF file has nothing to load");
        return new ElfImage { Is64 = is64, IsX64 = machine == MachineX64, Entry = is64 ? image.U64(24, Part)
            : image.U32(24, Part), Segments = segments, PvhEntry = pvh };
    }

    private static ElfSegment ReadSegment(ImageView image, ulong at, bool is64)
    {
        const string Part = "ELF program header";
        var s = is64
            ? new ElfSegment(image.U32(at, Part), image.U64(at + 8, Part), image.U64(at + 24, Part), image.U64(at + 32, Part), image.U64(at + 40, Part))
            : new ElfSegment(image.U32(at, Part), image.U32(at + 4, Part), image.U32(at + 12, Part), image.U32(at + 16, Part), image.U32(at + 20, Part));
        if (s.Type is PtLoad or PtNote)
            _ = image.Slice(s.Offset, s.FileBytes, "ELF segment");
        if (s.Type == PtLoad && (s.FileBytes > s.MemoryBytes || s.PhysicalAddress + s.MemoryBytes < s.PhysicalAddress))
            throw BootException.BadImage($"{image.Name}: ELF segment at 0x{s.PhysicalAddress:x} has sizes {s.FileBytes} in file, {s.MemoryBytes} in memory");
        return s;
    }

    /// <summary>Looks for the "Xen" note of type PHYS32_ENTRY; malformed notes end the search.</summary>
    private static ulong FindPvhEntry(ReadOnlySpan<byte> notes)
    {
        while (notes.Length >= 12)
        {
            uint nameSize = BitConverter.ToUInt32(notes), descSize = BitConverter.ToUInt32(notes[4..]), type = BitConverter.ToUInt32(notes[8..]);
            ulong desc = 12 + (nameSize + 3UL & ~3UL), next = desc + (descSize + 3UL & ~3UL);
            if (desc + descSize > (ulong)notes.Length)
                return 0;
            if (type == XenPhys32Entry && nameSize == 4 && notes.Slice(12, 4).SequenceEqual("Xen\0"u8) && descSize >= 4)
                return BitConverter.ToUInt32(notes[(int)desc..]);
            if (next >= (ulong)notes.Length)
                return 0;
            notes = notes[(int)next..];
        }
        return 0;
    }
}

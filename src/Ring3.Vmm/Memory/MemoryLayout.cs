namespace Ring3.Vmm;

/// <summary>
/// The machine's guest-physical layout. Addresses in bytes.
/// RAM is [0, 640 KiB), [768 KiB, 3 GiB) and [4 GiB, ...); [0xa0000, 0xc0000) is the legacy video hole and [3 GiB, 4 GiB) the PCI hole.
/// </summary>
public static class MemoryLayout
{
    public const ulong LowEnd = 0xa_0000;
    /// <summary>Extended BIOS data area: reserved in the e820 map; holds nothing but its size.</summary>
    public const ulong Ebda = 0x9_fc00;
    public const ulong HighStart = 0xc_0000;
    /// <summary>Firmware tables: SMBIOS, MP table and ACPI live in the BIOS area, where operating systems scan for them.</summary>
    public const ulong Firmware = 0xe_0000, FirmwareEnd = 0x10_0000;
    public const ulong OneMiB = 0x10_0000;
    /// <summary>End of RAM below 4 GiB at most; start of the hole for PCI, IOAPIC, LAPIC.</summary>
    public const ulong PciHole = 0xc000_0000;
    public const ulong FourGiB = 0x1_0000_0000;

    /// <summary>Physical address of the IOAPIC and of the local APICs.</summary>
    public const ulong Ioapic = 0xfec0_0000, Lapic = 0xfee0_0000;
    /// <summary>Three pages for the hypervisor (KVM_SET_TSS_ADDR) and one for the identity map: reserved in the e820 map.</summary>
    public const ulong TssPages = 0xfffb_d000, IdentityMapPage = 0xfffb_c000;

    /// <summary>Smallest and largest RAM that the machine accepts.</summary>
    public const ulong MinRam = 1 << 20, MaxRam = 1UL << 40;

    // Scratch areas below 640 KiB that a boot loader uses; free for the guest afterwards.
    public const ulong Gdt = 0x500, ZeroPage = 0x7000, BootStack = 0x8ff0, PageTables = 0x9000, CommandLine = 0x2_0000, RealModeKernel = 0x1_0000;
    /// <summary>Room for the command line, terminator included.</summary>
    public const int CommandLineMax = 0x1000;
}

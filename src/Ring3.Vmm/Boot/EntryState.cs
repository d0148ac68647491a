namespace Ring3.Vmm;

/// <summary>Processor mode in which a boot protocol enters the kernel.</summary>
public enum EntryMode
{
    /// <summary>16-bit real mode, segment bases = selector * 16.</summary>
    Real16,
    /// <summary>Protected mode, paging off, flat 4-GiB segments.</summary>
    Protected32,
    /// <summary>Long mode, paging on with an identity map, flat segments.</summary>
    Long64,
}

/// <summary>State of the first processor when the kernel is entered. Registers not named are 0; interrupts are off.</summary>
public sealed record EntryState
{
    public required EntryMode Mode { get; init; }
    public required ulong Rip { get; init; }
    public ulong Rsp { get; init; }
    public ulong Rax { get; init; }
    public ulong Rbx { get; init; }
    public ulong Rdx { get; init; }
    public ulong Rsi { get; init; }
    /// <summary>Real mode: selectors of CS and of the data segments. Otherwise the selectors in the GDT at <see cref="Memory.MemoryLayout.Gdt"/>.</summary>
    public ushort Cs { get; init; } = BootTables.CodeSelector;
    public ushort Ds { get; init; } = BootTables.DataSelector;
    /// <summary>Long mode: the top-level page table.</summary>
    public ulong Cr3 { get; init; }
    /// <summary>What was loaded and how it is entered, for --verbose and error messages.</summary>
    public required string Protocol { get; init; }
    /// <summary>The boot image is the disk of the BIOS's INT 13h.</summary>
    public bool IsBootDisk { get; init; }
}

/// <summary>Which entry of a kernel to use.</summary>
public enum BootProtocol
{
    /// <summary>The best the image offers: bzImage 64-bit, then 32-bit; PVH for ELF images that have it.</summary>
    Auto,
    Linux64, Linux32, Linux16, Pvh, Multiboot, BootSector,
}

/// <summary>What the loader is given besides the kernel's bytes.</summary>
public sealed record BootRequest
{
    public string CommandLine { get; init; } = "";
    /// <summary>Initial RAM disk. Multiboot: the modules. Several are concatenated for Linux (each padded to 4 bytes).</summary>
    public IReadOnlyList<BootModule> Modules { get; init; } = [];
    /// <summary>Physical address of the ACPI RSDP; 0 = none.</summary>
    public ulong Rsdp { get; init; }
    public BootProtocol Protocol { get; init; } = BootProtocol.Auto;
    /// <summary>Entropy for the kernel's random pool (setup_data, Linux only); empty = none.</summary>
    public ReadOnlyMemory<byte> RandomSeed { get; init; }
}

/// <summary>A file passed beside the kernel.</summary>
/// <param name="Name">Name as the kernel is told it (Multiboot string).</param>
/// <param name="Data">Its bytes.</param>
public readonly record struct BootModule(string Name, ReadOnlyMemory<byte> Data);

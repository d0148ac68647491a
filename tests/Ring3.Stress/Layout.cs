using Ring3.Memory;
using Ring3.Host;

namespace Ring3.Stress;

/// <summary>Guest-physical layout. Slot 0 holds code, tables and private counters; the data regions are what the host disturbs.</summary>
internal static class Layout
{
    public const int MaxCpus = 4, Pcids = 4, Regions = 4;
    public const ulong Page = 4096;
    public const ulong FixedBytes = 4 << 20, Code = 0x1000, Gdt = 0x2000, Idt = 0x3000;
    /// <summary>Page directory that maps the first GiB 1:1 with global 2 MiB pages.</summary>
    public const ulong Identity = 0x4000;
    /// <summary>Each vCPU has for each PCID a PML4, a PDPT, a page directory and the window's page table.</summary>
    public const ulong Tables = 0x10_0000;
    /// <summary>One page of scratch and stack, then one counter for each data page.</summary>
    public const ulong Private = 0x20_0000, PrivateBytes = Page + DataPages * 8;

    /// <summary>Linear address of the window: 256 pages that the guest maps to data pages, then 256 that it fills with garbage.</summary>
    public const ulong Window = 0x4000_0000;
    public const int WindowPages = 256, GarbagePages = 256;

    public const ulong DataGpa = 0x1000_0000, MovedGpa = 0x3000_0000, RegionPages = 512, DataPages = RegionPages * Regions;
    public const ulong RegionBytes = RegionPages * Page;
    /// <summary>First word of data page n.</summary>
    public const ulong Tag = 0x7e57_0000_0000_0000;

    public static ulong TablesOf(int cpu, int pcid) => Tables + (ulong)(cpu * Pcids + pcid) * 4 * Page;
    public static ulong PrivateOf(int cpu) => Private + (ulong)cpu * PrivateBytes;
    public static ulong CountersOf(int cpu) => PrivateOf(cpu) + Page;
    /// <summary>Offset of a vCPU's counter in each data page.</summary>
    public static ulong CellOf(int cpu) => 64 + 64 * (ulong)cpu;
    public static ulong GpaOf(ulong page) => DataGpa + page * Page;
}

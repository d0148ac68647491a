using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Arch;

namespace Ring3.Vmm;

/// <summary>Descriptor and page tables, command line and RAM-disk placement shared by the boot protocols.</summary>
public static class BootTables
{
    // Selectors of the Linux boot protocol (__BOOT_CS, __BOOT_DS); the other protocols do not care.
    public const ushort CodeSelector = 0x10, DataSelector = 0x18, TaskSelector = 0x20;
    private const ulong Code64 = 0x00af_9b00_0000_ffff, Code32 = 0x00cf_9b00_0000_ffff, Data = 0x00cf_9300_0000_ffff, Task = 0x0000_8b00_0000_0067;

    /// <summary>Size of the GDT in bytes: null, null, code, data, TSS (16 bytes in long mode).</summary>
    public const int GdtBytes = 6 * 8;

    /// <summary>Bytes identity-mapped for long-mode entry.</summary>
    public const ulong IdentityBytes = 4UL << 30;

    /// <summary>Writes the flat GDT.</summary>
    public static void WriteGdt(MachineRam ram, bool longMode)
    {
        ReadOnlySpan<ulong> gdt = [0, 0, longMode ? Code64 : Code32, Data, Task, 0];
        ram.Write(MemoryLayout.Gdt, MemoryMarshal.AsBytes(gdt), "GDT");
    }

    /// <summary>Writes 4-level tables that identity-map the first 4 GiB with 2-MiB pages, and returns CR3.</summary>
    public static ulong WriteIdentityMap(MachineRam ram)
    {
        const ulong Pml4 = MemoryLayout.PageTables, Pdpt = Pml4 + Page.Size, Pd = Pdpt + Page.Size, Flags = Pte.P | Pte.W;
        const int Directories = (int)(IdentityBytes >> 30);
        ram.Clear(Pml4, (2 + Directories) * Page.Size, "page tables");
        PutU64(ram, Pml4, Pdpt | Flags);
        for (int i = 0; i < Directories; i++)
            PutU64(ram, Pdpt + 8 * (ulong)i, (Pd + Page.Size * (ulong)i) | Flags);
        Span<ulong> entries = MemoryMarshal.Cast<byte, ulong>(ram.Span(Pd, Directories * (int)Page.Size, "page tables"));
        for (int i = 0; i < entries.Length; i++)
            entries[i] = (ulong)i * Page.Size2M | Flags | Pte.PS;
        return Pml4;
    }

    /// <summary>Writes the NUL-terminated command line and returns its length without the terminator.</summary>
    public static int WriteCommandLine(MachineRam ram, string commandLine, int max, ulong at = MemoryLayout.CommandLine)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(commandLine);
        if (bytes.Length >= Math.Min(max, MemoryLayout.CommandLineMax))
            throw new BootException(ExitStatus.Usage,
                $"kernel command line is too long: {bytes.Length} bytes, this kernel takes {Math.Min(max, MemoryLayout.CommandLineMax) - 1}");
        if (Array.IndexOf(bytes, (byte)0) >= 0)
            throw new BootException(ExitStatus.Usage, "kernel command line contains a NUL character");
        ram.Clear(at, (ulong)bytes.Length + 1, "command line");
        ram.Write(at, bytes, "command line");
        return bytes.Length;
    }

    /// <summary>
    /// Copies the RAM disk to the highest page-aligned place that is above <paramref name="floor"/> and does not exceed <paramref name="maxAddress"/> (last
    /// usable byte). Returns address and length; (0, 0) when there are no modules.
    /// </summary>
    public static (ulong Address, uint Bytes) PlaceInitrd(MachineRam ram, IReadOnlyList<BootModule> modules, ulong floor, ulong maxAddress)
    {
        ulong bytes = 0;
        foreach (BootModule m in modules)
            bytes = (bytes + 3 & ~3UL) + (ulong)m.Data.Length;
        if (bytes == 0)
            return (0, 0);
        ulong top = Math.Min(ram.LowRamEnd, maxAddress + 1);
        if (bytes > top || bytes > int.MaxValue || (top - bytes & Page.Mask) < floor)
            throw new BootException(ExitStatus.Resources,
                $"too little memory: the initrd of {MiB(bytes)} MiB does not fit between the kernel's end at {MiB(floor)} MiB and {MiB(top)} MiB;"
                + $" use --memory {MiB(floor + bytes) + 16}M or more");
        ulong address = top - bytes & Page.Mask, at = address;
        foreach (BootModule m in modules)
        {
            at = at + 3 & ~3UL;
            ram.Write(at, m.Data.Span, "initrd");
            at += (ulong)m.Data.Length;
        }
        return (address, (uint)bytes);
    }

    /// <summary>Rounds up to MiB, for messages.</summary>
    internal static ulong MiB(ulong bytes) => (bytes + 0xf_ffff) >> 20;

    internal static void PutU64(MachineRam ram, ulong gpa, ulong value)
    {
        Span<byte> b = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(b, value);
        ram.Write(gpa, b, "boot tables");
    }
}

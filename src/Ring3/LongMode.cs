using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;

namespace Ring3;

/// <summary>A flat 64-bit environment: identity page tables and a descriptor table with ring 0 code and data.</summary>
internal static class LongMode
{
    private const ulong CodeDescriptor = 0x00af_9b00_0000_ffff, DataDescriptor = 0x00cf_9300_0000_ffff;

    public static void WriteTables(GuestMemory memory, ulong tables)
    {
        bool ok = memory.TryWrite(tables, tables + Page.Size | Pte.P | Pte.W | Pte.U);
        for (ulong i = 0; i < 512; i++)
            ok &= memory.TryWrite(tables + Page.Size + 8 * i, i << 30 | Pte.P | Pte.W | Pte.U | Pte.PS);
        ok &= memory.TryWrite(tables + 2 * Page.Size, 0UL) && memory.TryWrite(tables + 2 * Page.Size + 8, CodeDescriptor)
            && memory.TryWrite(tables + 2 * Page.Size + 16, DataDescriptor);
        if (!ok)
            throw new Ring3Exception($"write page tables at 0x{tables:x}", Errno.EFAULT);
    }

    public static void Apply(ref kvm_sregs s, ulong tables)
    {
        kvm_segment code = new() { limit = 0xffff_ffff, selector = 8, type = 11, present = 1, s = 1, l = 1, g = 1 };
        kvm_segment data = new() { limit = 0xffff_ffff, selector = 16, type = 3, present = 1, s = 1, db = 1, g = 1 };
        (s.cs, s.ds, s.es, s.fs, s.gs, s.ss) = (code, data, data, data, data, data);
        s.gdt = new() { @base = tables + 2 * Page.Size, limit = 23 };
        s.cr3 = tables;
        s.cr4 = Cr4.PAE | Cr4.OSFXSR | Cr4.OSXMMEXCPT;
        s.cr0 = Cr0.PE | Cr0.MP | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.PG;
        s.efer = Efer.LME | Efer.LMA | Efer.NXE | Efer.SCE;
    }
}

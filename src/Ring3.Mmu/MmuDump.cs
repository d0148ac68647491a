using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>The tables as text.</summary>
/// <remarks>SAFETY: (whole file) entries are read through an iterator, inside an RCU section.</remarks>
internal static class MmuDump
{
    /// <summary>Bits that a dump shows as equal between neighbours: all but the address.</summary>
    private const ulong DumpMask = ~Spte.AddressMask;

    /// <summary>Writes roots and mappings, neighbours with equal rights merged. Lock-free: what changes meanwhile may be shown in either state.</summary>
    public static void Write(TdpMmu mmu, TextWriter writer)
    {
        using var _ = Rcu.Read();
        foreach (TdpRoot root in mmu.Roots)
        {
            writer.WriteLine(root);
            DumpRoot(root, writer);
        }
    }

    private static void DumpRoot(TdpRoot root, TextWriter writer)
    {
        ulong first = 0, end = 0, spte = 0;
        int level = 0;
        var it = new TdpIterator(root, 0, TdpMmu.MaxGfn);
        while (it.MoveNext())
        {
            if (it.OldSpte == 0 || it.IsTable)
                continue;
            bool joins = it.Level == level && it.Gfn == end && ((it.OldSpte ^ spte) & DumpMask) == 0
                && (!it.IsPresentLeaf || Spte.Address(it.OldSpte) == Spte.Address(spte) + ((it.Gfn - first) << 12));
            if (joins)
            {
                end = it.EndGfn;
                continue;
            }
            Write();
            (first, end, spte, level) = (it.Gfn, it.EndGfn, it.OldSpte, it.Level);
        }
        Write();

        void Write()
        {
            if (level != 0)
                writer.WriteLine($"  gpa 0x{first << 12:x}-0x{(end << 12) - 1:x} level {level} {Spte.Describe(spte, level)}");
        }
    }
}

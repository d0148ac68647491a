using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Page aging without mmu_lock. Accessed bits are cleared by compare-exchange under RCU, in valid roots only. Young information may be lost in a race, a Dirty bit or a mapping never: the exchange
/// replaces exactly the value that was read. No TLB flush: a processor that has the translation cached does not set the bit again until it walks again.
/// </summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections.</remarks>
public sealed unsafe partial class TdpMmu
{
    /// <summary>
    /// Clears the Accessed bits of [start, end) and sets bit gfn - start in <paramref name="bitmap"/> for each page that was young (a huge mapping reports all its pages). Lock-free.
    /// </summary>
    /// <returns>True: handled. Formats that cannot be aged without a lock report false; this one always can.</returns>
    public bool TestClearYoung(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        using var _ = Rcu.Read();
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != asId || root.Invalid)
                continue;
            var it = new TdpIterator(root, start, end);
            while (it.MoveNext())
                if (it.IsPresentLeaf && TryClearYoung(ref it))
                    SetBits(bitmap, Math.Max(it.Gfn, start) - start, Math.Min(it.EndGfn, end) - start);
        }
        return true;
    }

    bool IMmuNotifierHandler.AgeGfnRange(in GfnRange range) => Age(range, clear: true);

    bool IMmuNotifierHandler.TestAgeGfnRange(in GfnRange range) => Age(range, clear: false);

    private bool Age(in GfnRange range, bool clear)
    {
        bool young = false;
        using var _ = Rcu.Read();
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != range.AsId || root.Invalid)
                continue;
            var it = new TdpIterator(root, range.Start, range.End);
            while (it.MoveNext())
            {
                if (!it.IsPresentLeaf || !Spte.IsAccessed(it.OldSpte))
                    continue;
                if (!clear)
                    return true;
                young |= TryClearYoung(ref it);
            }
        }
        return young;
    }

    /// <summary>True if the leaf was young. BENIGN-RACE: when the entry changes under the exchange the bit stays or is lost with the mapping; the page is reported young either way.</summary>
    private static bool TryClearYoung(ref TdpIterator it)
    {
        if (!Spte.IsAccessed(it.OldSpte))
            return false;
        ulong young = it.OldSpte;
        Interlocked.CompareExchange(ref *it.Sptep, young & ~Spte.A, young);
        return true;
    }
}

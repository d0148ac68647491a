using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Page aging. Without mmu_lock where the processor marks accesses: see <see cref="YoungScan{TFormat}"/>. With it where an access is only noticed because the
/// entry permits nothing. See docs/aging.md.
/// </summary>
/// <remarks>SAFETY: entries are looked at without mmu_lock, in a section, which keeps the pages of tables that are unlinked meanwhile.</remarks>
internal sealed class PageAging(TdpMmu mmu)
{
    /// <summary>Pages in one RCU section of a pass: what a grace period may have to wait for.</summary>
    private const ulong PagesPerSection = 1UL << 18;

    /// <summary>
    /// Makes [start, end) old, in all valid roots of an address space, and sets bit gfn - start in <paramref name="bitmap"/> for each page that was young (a
    /// huge mapping reports all its pages). No lock, no flush. Young information may be lost in a race, a Dirty bit or a mapping never.
    /// </summary>
    /// <returns>False: not handled, nothing was done. Taking permissions needs the lock: see <see cref="TestClearYoungLocked"/>.</returns>
    public bool TestClearYoung(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        if (!mmu.CanAgeLockless)
            return false;
        for (ulong next, gfn = start; gfn < end; gfn = next)
        {
            next = Math.Min(end, (gfn | (PagesPerSection - 1)) + 1);
            using var _ = Rcu.Read();
            foreach (TdpRoot root in mmu.Roots)
                if (root.Role.AsId == asId && !root.Invalid)
                    YoungScan<EptFormat>.TestClear(root.Hva, root.Role.Level, gfn, next, start, bitmap);
        }
        return true;
    }

    /// <summary>
    /// As <see cref="TestClearYoung"/>, for every kind of table: with mmu_lock held for write, which it yields to others between entries. Permissions that it
    /// takes are flushed before the lock is released; Accessed bits are not.
    /// No lock held.
    /// </summary>
    public void TestClearYoungLocked(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        var batch = new FlushBatch(FlushSite.AgeByPermission);
        mmu.Lock.EnterWrite();
        foreach (TdpRoot root in mmu.Roots)
        {
            // The reference keeps the root across yields.
            if (root.Role.AsId != asId || root.Invalid || !root.TryGet())
                continue;
            AgeRootLocked(root, start, end, bitmap, ref batch);
            mmu.PutRootLocked(root);
        }
        mmu.Finish(ref batch);
        mmu.Lock.ExitWrite();
        mmu.RunInlineZaps();
    }

    /// <summary>Finds the young pages of [start, end) and makes them old, in the best way the tables allow.</summary>
    public void HarvestYoung(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        if (!TestClearYoung(start, end, bitmap, asId))
            TestClearYoungLocked(start, end, bitmap, asId);
    }

    private void AgeRootLocked(TdpRoot root, ulong start, ulong end, Span<ulong> bitmap, ref FlushBatch batch)
    {
        Rcu.Enter();
        var it = new TdpIterator(root, start, end);
        while (it.MoveNext())
        {
            if (it.IsPresentLeaf && TryAgeLocked(ref it, ref batch))
                PageBitmap.SetRange(bitmap, Math.Max(it.Gfn, start) - start, Math.Min(it.EndGfn, end) - start);
            mmu.YieldWrite(ref it, ref batch);
        }
        Rcu.Exit();
    }

    /// <summary>Makes a present leaf old. True if it was young.</summary>
    private unsafe bool TryAgeLocked(ref TdpIterator it, ref FlushBatch batch)
    {
        if (mmu.AccessedBits)
            return YoungScan<EptFormat>.TryClear(ref it);
        // Whoever takes W from an entry relies on W being there if a processor may write: so the translations go before the lock does.
        while (it.IsPresentLeaf && Spte.IsAccessed(it.OldSpte))
        {
            if (!mmu.TrySetSpteAtomic(ref it, Spte.MakeAged(it.OldSpte)))
                continue;
            mmu.Owe(ref batch, it.Gfn, it.EndGfn, it.Page->AsId, SpteLoss.Mapping);
            return true;
        }
        return false;
    }

    public bool AgeGfnRange(in GfnRange range) => mmu.CanAgeLockless ? Age(range, clear: true) : AgeLocked(range);

    public bool TestAgeGfnRange(in GfnRange range) => Age(range, clear: false);

    private bool AgeLocked(in GfnRange range)
    {
        bool young = false;
        var batch = new FlushBatch(FlushSite.AgeByPermission);
        mmu.Lock.EnterWrite();
        using (Rcu.Read())
        {
            foreach (TdpRoot root in mmu.Roots)
            {
                if (root.Role.AsId != range.AsId || root.Invalid)
                    continue;
                var it = new TdpIterator(root, range.Start, range.End);
                while (it.MoveNext())
                    young |= it.IsPresentLeaf && TryAgeLocked(ref it, ref batch);
            }
        }
        mmu.Finish(ref batch);
        mmu.Lock.ExitWrite();
        return young;
    }

    private bool Age(in GfnRange range, bool clear)
    {
        bool young = false;
        using var _ = Rcu.Read();
        foreach (TdpRoot root in mmu.Roots)
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
                young |= YoungScan<EptFormat>.TryClear(ref it);
            }
        }
        return young;
    }
}

using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Removal of ranges from live roots: notifier, slot changes.</summary>
/// <remarks>SAFETY: removed tables are freed after a flush and a grace period; the iterator is inside a section.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>Removes all mappings of [start, end) in an address space, in all roots, and flushes. No locks held.</summary>
    public void ZapGfnRange(ulong start, ulong end, int asId = 0)
    {
        var batch = new FlushBatch(FlushSite.ZapRange);
        Lock.EnterWrite();
        ZapRangeLocked(start, end, asId, mayYield: true, ref batch);
        Finish(ref batch);
        Lock.ExitWrite();
        RunInlineZaps();
    }

    /// <summary>
    /// Removes [start, end) from all roots of an address space, invalid ones too while they still map something. Whole tables go in one step. Yields between
    /// steps if allowed, after paying what is owed.
    /// </summary>
    private void ZapRangeLocked(ulong start, ulong end, int asId, bool mayYield, ref FlushBatch batch)
    {
        Lock.AssertHeldWrite();
        foreach (TdpRoot root in _roots)
        {
            // The reference keeps the root across yields. At zero it has been zapped: nothing to do.
            if (root.Role.AsId != asId || !root.TryGet())
                continue;
            ZapRangeInRoot(root, start, end, mayYield, ref batch);
            PutRootLocked(root);
        }
    }

    private void ZapRangeInRoot(TdpRoot root, ulong start, ulong end, bool mayYield, ref FlushBatch batch)
    {
        Rcu.Enter();
        LeafState wanted = Leaves.Tracks(start, end, root.Role.AsId);
        var it = new TdpIterator(root, start, end);
        while (it.MoveNext())
        {
            if (it.OldSpte == 0)
                continue;
            bool whole = it.Gfn >= start && it.EndGfn <= end && it.Level <= ZapStepLevel;
            if (it.IsTable && !whole)
                continue;
            ulong old = ExchangeSpte(ref it, 0);
            it.SkipChildren();
            if (Spte.IsTable(old, it.Level))
            {
                UnlinkTables(old, ref batch);
                batch.Wanted |= wanted;
            }
            else if (wanted != LeafState.None && Spte.IsPresent(old))
                Leaves.TakeLeaf(old, it.Gfn, it.Level, root.Role.AsId, wanted);
            // The processor caches what it can use: of an MMIO entry nothing.
            if (Spte.IsPresent(old))
                Owe(ref batch, it.Gfn, it.EndGfn, root.Role.AsId, SpteLoss.Mapping);
            else
                batch.Elided = true;
            if (mayYield && YieldWrite(ref it, ref batch))
                wanted = Leaves.Tracks(start, end, root.Role.AsId);
        }
        Rcu.Exit();
    }

    void IMmuNotifierHandler.Unmap(FrameRanges frames)
    {
        var batch = new FlushBatch(FlushSite.Notifier);
        Rcu.Enter();
        foreach (FrameRange range in frames)
            ZapRangeLocked(range.Start, range.End, range.AsId, mayYield: false, ref batch);
        Rcu.Exit();
        Finish(ref batch);
    }

    void IMemslotListener.FlushMemslot(Memslot old)
    {
        if (SlotZapAll)
            ZapAllFast();
        else
            ZapGfnRange(old.BaseGfn, old.EndGfn, old.AsId);
    }

    void IMemslotListener.CommitMemslot(Memslot? old, Memslot? added, MemslotChange change)
    {
        switch (change)
        {
            case MemslotChange.Create or MemslotChange.Move:
                // The processor does not compare generations: MMIO entries of what is memory now have to go.
                if (Volatile.Read(ref _mmioInstalled) != 0)
                    ZapGfnRange(added!.BaseGfn, added.EndGfn, added.AsId);
                break;
            case MemslotChange.FlagsOnly:
                _dirtyLogging.CommitFlags(old!, added!);
                break;
        }
    }
}

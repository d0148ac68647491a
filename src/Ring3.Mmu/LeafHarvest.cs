using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// What leaves know that nothing else does: the processor's Dirty bits where a slot logs by them, its Accessed bits where a tracker counts them. Whoever
/// removes leaves asks <see cref="Tracks"/> once for the range, and only if something tracks it looks at the leaves one table at a time.
/// </summary>
/// <remarks>
/// Order. In a live root the state is final only when the owed flush is done: until then a processor may set bits in a table that has been unlinked.
/// <c>Finish</c> therefore takes it after the flush, with mmu_lock still held.
/// In an invalid root no processor is left: the state is final, and is taken <i>before</i> the table is unlinked, so that a dirty-log call, which looks at
/// tables first and at the bitmap second, finds it in one of the two.
/// SAFETY: (whole file) tables are reachable in the caller's RCU section, or unlinked and owned by the caller.
/// </remarks>
internal sealed class LeafHarvest(MemorySlots slots)
{
    /// <summary>Counts accesses to pages. Null: nobody does.</summary>
    public IAccessTracker? AccessTracker { get; set; }

    /// <summary>What somebody wants to know of the leaves of [start, end) before they are removed.</summary>
    public LeafState Tracks(ulong start, ulong end, int asId)
    {
        using var _ = Rcu.Read();
        LeafState state = slots.Set(asId).TracksDirtyBits(start, end) ? LeafState.Dirty : LeafState.None;
        if (AccessTracker is { } tracker && tracker.TracksAccesses(start, end, asId))
            state |= LeafState.Accessed;
        return state;
    }

    /// <summary>Takes the state of the iterator's entry, be it a leaf or a table.</summary>
    public unsafe void TakeEntry(ref TdpIterator it, LeafState wanted)
    {
        if (it.IsTable)
            TakeSubtree(it.OldSpte, wanted);
        else if (it.IsPresentLeaf)
            TakeLeaf(it.OldSpte, it.Gfn, it.Level, it.Page->AsId, wanted);
    }

    /// <summary>Takes the state of all leaves below an entry, tables of every level included. For invalid roots: before the entry is changed.</summary>
    private unsafe void TakeSubtree(ulong tableSpte, LeafState wanted)
    {
        TablePage* page = TablePage.FromSpte(tableSpte);
        TakeTable(page, wanted);
        if (page->Level == PgLevel.Level4K || page->Tables == 0)
            return;
        ulong* table = TablePage.TableOf(page);
        for (int i = 0; i < 512; i++)
        {
            ulong spte = Volatile.Read(ref table[i]);
            if (Spte.IsTable(spte, page->Level))
                TakeSubtree(spte, wanted);
        }
    }

    /// <summary>Takes the state of all leaves of a table.</summary>
    public unsafe void TakeTable(TablePage* page, LeafState wanted)
    {
        if (page->Leaves == 0)
            return;
        if (page->Level != PgLevel.Level4K)
        {
            TakeHugeLeaves(page, wanted);
            return;
        }
        ulong* bits = stackalloc ulong[8];
        if ((wanted & LeafState.Dirty) != 0 && CollectBits(TablePage.TableOf(page), Spte.D, bits))
            MarkHarvested(page->BaseGfn, bits, page->AsId);
        if ((wanted & LeafState.Accessed) != 0 && AccessTracker is { } tracker && CollectBits(TablePage.TableOf(page), Spte.A, bits))
            for (uint i = 0; i < 8; i++)
                if (bits[i] != 0)
                    tracker.MarkAccessed(page->BaseGfn + i * 64, bits[i], page->AsId);
    }

    private unsafe void TakeHugeLeaves(TablePage* page, LeafState wanted)
    {
        ulong* table = TablePage.TableOf(page);
        for (uint i = 0; i < 512; i++)
        {
            ulong spte = Volatile.Read(ref table[i]);
            if (Spte.IsPresentLeaf(spte, page->Level))
                TakeLeaf(spte, page->BaseGfn + i * PgLevel.Pages(page->Level), page->Level, page->AsId, wanted);
        }
    }

    /// <summary>Takes the state of one removed leaf.</summary>
    public void TakeLeaf(ulong spte, ulong gfn, int level, int asId, LeafState wanted)
    {
        ulong pages = PgLevel.Pages(level);
        bool dirty = (wanted & LeafState.Dirty) != 0 && Spte.IsDirty(spte), accessed = (wanted & LeafState.Accessed) != 0 && Spte.IsAccessed(spte);
        if (!dirty && !accessed)
            return;
        for (ulong i = 0; i < pages; i += 64)
        {
            ulong bits = pages == 1 ? 1 : ulong.MaxValue;
            if (dirty)
                MarkHarvested(gfn + i, bits, asId);
            if (accessed)
                AccessTracker?.MarkAccessed(gfn + i, bits, asId);
        }
    }

    /// <summary>Marks the pages of a table's worth of bits in the slots that log by Dirty bits.</summary>
    private unsafe void MarkHarvested(ulong baseGfn, ulong* bits, int asId)
    {
        for (uint i = 0; i < 8; i++)
            if (bits[i] != 0)
                MarkHarvested(baseGfn + i * 64, bits[i], asId);
    }

    private void MarkHarvested(ulong gfn, ulong bits, int asId)
    {
        using var _ = Rcu.Read();
        MemslotSet set = slots.Set(asId);
        ulong end = gfn + 64;
        for (int i = set.FirstEndingAbove(gfn); i < set.Count; i++)
        {
            Memslot slot = set.Slots[i];
            if (slot.BaseGfn >= end)
                return;
            if (!slot.TracksDirtyBits)
                continue;
            if (slot.BaseGfn <= gfn)
                slot.DirtyBitmap!.SetMany(gfn - slot.BaseGfn, bits);
            else
                slot.DirtyBitmap!.SetMany(0, bits >> (int)(slot.BaseGfn - gfn));
        }
    }

    /// <summary>The entries of a 4 KiB-level table that are present and have <paramref name="bit"/>, as 512 bits. False when there are none.</summary>
    private static unsafe bool CollectBits(ulong* table, ulong bit, ulong* bits)
    {
        ulong any = 0;
        for (int word = 0; word < 8; word++)
            any |= bits[word] = EntryScan.Matching(table + word * EntryScan.Group, EntryScan.Group, Spte.Present | bit);
        return any != 0;
    }
}

/// <summary>What a leaf may know alone.</summary>
[Flags]
internal enum LeafState { None, Dirty = 1, Accessed = 2 }

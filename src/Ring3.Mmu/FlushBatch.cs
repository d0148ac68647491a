namespace Ring3.Mmu;

/// <summary>What a series of changes owes before mmu_lock is released: one remote flush, then the tables it has unlinked. See TdpMmu.Finish.</summary>
/// <remarks>SAFETY: pages on the list are unlinked and belong to the batch.</remarks>
internal unsafe struct FlushBatch
{
    /// <summary>Some processor may still use what was removed.</summary>
    public bool Needed;
    /// <summary>Unlinked tables, to be freed after the flush and a grace period.</summary>
    public TablePage* Unlinked;
    /// <summary>What has to be taken from the leaves of <see cref="Unlinked"/> once the flush is done.</summary>
    public TdpMmu.LeafState Wanted;

    public void AddUnlinked(TablePage* page)
    {
        page->State = TablePageState.Unlinked;
        page->Next = Unlinked;
        Unlinked = page;
    }
}

using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Frees unlinked table pages on the VM's worker after a grace period. Processors cannot reach them any more when they get here (flush, or unreachable root); lockless walkers may.
/// </summary>
/// <remarks>SAFETY: (whole type) pages on the list are in state Unlinked and belong to it alone; the list is linked through their records.</remarks>
internal sealed unsafe class TablePageReclaimer(TablePageAllocator allocator, WorkQueue queue) : WorkItem
{
    private const int PagesPerSlice = 256;
    private nint _head;
    private long _freed;

    public long Freed => Volatile.Read(ref _freed);

    /// <summary>Takes over a list linked by <see cref="TablePage.Next"/>. Any lock may be held.</summary>
    public void Defer(TablePage* list)
    {
        if (list == null)
            return;
        TablePage* last = list;
        while (last->Next != null)
            last = last->Next;
        nint head;
        do
        {
            head = Volatile.Read(ref _head);
            last->Next = (TablePage*)head;
        } while (Interlocked.CompareExchange(ref _head, (nint)list, head) != head);
        queue.Queue(this);
    }

    protected override void Run()
    {
        TablePage* page = (TablePage*)Interlocked.Exchange(ref _head, 0);
        if (page == null)
            return;
        Rcu.Synchronize();
        for (int n = 1; page != null; n++)
        {
            TablePage* next = page->Next;
            allocator.Free(page);
            page = next;
            _freed++;
            if (n % PagesPerSlice == 0)
                Thread.Yield();
        }
    }
}

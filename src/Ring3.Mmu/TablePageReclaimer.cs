using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Frees unlinked table pages on the VM's worker after a grace period. Processors cannot reach them any more when they get here (flush, or unreachable root);
/// lockless walkers may.
/// </summary>
/// <remarks>
/// In bulk: all pages of a grace period are first noted in their chunks, so that a chunk that became empty goes back to the host whole, without having been
/// cleared.
/// SAFETY: (whole type) pages on the lists are in state Unlinked and belong to it alone; the lists are linked through their records.
/// </remarks>
internal sealed class TablePageReclaimer(TablePageAllocator allocator, WorkQueue queue) : BulkWorkItem
{
    private const int PagesPerStep = 512;
    private nint _deferred;
    /// <summary>The worker's: pages whose grace period is over, and chunks with noted pages.</summary>
    private unsafe TablePage* _ready;
    private nint _dirtyChunks;
    private long _freed;

    public long Freed => Volatile.Read(ref _freed);

    /// <summary>Takes over what a batch has unlinked. Any lock may be held.</summary>
    public unsafe void Defer(in FlushBatch batch)
    {
        if (batch.Unlinked == null)
            return;
        nint head;
        do
        {
            head = Volatile.Read(ref _deferred);
            batch.LastUnlinked->Next = (TablePage*)head;
        } while (Interlocked.CompareExchange(ref _deferred, (nint)batch.Unlinked, head) != head);
        queue.Queue(this);
    }

    protected override unsafe bool RunSlice()
    {
        while (true)
        {
            if (_ready != null)
                NoteSome();
            else if (_dirtyChunks != 0)
                allocator.FreeNoted(ref _dirtyChunks);
            else if (Volatile.Read(ref _deferred) != 0)
            {
                TablePage* list = (TablePage*)Interlocked.Exchange(ref _deferred, 0);
                Rcu.Synchronize();
                _ready = list;
            }
            else
                return true;
            if (queue.ShouldYield)
                return false;
        }
    }

    private unsafe void NoteSome()
    {
        TablePage* page = _ready;
        int n = 0;
        for (; page != null && n < PagesPerStep; n++)
        {
            TablePage* next = page->Next;
            TablePageAllocator.Note(page, ref _dirtyChunks);
            page = next;
        }
        _ready = page;
        _freed += n;
    }
}

using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Page-aligned, zeroed, unmanaged pages for nested tables, in chunks of 2 MiB aligned to their size: 8 pages of records, 504 tables. Free tables are zero, so
/// that allocation is a pop.
/// A chunk whose pages are all free is unmapped, except one that is kept in reserve. The first chunk is backed page by page; a VM that needs more gets huge
/// pages from the host, where it has any.
/// </summary>
/// <remarks>SAFETY: (whole type) chunks are mapped here and unmapped only when none of their pages is allocated; addresses are derived by masking with the
/// chunk size.</remarks>
internal sealed class TablePageAllocator : IDisposable
{
    private const int PagesPerChunk = 512, FirstTable = PagesPerChunk * TablePage.Size / 4096;
    internal const int TablesPerChunk = PagesPerChunk - FirstTable;
    private const ulong ChunkBytes = PagesPerChunk * 4096;
    private const ulong ChunkMask = ~(ChunkBytes - 1);
    /// <summary>Neighbouring free tables are given back to the host rather than cleared from this number on.</summary>
    private const int DiscardRun = 16;

    /// <summary>Lies over the first records, which describe the record pages themselves.</summary>
    private struct Chunk
    {
        public unsafe Chunk* Prev, Next;
        public unsafe TablePage* Free;
        /// <summary>Pages that nobody has except the reclaimer, and that are not zero yet. The reclaimer's alone, as <see cref="NextDirty"/>.</summary>
        public unsafe TablePage* Dirty;
        public unsafe Chunk* NextDirty;
        /// <summary>Tables from this index on have never been used: zero, and their records too.</summary>
        public int Fresh;
        public int FreeCount, DirtyCount;
        /// <summary>On the list of chunks with free pages.</summary>
        public int Listed;
        public unsafe Chunk* AllNext;
        public unsafe Chunk* AllPrev;
    }

    private TinyLock _lock = new(LockRank.TablePageAllocator);
    private unsafe Chunk* _available;
    private unsafe Chunk* _all;
    private int _chunks, _emptyChunks, _allocated;

    /// <summary>Pages handed out.</summary>
    public int Allocated => Volatile.Read(ref _allocated);
    public ulong ReservedBytes => (ulong)Volatile.Read(ref _chunks) * ChunkBytes;

    public static unsafe TablePage* PageOf(ulong* table) => (TablePage*)((ulong)table & ChunkMask) + (((ulong)table & ~ChunkMask) >> 12);

    public static unsafe ulong TableOf(TablePage* page)
    {
        ulong chunk = (ulong)page & ChunkMask;
        return chunk + (((ulong)page - chunk) / TablePage.Size << 12);
    }

    /// <summary>A zeroed table in state Cached, or null when the host has no memory.</summary>
    public unsafe TablePage* Allocate()
    {
        _lock.Enter();
        Chunk* c = _available;
        if (c == null)
        {
            bool first = _all == null;
            _lock.Exit();
            Chunk* mapped = MapChunk(huge: !first);
            if (mapped == null)
                return null;
            _lock.Enter();
            Add(mapped);
            c = mapped;
        }
        TablePage* page = c->Free;
        if (page != null)
            c->Free = page->Next;
        else
            page = (TablePage*)c + c->Fresh++;
        if (c->FreeCount-- == TablesPerChunk)
            _emptyChunks--;
        if (c->FreeCount == 0)
            Unlist(c);
        _allocated++;
        _lock.Exit();
        *page = default;
        page->State = TablePageState.Cached;
        return page;
    }

    /// <summary>Gives one table back. Nobody can reach it any more. Zeroes it unless the caller knows it is zero.</summary>
    public unsafe void Free(TablePage* page, bool isZero = false)
    {
        if (!isZero)
            new Span<ulong>((void*)TableOf(page), 512).Clear();
        page->State = TablePageState.Free;
        page->Next = null;
        FreeZeroed((Chunk*)((ulong)page & ChunkMask), page, page, 1);
    }

    /// <summary>The first of two steps in which the reclaimer frees many pages: notes a page in its chunk. <paramref name="dirtyChunks"/> lists the chunks, for
    /// <see cref="FreeNoted"/>. One thread at a time.</summary>
    public static unsafe void Note(TablePage* page, ref nint dirtyChunks)
    {
        Chunk* c = (Chunk*)((ulong)page & ChunkMask);
        if (c->Dirty == null)
        {
            c->NextDirty = (Chunk*)dirtyChunks;
            dirtyChunks = (nint)c;
        }
        page->Next = c->Dirty;
        c->Dirty = page;
        c->DirtyCount++;
    }

    /// <summary>The second step, for one chunk of the list: a chunk without other pages goes back to the host as it is, and only what is left of others is
    /// cleared.</summary>
    public unsafe void FreeNoted(ref nint dirtyChunks)
    {
        Chunk* c = (Chunk*)dirtyChunks;
        dirtyChunks = (nint)c->NextDirty;
        TablePage* list = c->Dirty;
        int count = c->DirtyCount;
        c->Dirty = null;
        c->DirtyCount = 0;
        _lock.Enter();
        // The other pages of the chunk are free, and cannot be allocated while the lock is held.
        if (c->FreeCount + count == TablesPerChunk && _emptyChunks > 0)
        {
            _allocated -= count;
            Remove(c);
            _lock.Exit();
            HostMemory.Unmap(c, (nuint)ChunkBytes);
            return;
        }
        _lock.Exit();
        FreeZeroed(c, list, Clear(list), count);
    }

    /// <summary>Zeroes the tables of a list. Returns its last page.</summary>
    private static unsafe TablePage* Clear(TablePage* list)
    {
        TablePage* last = list;
        for (TablePage* run = list; run != null;)
        {
            // Pages that were allocated one after the other are neighbours, in either direction.
            TablePage* low = run, high = run;
            for (last = run, run = run->Next; run != null && (run == low - 1 || run == high + 1); last = run, run = run->Next)
                if (run < low)
                    low = run;
                else
                    high = run;
            nuint bytes = (nuint)(high - low + 1) * 4096;
            if (bytes >= DiscardRun * 4096)
                HostMemory.Discard((void*)TableOf(low), bytes);
            else
                new Span<byte>((void*)TableOf(low), (int)bytes).Clear();
            for (TablePage* page = low; page <= high; page++)
                page->State = TablePageState.Free;
        }
        return last;
    }

    private unsafe void FreeZeroed(Chunk* c, TablePage* first, TablePage* last, int count)
    {
        Chunk* unmap = null;
        _lock.Enter();
        last->Next = c->Free;
        c->Free = first;
        _allocated -= count;
        if (c->FreeCount == 0)
            List(c);
        c->FreeCount += count;
        if (c->FreeCount == TablesPerChunk && _emptyChunks++ > 0)
        {
            _emptyChunks--;
            Remove(c);
            unmap = c;
        }
        _lock.Exit();
        if (unmap != null)
            HostMemory.Unmap(unmap, (nuint)ChunkBytes);
    }

    /// <summary>Sums leaves of live tables by level.</summary>
    public unsafe void CountLeaves(Span<ulong> byLevel)
    {
        _lock.Enter();
        for (Chunk* c = _all; c != null; c = c->AllNext)
            for (int i = FirstTable; i < c->Fresh; i++)
            {
                TablePage* page = (TablePage*)c + i;
                if (page->State == TablePageState.Live && page->Level < byLevel.Length)
                    byLevel[page->Level] += (ulong)Math.Max(0, Volatile.Read(ref page->Leaves));
            }
        _lock.Exit();
    }

    /// <summary>Visits the record of each live page, under the allocator's lock.</summary>
    public unsafe void ForEachLive(Action<nint> visit)
    {
        _lock.Enter();
        for (Chunk* c = _all; c != null; c = c->AllNext)
            for (int i = 1; i <= TablesPerChunk; i++)
                if (((TablePage*)c + i)->State == TablePageState.Live)
                    visit((nint)((TablePage*)c + i));
        _lock.Exit();
    }

    /// <summary>Number of pages in a state. For checks.</summary>
    public unsafe int CountState(TablePageState state)
    {
        int n = 0;
        _lock.Enter();
        for (Chunk* c = _all; c != null; c = c->AllNext)
            for (int i = FirstTable; i < c->Fresh; i++)
                if (((TablePage*)c + i)->State == state)
                    n++;
        _lock.Exit();
        return n;
    }

    public unsafe void Dispose()
    {
        while (_all != null)
        {
            Chunk* c = _all;
            _all = c->AllNext;
            HostMemory.Unmap(c, (nuint)ChunkBytes);
        }
        _available = null;
        _chunks = _emptyChunks = _allocated = 0;
    }

    /// <summary>For checks: the host has no memory for another chunk.</summary>
    internal bool IsHostExhausted { get; set; }

    private unsafe Chunk* MapChunk(bool huge)
    {
        Chunk* c;
        if (IsHostExhausted)
            return null;
        try { c = (Chunk*)HostMemory.MapAligned((nuint)ChunkBytes, (nuint)ChunkBytes, huge); }
        catch (OutOfMemoryException) { return null; }
        c->Fresh = FirstTable;
        c->FreeCount = TablesPerChunk;
        return c;
    }

    private unsafe void Add(Chunk* c)
    {
        c->AllNext = _all;
        c->AllPrev = null;
        if (_all != null)
            _all->AllPrev = c;
        _all = c;
        _chunks++;
        _emptyChunks++;
        List(c);
    }

    private unsafe void Remove(Chunk* c)
    {
        Unlist(c);
        if (c->AllPrev != null)
            c->AllPrev->AllNext = c->AllNext;
        else
            _all = c->AllNext;
        if (c->AllNext != null)
            c->AllNext->AllPrev = c->AllPrev;
        _chunks--;
    }

    private unsafe void List(Chunk* c)
    {
        c->Prev = null;
        c->Next = _available;
        if (_available != null)
            _available->Prev = c;
        _available = c;
        c->Listed = 1;
    }

    private unsafe void Unlist(Chunk* c)
    {
        if (c->Listed == 0)
            return;
        if (c->Prev != null)
            c->Prev->Next = c->Next;
        else
            _available = c->Next;
        if (c->Next != null)
            c->Next->Prev = c->Prev;
        c->Listed = 0;
    }
}

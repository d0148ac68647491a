using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Page-aligned, zeroed, unmanaged pages for nested tables, in chunks of 256 KiB aligned to their size: one page of records, 63 tables. Free tables are zero, so that allocation is a pop.
/// A chunk whose pages are all free is unmapped, except one that is kept in reserve.
/// </summary>
/// <remarks>SAFETY: (whole type) chunks are mapped here and unmapped only when none of their pages is allocated; addresses are derived by masking with the chunk size.</remarks>
internal sealed unsafe class TablePageAllocator : IDisposable
{
    private const int TablesPerChunk = 63;
    private const ulong ChunkBytes = 64 * 4096;
    private const ulong ChunkMask = ~(ChunkBytes - 1);

    /// <summary>Lies over record 0, which describes the record page itself.</summary>
    private struct Chunk
    {
        public Chunk* Prev, Next;
        public TablePage* Free;
        public int FreeCount;
        /// <summary>On the list of chunks with free pages.</summary>
        public int Listed;
        public Chunk* AllNext;
        public Chunk* AllPrev;
    }

    private TinyLock _lock;
    private Chunk* _available;
    private Chunk* _all;
    private int _chunks, _emptyChunks, _allocated;

    /// <summary>Pages handed out.</summary>
    public int Allocated => Volatile.Read(ref _allocated);
    public ulong ReservedBytes => (ulong)Volatile.Read(ref _chunks) * ChunkBytes;

    public static TablePage* PageOf(ulong* table) => (TablePage*)((ulong)table & ChunkMask) + (((ulong)table & ~ChunkMask) >> 12);

    public static ulong TableOf(TablePage* page)
    {
        ulong chunk = (ulong)page & ChunkMask;
        return chunk + (((ulong)page - chunk) / TablePage.Size << 12);
    }

    /// <summary>A zeroed table in state Cached, or null when the host has no memory.</summary>
    public TablePage* Allocate()
    {
        _lock.Enter();
        Chunk* c = _available;
        if (c == null)
        {
            _lock.Exit();
            Chunk* fresh = MapChunk();
            if (fresh == null)
                return null;
            _lock.Enter();
            Add(fresh);
            c = fresh;
        }
        TablePage* page = c->Free;
        c->Free = page->Next;
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

    /// <summary>Gives a table back. Nobody can reach it any more. Zeroes it unless the caller knows it is zero.</summary>
    public void Free(TablePage* page, bool isZero = false)
    {
        if (!isZero)
            new Span<ulong>((void*)TableOf(page), 512).Clear();
        page->State = TablePageState.Free;
        Chunk* c = (Chunk*)((ulong)page & ChunkMask);
        Chunk* unmap = null;
        _lock.Enter();
        page->Next = c->Free;
        c->Free = page;
        _allocated--;
        if (c->FreeCount++ == 0)
            List(c);
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
    public void CountLeaves(Span<ulong> byLevel)
    {
        _lock.Enter();
        for (Chunk* c = _all; c != null; c = c->AllNext)
            for (int i = 1; i <= TablesPerChunk; i++)
            {
                TablePage* page = (TablePage*)c + i;
                if (page->State == TablePageState.Live && page->Level < byLevel.Length)
                    byLevel[page->Level] += (ulong)Math.Max(0, Volatile.Read(ref page->Leaves));
            }
        _lock.Exit();
    }

    /// <summary>Number of pages in a state. For checks.</summary>
    public int CountState(TablePageState state)
    {
        int n = 0;
        _lock.Enter();
        for (Chunk* c = _all; c != null; c = c->AllNext)
            for (int i = 1; i <= TablesPerChunk; i++)
                if (((TablePage*)c + i)->State == state)
                    n++;
        _lock.Exit();
        return n;
    }

    public void Dispose()
    {
        while (_all != null)
        {
            Chunk* c = _all;
            _all = c->AllNext;
            HostMemory.Unmap(c, (nuint)ChunkBytes);
        }
        _available = null;
    }

    private static Chunk* MapChunk()
    {
        Chunk* c;
        try { c = (Chunk*)HostMemory.MapAligned((nuint)ChunkBytes, (nuint)ChunkBytes); }
        catch (OutOfMemoryException) { return null; }
        for (int i = TablesPerChunk; i >= 1; i--)
        {
            TablePage* page = (TablePage*)c + i;
            page->Next = c->Free;
            c->Free = page;
        }
        c->FreeCount = TablesPerChunk;
        return c;
    }

    private void Add(Chunk* c)
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

    private void Remove(Chunk* c)
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

    private void List(Chunk* c)
    {
        c->Prev = null;
        c->Next = _available;
        if (_available != null)
            _available->Prev = c;
        _available = c;
        c->Listed = 1;
    }

    private void Unlist(Chunk* c)
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

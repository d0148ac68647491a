using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Decoded blocks of guest code by host address, and the map of the memory that they came from: shared by the processors of a machine, which are its readers.
/// One per machine.
/// </summary>
/// <remarks>
/// Locks: the decode lock protects insertion and invalidation of blocks, the page chains and the arenas. Lookups in the block table take no lock: chains are
/// published by release stores, and the memory
/// of a removed block stays readable until every processor has been seen outside the epoch in which it was reachable.
/// SAFETY: block pointers come from the cache's own arenas.
/// </remarks>
internal sealed unsafe partial class BlockCache
{
    private const nuint TableSize = 1 << 16, ArenaBytes = 32 << 20;
    /// <summary>Retired arenas that may wait for slow processors before these are made to leave the guest.</summary>
    private const int PatientArenas = 3;

    private readonly RankedLock _decodeLock = new(LockRank.Decode);
    private readonly Block** _table = (Block**)HostMemory.Map(TableSize * (nuint)sizeof(Block*));
    private readonly List<BlockArena> _arenas;
    private BlockArena _arena;
    /// <summary>Which host memory holds decoded code.</summary>
    public readonly CodeMap CodeMap = new();
    private CodeFetch[] _readers = [];
    private long _epoch = 1;
    private bool _externalWriters;

    public BlockCache()
    {
        _arenas = [_arena = new BlockArena(ArenaBytes)];
        if (Translates)
            RegionArena.Prepare();
    }

    /// <summary>A processor is to read blocks through its fetch unit. Any thread.</summary>
    public void Join(CodeFetch reader)
    {
        using (_decodeLock.Enter())
        {
            if (_readers.Length != 0)
                Volatile.Write(ref _stampsShared, true);
            Volatile.Write(ref _readers, [.. _readers, reader]);
        }
    }

    /// <summary>Releases everything. No processor reads blocks any more.</summary>
    public void Free()
    {
        foreach (BlockArena a in _arenas)
            a.Free();
        _arenas.Clear();
        HostMemory.Unmap(_table, TableSize * (nuint)sizeof(Block*));
        CodeMap.Dispose();
    }

    /// <summary>Number of the current generation of blocks: it changes when everything decoded is dropped.</summary>
    internal long Epoch => Volatile.Read(ref _epoch);

    // Statistics. Decode lock.
    /// <summary>Blocks decoded, blocks dropped because their bytes were written, and times everything was dropped.</summary>
    public ulong BlocksDecoded, BlocksInvalidated, CodeFlushes;

    /// <summary>Stamps of a machine with several processors are above all stamps of the time when it had one.</summary>
    private const ulong FirstSharedStamp = 1UL << 62;

    private ulong _ownStamp, _sharedStamp = FirstSharedStamp;
    /// <summary>A second processor exists. Set before it can enter the guest, for good.</summary>
    private bool _stampsShared;

    /// <summary>Entries into the guest so far, of all processors, while there are external writers.</summary>
    internal ulong EntryStamp => Volatile.Read(ref _stampsShared) ? Volatile.Read(ref _sharedStamp) : _ownStamp;

    /// <summary>The number of a new stay in the guest: blocks verified before it are verified again. 0 without external writers.</summary>
    /// <remarks>
    /// A lone processor counts for itself, without a locked instruction: it compares blocks with what its own thread has written before, and needs no order
    /// against others. A stay that began so while the second processor was created
    /// relies on any comparison of that processor, rightly: they all came later.
    /// </remarks>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal ulong NextEntryStamp() => !_externalWriters ? 0 : Volatile.Read(ref _stampsShared) ? Interlocked.Increment(ref _sharedStamp) : ++_ownStamp;

    /// <summary>Whether the block's bytes are still what was decoded; remembers since when that is known.</summary>
    /// <param name="stamp">A stamp given before the comparison begins: stays that began with it, or earlier, may rely on the comparison.</param>
    internal static bool Verify(Block* b, ulong stamp)
    {
        if (b->WordMask != 0 ? ((*(ulong*)b->Host ^ b->Word) & b->WordMask) != 0 : b->Copy != null && !SameBytes(b, b->Copy))
            return false;
        Volatile.Write(ref b->VerifiedAt, stamp);
        return true;
    }

    /// <summary>
    /// Other processes or threads write guest memory without telling <see cref="CodeWritten"/>: every block is compared with its bytes once after each entry.
    /// Set it before the first entry or with every processor outside the guest.
    /// </summary>
    public bool ExternalWriters
    {
        get => _externalWriters;
        set
        {
            using (_decodeLock.Enter())
            {
                _externalWriters = value;
                if (BlocksDecoded != 0)
                    DropAll();
            }
        }
    }

    private static nuint Bucket(byte* host, uint mode)
    {
        ulong h = ((ulong)host ^ (ulong)mode << 61) * 0x9e37_79b9_7f4a_7c15;
        return (nuint)(h >> 48);
    }

    /// <summary>
    /// Block that starts at <paramref name="host"/>, or null. A page-crossing block only matches with its second page. Any thread inside an epoch.
    /// </summary>
    internal Block* Find(byte* host, uint mode, byte* hostNext)
    {
        for (Block* b = (Block*)Volatile.Read(ref *(nint*)&_table[Bucket(host, mode)]); b != null; b = (Block*)Volatile.Read(ref *(nint*)&b->HashNext))
            if (b->Host == host && b->Mode == mode && (b->HostNext == null || b->HostNext == hostNext))
                return b;
        return null;
    }

    /// <summary>Whether some block at <paramref name="host"/> crosses into another page: the caller then needs the second page's address.</summary>
    internal bool HasCrossing(byte* host, uint mode)
    {
        for (Block* b = (Block*)Volatile.Read(ref *(nint*)&_table[Bucket(host, mode)]); b != null; b = (Block*)Volatile.Read(ref *(nint*)&b->HashNext))
            if (b->Host == host && b->Mode == mode && b->HostNext != null)
                return true;
        return false;
    }

    /// <summary>
    /// Publishes a decoded block, or returns null when the bytes changed since <paramref name="snapshot"/> was taken: decode again.
    /// Marks the code's granules before it compares, so that a store is either seen by the comparison or sees the mark.
    /// </summary>
    internal Block* Publish(Block* header, Op* ops, byte* snapshot)
    {
        using (_decodeLock.Enter())
        {
            Block* present = Find(header->Host, header->Mode, header->HostNext);
            if (present != null)
                return present;
            bool marked = Mark(header, header->Host) | (header->HostNext != null && Mark(header, header->HostNext));
            // PAIRS-WITH: the store and the later read of the code bitmap in every store path.
            if (marked && _readers.Length > 1)
                Interlocked.MemoryBarrierProcessWide();
            if (!SameBytes(header, snapshot))
                return null;
            Block* b = Allocate(header, ops, snapshot);
            Link(b);
            BlocksDecoded++;
            return b;
        }
    }

    private bool Mark(Block* header, byte* host)
    {
        PageCode* page = CodeMap.PageFor(host);
        ulong bits = Block.GranulesIn(header, Block.PageOf(host));
        if ((page->Bits & bits) == bits)
            return false;
        // With several processors a mark costs a barrier in all of them, so the whole page is marked at once. The first store to it brings the bitmap back to
        // what is decoded.
        Volatile.Write(ref page->Bits, _readers.Length > 1 ? ulong.MaxValue : page->Bits | bits);
        return true;
    }

    /// <summary>Whether guest memory still holds the bytes of <paramref name="snapshot"/>.</summary>
    internal static bool SameBytes(Block* b, byte* snapshot)
    {
        int first = b->Bytes - b->BytesNext;
        return new ReadOnlySpan<byte>(b->Host, first).SequenceEqual(new ReadOnlySpan<byte>(snapshot, first))
            && (b->BytesNext == 0 || new ReadOnlySpan<byte>(b->HostNext, b->BytesNext).SequenceEqual(new ReadOnlySpan<byte>(snapshot + first, b->BytesNext)));
    }

    private Block* Allocate(Block* header, Op* ops, byte* snapshot)
    {
        nuint body = (nuint)(sizeof(Block) + header->Ops * sizeof(Op)), size = body + (_externalWriters ? header->Bytes : (nuint)0);
        Block* b = (Block*)_arena.Allocate(size);
        if (b == null)
        {
            DropAll();
            b = (Block*)_arena.Allocate(size);
        }
        *b = *header;
        b->Heat = BlockMode.IsTranslatable(header->Mode) ? TranslationThreshold : int.MaxValue;
        b->Stride = (uint)((size + 63) & ~(nuint)63);
        Unsafe.CopyBlock(b + 1, ops, (uint)(header->Ops * sizeof(Op)));
        if (_externalWriters)
        {
            b->Copy = (byte*)b + body;
            Unsafe.CopyBlock(b->Copy, snapshot, header->Bytes);
            // Blocks around a port access are a few bytes. Eight bytes of the page are there to be read.
            if (header->Bytes <= sizeof(ulong) && header->BytesNext == 0 && ((nuint)header->Host & 0xfff) <= 0x1000 - sizeof(ulong))
            {
                b->WordMask = ulong.MaxValue >> (64 - 8 * header->Bytes);
                Unsafe.CopyBlock(&b->Word, snapshot, header->Bytes);
            }
        }
        return b;
    }

    private void Link(Block* b)
    {
        PageCode* page = CodeMap.PageFor(b->Host);
        b->PageNext = page->First;
        page->First = b;
        if (b->HostNext != null && b->HostNext != Block.PageOf(b->Host))
        {
            page = CodeMap.PageFor(b->HostNext);
            b->PageNext2 = page->First;
            page->First = b;
        }
        Block** bucket = &_table[Bucket(b->Host, b->Mode)];
        b->HashNext = *bucket;
        Volatile.Write(ref *(nint*)bucket, (nint)b);
    }

    /// <summary>
    /// Bytes of guest memory at <paramref name="host"/> were written other than by a guest store: blocks decoded from them are dropped. Any thread, after the
    /// write.
    /// </summary>
    public void CodeWritten(byte* host, nuint size)
    {
        while (size != 0)
        {
            nuint piece = Math.Min(size, 4096 - ((nuint)host & 0xfff));
            PageCode* page = CodeMap.Find(host);
            if (page != null && Volatile.Read(ref page->Bits) != 0)
                InvalidatePage(page, host, piece);
            host += piece;
            size -= piece;
        }
    }

    private void InvalidatePage(PageCode* page, byte* host, nuint size)
    {
        byte* start = Block.PageOf(host);
        using (_decodeLock.Enter())
        {
            ulong bits = 0;
            for (Block* b = page->First, next; b != null; b = next)
            {
                next = *Block.NextIn(b, start);
                if (Block.Overlaps(b, host, size))
                    Invalidate(b);
                else
                    bits |= Block.GranulesIn(b, start);
            }
            Volatile.Write(ref page->Bits, bits);
        }
    }

    /// <summary>Drops one block. Decode lock.</summary>
    internal void InvalidateBlock(Block* b)
    {
        using (_decodeLock.Enter())
        {
            // A second processor may have dropped it meanwhile.
            if (b->Stale == 0)
                Invalidate(b);
        }
    }

    private void Invalidate(Block* b)
    {
        BlocksInvalidated++;
        MakeStale(b);
        DropRegions(b);
        Unlink(&_table[Bucket(b->Host, b->Mode)], b, null);
        byte* page = Block.PageOf(b->Host);
        Unlink(&CodeMap.PageFor(page)->First, b, page);
        if (b->HostNext != null && b->HostNext != page)
            Unlink(&CodeMap.PageFor(b->HostNext)->First, b, b->HostNext);
        for (Block* other = CodeMap.PageFor(page)->First; other != null; other = *Block.NextIn(other, page))
        {
            if (other->Taken == b)
                other->Taken = null;
            if (other->Fall == b)
                other->Fall = null;
        }
    }

    private static void MakeStale(Block* b)
    {
        Volatile.Write(ref b->Stale, 1);
        b->Taken = b->Fall = null;
    }

    private static void Unlink(Block** at, Block* b, byte* page)
    {
        while (*at != null)
        {
            Block** next = page == null ? &(*at)->HashNext : Block.NextIn(*at, page);
            if (*at == b)
            {
                Volatile.Write(ref *(nint*)at, (nint)(*next));
                return;
            }
            at = next;
        }
    }

    /// <summary>Drops every block and switches to an arena that no processor can reach. Decode lock.</summary>
    private void DropAll()
    {
        CodeFlushes++;
        foreach (BlockArena a in _arenas)
            if (a == _arena)
                DropArena(a);
        new Span<nint>(_table, (int)TableSize).Clear();
        _arena.RetiredAt = ++_epoch;
        // PAIRS-WITH: CodeFetch.EnterEpoch.
        Interlocked.MemoryBarrierProcessWide();
        long oldest = long.MaxValue;
        int retired = 0;
        foreach (CodeFetch p in _readers)
            oldest = Math.Min(oldest, Volatile.Read(ref p.ActiveEpoch));
        BlockArena? free = null;
        foreach (BlockArena a in _arenas)
        {
            retired++;
            if (a.RetiredAt <= oldest)
                free = a;
        }
        if (retired > PatientArenas)
            foreach (CodeFetch p in _readers)
                if (Volatile.Read(ref p.ActiveEpoch) != long.MaxValue)
                    p.RequestExit();
        if (free == null)
        {
            free = new BlockArena(ArenaBytes);
            _arenas.Add(free);
        }
        else
            free.Reset();
        free.RetiredAt = long.MaxValue;
        _arena = free;
    }

    /// <summary>Every block that is still in memory. No processor may be inside the guest.</summary>
    internal IEnumerable<nint> AllBlocks()
    {
        List<nint> blocks = [];
        foreach (BlockArena a in _arenas)
            for (byte* at = a.Start; at < a.End; at += ((Block*)at)->Stride)
                blocks.Add((nint)at);
        return blocks;
    }

    private void DropArena(BlockArena arena)
    {
        // The bitmaps keep their bits: a processor that still runs an old block must notice stores to it. They are recomputed at the first such store.
        for (Region* region = arena.Regions is { } regions ? regions.First : null; region != null; region = region->Next)
            Volatile.Write(ref region->Stale, 1);
        for (byte* at = arena.Start; at < arena.End; at += ((Block*)at)->Stride)
        {
            Block* b = (Block*)at;
            MakeStale(b);
            CodeMap.PageFor(b->Host)->First = null;
            if (b->HostNext != null)
                CodeMap.PageFor(b->HostNext)->First = null;
        }
    }
}

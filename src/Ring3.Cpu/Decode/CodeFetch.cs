using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>One entry of the jump cache: the block's address and, above bit 48, translation context and decode mode.</summary>
internal unsafe struct JumpEntry
{
    public ulong Linear;
    public ulong Packed;
}

/// <summary>
/// From RIP to block: the per-processor jump cache, keyed by (linear RIP, translation context, decode mode), the machine's block table behind it, and the
/// decoder behind that.
/// </summary>
/// <remarks>
/// Epochs: a processor that is inside the guest publishes the machine's epoch before it reads any block pointer; arenas retired since are kept until it
/// publishes a newer one.
/// SAFETY: block pointers are used only inside the epoch in which they were read; the jump cache and the pending link are forgotten when the epoch changes.
/// Host addresses come from TranslateExecute.
/// </remarks>
internal sealed unsafe partial class CodeFetch
{
    private readonly CpuState* _state;
    private readonly PagingUnit _paging;
    private readonly BlockCache _blocks;

    public CodeFetch(CpuState* state, PagingUnit paging, BlockCache blocks, ProcessorModel model)
    {
        _state = state;
        _paging = paging;
        _blocks = blocks;
        _decoder = new BlockDecoder(model);
    }

    /// <summary>Makes the processor leave the guest. Any thread.</summary>
    public void RequestExit() => Volatile.Write(ref _state->ExitRequest, 1);

    /// <summary>The jump cache is of the current translations.</summary>
    internal bool IsCurrent => JumpGeneration == _paging.Tlb.FetchGeneration;

    /// <summary>Nothing that the jump cache leads to has been dropped with everything else.</summary>
    internal bool IsOfThisEpoch => JumpEpoch == _blocks.Epoch;

    internal const int JumpEntries = 8192;
    internal const ulong BlockAddress = (1UL << 48) - 1;

    /// <summary>Machine epoch this processor may hold block pointers of; <see cref="long.MaxValue"/> outside the guest.</summary>
    internal long ActiveEpoch = long.MaxValue;

    /// <summary>So many entries of the jump cache are remembered as written; forgetting them one by one is cheaper than forgetting all.</summary>
    private const int RememberedJumps = 256;

    internal readonly JumpEntry* Jumps = (JumpEntry*)HostMemory.Map((nuint)(JumpEntries * sizeof(JumpEntry) + RememberedJumps * sizeof(ushort)));
    private readonly BlockDecoder _decoder;

    internal void Free()
    {
        HostMemory.Unmap(Jumps, (nuint)(JumpEntries * sizeof(JumpEntry) + RememberedJumps * sizeof(ushort)));
        _decoder.Free();
    }

    /// <summary>Indices of the entries written since all were forgotten, in the order of writing, behind the entries themselves.</summary>
    private ushort* WrittenJumps => (ushort*)(Jumps + JumpEntries);
    private int _jumpsWritten;

    internal long JumpEpoch;
    internal uint JumpGeneration;
    /// <summary>Successor slot of the block that was left last, when its target may be linked; else null.</summary>
    internal Block** Link;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal void EnterEpoch()
    {
        long epoch;
        do
        {
            epoch = _blocks.Epoch;
            Volatile.Write(ref ActiveEpoch, epoch);
            // PAIRS-WITH: BlockCache.DropAll (new epoch, process-wide barrier, ActiveEpoch read). That barrier orders this store before the next load on this
            // processor, too, so no fence is paid here;
            // the compiler keeps the order of volatile accesses.
        }
        while (_blocks.Epoch != epoch);
        _state->EntryStamp = _blocks.NextEntryStamp();
        if (JumpEpoch != epoch || JumpGeneration != _paging.Tlb.FetchGeneration)
            ForgetJumps(epoch);
    }

    internal void LeaveEpoch()
    {
        Link = null;
        Volatile.Write(ref ActiveEpoch, long.MaxValue);
    }

    private void ForgetJumps(long epoch)
    {
        if (_jumpsWritten > RememberedJumps)
            new Span<JumpEntry>(Jumps, JumpEntries).Clear();
        else
            for (int i = 0; i < _jumpsWritten; i++)
                Jumps[WrittenJumps[i]] = default;
        _jumpsWritten = 0;
        JumpEpoch = epoch;
        JumpGeneration = _paging.Tlb.FetchGeneration;
        Link = null;
    }

    internal static uint JumpIndex(ulong linear) => (uint)(linear ^ linear >> 13) & (JumpEntries - 1);

    /// <summary>Block at CS:RIP for a mode, through the jump cache. Null: an exception or exit is pending.</summary>
    internal Block* Lookup(CpuState* c, uint mode)
    {
        if (JumpGeneration != _paging.Tlb.FetchGeneration)
            ForgetJumps(JumpEpoch);
        Block* b = Cached(c, mode);
        return b != null ? b : FindBlock(c, mode);
    }

    /// <summary>Block at CS:RIP for a mode, or null when the jump cache does not have it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal Block* Cached(CpuState* c, uint mode)
    {
        bool wide = (mode & BlockMode.SizeMask) == BlockMode.Code64;
        ulong linear = wide ? c->Rip : (uint)(c->Cs.Base + c->Rip);
        JumpEntry* e = Jumps + JumpIndex(linear);
        if (e->Linear != linear || e->Packed >> 48 != (c->CodeContext | (ulong)mode << 12))
            return null;
        Block* b = (Block*)(e->Packed & BlockAddress);
        return wide || c->Rip + b->Bytes - 1 <= c->Cs.Limit ? b : null;
    }

    /// <summary>
    /// Block at CS:RIP, where <paramref name="link"/> of the running block should lead, if it is not null; what is found is linked. Null: not in the jump
    /// cache. Then the lookup that follows may link.
    /// </summary>
    internal Block* Follow(CpuState* c, uint mode, Block** link)
    {
        Link = link;
        Block* b = Cached(c, mode);
        if (b != null && link != null)
            Connect(c, b);
        return b;
    }

    /// <summary>Block at CS:RIP, not through the jump cache. Null: an exception or exit is pending.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal Block* FindBlock(CpuState* c, uint mode)
    {
        c->BlocksExecuted++;
        ulong rip = c->Rip, linear = rip;
        bool wide = (mode & BlockMode.SizeMask) == BlockMode.Code64;
        if (!wide)
        {
            linear = (uint)(c->Cs.Base + rip);
            if (rip > c->Cs.Limit)
            {
                Outcome.Raise(c, Arch.Vector.GP, 0);
                return null;
            }
        }
        byte* host = _paging.TranslateExecute(c, linear);
        if (host == null)
            return null;
        Block* b;
        // Everything may be dropped meanwhile, also by the decoding of this very block. A block that was found before a new epoch is published may lie in an
        // arena that the next drop reuses: it is looked up again in the new epoch,
        // and one that is found in an epoch that is still the last lies in an arena that this processor keeps.
        do
        {
            if (_blocks.Epoch != JumpEpoch)
                EnterEpoch();
            b = FindOrDecode(c, rip, linear, host, mode);
            if (b == null && _fetchFailed)
                return null;
        }
        while (b == null || _blocks.Epoch != JumpEpoch);
        if (!wide && rip + b->Bytes - 1 > c->Cs.Limit)
            return BeyondLimit(c, rip, b, mode);
        if (_paging.Sanitizer is not null)
            return b;
        Remember(c, linear, mode, b);
        return b;
    }

    private void Remember(CpuState* c, ulong linear, uint mode, Block* b)
    {
        uint index = JumpIndex(linear);
        if (_jumpsWritten < RememberedJumps)
            WrittenJumps[_jumpsWritten++] = (ushort)index;
        else
            _jumpsWritten = RememberedJumps + 1;
        JumpEntry* e = Jumps + index;
        e->Linear = linear;
        e->Packed = (ulong)b | (c->CodeContext | (ulong)mode << 12) << 48;
    }

    /// <summary>
    /// The block at RIP, which lies in its code segment with all of its page, when the translations of its page, or both in a flat segment, are cached: nothing
    /// is walked, decoded or raised. Or null.
    /// </summary>
    internal Block* Known(CpuState* c, uint mode)
    {
        ulong linear = mode == BlockMode.Code64 ? c->Rip : (uint)(c->Cs.Base + c->Rip);
        byte* host = IsCurrent ? CachedAt(c, linear) : null;
        if (host == null)
            return null;
        Block* b = _blocks.Find(host, mode, null);
        if (b == null && (linear & 0xfff) > 4096 - BlockDecoder.MaxInstructionLength && BlockMode.IsFlat(mode))
        {
            ulong next = (linear & ~0xfffUL) + 0x1000;
            byte* second = CachedAt(c, mode == BlockMode.Code64 ? next : (uint)next);
            b = second != null ? _blocks.Find(host, mode, second) : null;
        }
        // One of another epoch may lie in an arena that this processor does not keep.
        if (b == null || !IsOfThisEpoch)
            return null;
        Remember(c, linear, mode, b);
        return b;
    }

    /// <summary>Where code at a linear address is, or null when its page's translation is not cached.</summary>
    private byte* CachedAt(CpuState* c, ulong linear)
    {
        TlbEntry* f = _paging.Tlb.Fetch + Tlb.FetchIndex(linear);
        return f->TagRead == ((linear & ~0xfffUL) | c->CodeContext) ? (byte*)(linear + (ulong)f->Addend) : null;
    }

    private bool _fetchFailed;

    private Block* FindOrDecode(CpuState* c, ulong rip, ulong linear, byte* host, uint mode)
    {
        _fetchFailed = false;
        byte* next = null;
        Block* b = _blocks.Find(host, mode, null);
        if (b == null && _blocks.HasCrossing(host, mode))
        {
            next = NextCodePage(c, linear);
            if (next == null)
                return null;
            b = _blocks.Find(host, mode, next);
        }
        if (b != null)
        {
            if (BlockCache.Verify(b, _blocks.EntryStamp))
                return b;
            _blocks.InvalidateBlock(b);
        }
        if (!_decoder.Decode(rip, host, next, mode, out Block header) && _decoder.Unreadable == null)
        {
            next = NextCodePage(c, linear);
            if (next == null)
                return null;
            _decoder.Decode(rip, host, next, mode, out header);
        }
        if (_decoder.Unreadable != null)
        {
            Outcome.LeaveForMemory(c, (ulong)_decoder.Unreadable, AccessKind.Execute);
            _fetchFailed = true;
            return null;
        }
        return _blocks.Publish(&header, _decoder.Ops, _decoder.Snapshot);
    }

    private byte* NextCodePage(CpuState* c, ulong linear)
    {
        bool wide = c->BlockMode == BlockMode.Code64;
        _fetchFailed = true;
        if (!wide && c->Rip + (0xfff - (linear & 0xfff)) >= c->Cs.Limit)
        {
            // The code segment ends before the next page begins.
            Outcome.Raise(c, Arch.Vector.GP, 0);
            return null;
        }
        ulong page = (linear & ~0xfffUL) + 0x1000;
        byte* host = _paging.TranslateExecute(c, wide ? page : (uint)page);
        _fetchFailed = host == null;
        return host;
    }

    /// <summary>The block passes the code segment's limit: run its instructions singly, and fault at the one that does not fit.</summary>
    private Block* BeyondLimit(CpuState* c, ulong rip, Block* b, uint mode)
    {
        if (b->Instructions > 1)
            return FindBlock(c, mode | BlockMode.Single);
        Outcome.Raise(c, Arch.Vector.GP, 0);
        return null;
    }

    /// <summary>
    /// What bits 48-63 of a jump entry must hold for the current context and a mode.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static ulong JumpKey(CpuState* c, uint mode) => (c->CodeContext | (ulong)mode << 12) << 48;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool JumpMiss(JumpEntry* j, ulong rip, ulong key) => j->Linear != rip || (j->Packed ^ key) >> 48 != 0;

    /// <summary>
    /// Links the successor slot in <see cref="Link"/>, if there is one, to its block when both lie in one page, so that the next transfer needs no lookup.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal void Connect(CpuState* c, Block* target)
    {
        Block** slot = Link;
        Link = null;
        bool samePage = ((c->BlockRip ^ c->Rip) & ~0xfffUL) == 0;
        if (slot == null || !samePage || target->HostNext != null || !BlockMode.IsFlat(target->Mode) || _paging.Sanitizer is not null)
            return;
        *slot = target;
        // The block may have been invalidated by another processor before the link existed. PAIRS-WITH: BlockCache.MakeStale (the mark, then links).
        Interlocked.MemoryBarrier();
        if (Volatile.Read(ref target->Stale) != 0)
            *slot = null;
    }
}

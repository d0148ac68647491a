using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>One entry of the jump cache: the block's address and, above bit 48, translation context and decode mode.</summary>
internal unsafe struct JumpEntry
{
    public ulong Linear;
    public ulong Packed;
}

/// <summary>
/// From RIP to block: the per-processor jump cache, keyed by (linear RIP, translation context, decode mode), the machine's block table behind it, and the decoder behind that.
/// </summary>
/// <remarks>
/// Epochs: a processor that is inside the guest publishes the machine's epoch before it reads any block pointer; arenas retired since are kept until it publishes a newer one.
/// SAFETY: block pointers are used only inside the epoch in which they were read; the jump cache and the pending link are forgotten when the epoch changes. Host addresses come from TranslateExecute.
/// </remarks>
public sealed unsafe partial class LogicalProcessor
{
    private const int JumpEntries = 8192;
    private const ulong BlockAddress = (1UL << 48) - 1;

    /// <summary>Machine epoch this processor may hold block pointers of; <see cref="long.MaxValue"/> outside the guest.</summary>
    internal long ActiveEpoch = long.MaxValue;

    /// <summary>So many entries of the jump cache are remembered as written; forgetting them one by one is cheaper than forgetting all.</summary>
    private const int RememberedJumps = 256;

    private readonly JumpEntry* _jumps = (JumpEntry*)HostMemory.Map((nuint)(JumpEntries * sizeof(JumpEntry) + RememberedJumps * sizeof(ushort)));
    private readonly BlockDecoder _decoder;

    private void FreeLookup()
    {
        HostMemory.Unmap(_jumps, (nuint)(JumpEntries * sizeof(JumpEntry) + RememberedJumps * sizeof(ushort)));
        _decoder.Free();
    }

    /// <summary>Indices of the entries written since all were forgotten, in the order of writing, behind the entries themselves.</summary>
    private ushort* WrittenJumps => (ushort*)(_jumps + JumpEntries);
    private int _jumpsWritten;

    private long _jumpEpoch;
    private uint _jumpGeneration;
    /// <summary>Successor slot of the block that was left last, when its target may be linked; else null.</summary>
    private Block** _link;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void EnterEpoch()
    {
        long epoch;
        do
        {
            epoch = Machine.Blocks.Epoch;
            Volatile.Write(ref ActiveEpoch, epoch);
            // PAIRS-WITH: BlockCache.DropAll (new epoch, process-wide barrier, ActiveEpoch read). That barrier orders this store before the next load on this processor, too, so no fence is paid here;
            // the compiler keeps the order of volatile accesses.
        }
        while (Machine.Blocks.Epoch != epoch);
        State->EntryStamp = Machine.Blocks.NextEntryStamp();
        if (_jumpEpoch != epoch || _jumpGeneration != Paging.Tlb.FetchGeneration)
            ForgetJumps(epoch);
    }

    private void LeaveEpoch()
    {
        _link = null;
        Volatile.Write(ref ActiveEpoch, long.MaxValue);
    }

    private void ForgetJumps(long epoch)
    {
        if (_jumpsWritten > RememberedJumps)
            new Span<JumpEntry>(_jumps, JumpEntries).Clear();
        else
            for (int i = 0; i < _jumpsWritten; i++)
                _jumps[WrittenJumps[i]] = default;
        _jumpsWritten = 0;
        _jumpEpoch = epoch;
        _jumpGeneration = Paging.Tlb.FetchGeneration;
        _link = null;
    }

    private static uint JumpIndex(ulong linear) => (uint)(linear ^ linear >> 13) & (JumpEntries - 1);

    /// <summary>Block at CS:RIP for a mode, through the jump cache. Null: an exception or exit is pending.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private Block* Lookup(CpuState* c, uint mode)
    {
        if (_jumpGeneration != Paging.Tlb.FetchGeneration)
            ForgetJumps(_jumpEpoch);
        bool wide = (mode & BlockMode.SizeMask) == BlockMode.Code64;
        ulong linear = wide ? c->Rip : (uint)(c->Cs.Base + c->Rip);
        JumpEntry* e = _jumps + JumpIndex(linear);
        if (e->Linear == linear && e->Packed >> 48 == (c->TlbContext | (ulong)mode << 12))
        {
            Block* b = (Block*)(e->Packed & BlockAddress);
            if (wide || c->Rip + b->Bytes - 1 <= c->Cs.Limit)
                return b;
        }
        return FindBlock(c, mode);
    }

    /// <summary>As <see cref="Lookup"/> for 16- and segmented 32-bit code, but null when the jump cache does not have the block.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private Block* CachedSegmented(CpuState* c, uint mode)
    {
        ulong linear = (uint)(c->Cs.Base + c->Rip);
        JumpEntry* e = _jumps + JumpIndex(linear);
        if (e->Linear != linear || e->Packed >> 48 != (c->TlbContext | (ulong)mode << 12))
            return null;
        Block* b = (Block*)(e->Packed & BlockAddress);
        return c->Rip + b->Bytes - 1 <= c->Cs.Limit ? b : null;
    }

    /// <summary>Block at CS:RIP, not through the jump cache. Null: an exception or exit is pending.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private Block* FindBlock(CpuState* c, uint mode)
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
        byte* host = Paging.TranslateExecute(c, linear);
        if (host == null)
            return null;
        Block* b;
        // Everything may be dropped meanwhile, also by the decoding of this very block. A block that was found before a new epoch is published may lie in an arena that the next drop reuses: it is looked up again in the new epoch,
        // and one that is found in an epoch that is still the last lies in an arena that this processor keeps.
        do
        {
            if (Machine.Blocks.Epoch != _jumpEpoch)
                EnterEpoch();
            b = FindOrDecode(c, rip, linear, host, mode);
            if (b == null && _fetchFailed)
                return null;
        }
        while (b == null || Machine.Blocks.Epoch != _jumpEpoch);
        if (!wide && rip + b->Bytes - 1 > c->Cs.Limit)
            return BeyondLimit(c, rip, b, mode);
        if (Paging.Sanitizer is not null)
            return b;
        uint index = JumpIndex(linear);
        if (_jumpsWritten < RememberedJumps)
            WrittenJumps[_jumpsWritten++] = (ushort)index;
        else
            _jumpsWritten = RememberedJumps + 1;
        JumpEntry* e = _jumps + index;
        e->Linear = linear;
        e->Packed = (ulong)b | (c->TlbContext | (ulong)mode << 12) << 48;
        return b;
    }

    private bool _fetchFailed;

    private Block* FindOrDecode(CpuState* c, ulong rip, ulong linear, byte* host, uint mode)
    {
        _fetchFailed = false;
        byte* next = null;
        Block* b = Machine.Blocks.Find(host, mode, null);
        if (b == null && Machine.Blocks.HasCrossing(host, mode))
        {
            next = NextCodePage(c, linear);
            if (next == null)
                return null;
            b = Machine.Blocks.Find(host, mode, next);
        }
        if (b != null)
        {
            if (BlockCache.Verify(b, Machine.Blocks.EntryStamp))
                return b;
            Machine.Blocks.InvalidateBlock(b);
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
        return Machine.Blocks.Publish(&header, _decoder.Ops, _decoder.Snapshot);
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
        byte* host = Paging.TranslateExecute(c, wide ? page : (uint)page);
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
}

using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Why the run loop came back.</summary>
internal enum LoopExit
{
    /// <summary>CpuState.Rip needs a lookup.</summary>
    Lookup,
    /// <summary>The block went stale before the instruction at CpuState.Rip: the jump cache may still hold it.</summary>
    Stale,
    /// <summary>At a block boundary, CpuState.Rip exact: ExitRequest, Attention or an event needs a look.</summary>
    Poll,
    /// <summary>The instruction at CpuState.Rip did not retire: an exception or an exit is pending.</summary>
    Fault,
    /// <summary>An instruction retired and left an exit.</summary>
    RetiredExit,
}

/// <summary>The run loop.</summary>
/// <remarks>
/// Everything that is not an inline case is a call of the op's handler; the inline forms of memory operands fall back to it as well when they miss the TLB, so slow paths are outside this method.
/// Keep it below RyuJIT's limits (60,000 bytes of IL, 2,000 basic blocks): beyond them it would be compiled without optimisation.
/// SAFETY: operand offsets come from the decoder and lie in CpuState; host addresses come from TLB hits; block pointers are used within the epoch.
/// </remarks>
public sealed unsafe partial class LogicalProcessor
{
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private LoopExit RunLoop(CpuState* c, Block* b)
    {
        Op* op;
        ulong rip;
    enter:
        c->InstructionsRetired += b->Instructions;
        op = Block.FirstOp(b);
    dispatch:
        switch ((OpKind)op->Kind)
        {
            case OpKind.Stale:
                c->Rip = RipOf(c, op);
                Uncount(c, b, op);
                return LoopExit.Stale;

            case OpKind.FallThrough:
                goto fall;

            default:
                goto generic;
        }

    generic:
        switch (op->Handler(this, c, op))
        {
            case OpResult.Next:
                op++;
                goto dispatch;
            case OpResult.EndBlock:
                rip = c->Rip;
                if (NeedsAttention(c))
                {
                    _link = null;
                    return LoopExit.Poll;
                }
                goto indirect;
            case OpResult.RetiredExit:
                return LoopExit.RetiredExit;
            default:
                c->Rip = RipOf(c, op);
                Uncount(c, b, op);
                if (c->PendingNonCanonical != 0)
                    StackSegmentFault(c, op);
                return LoopExit.Fault;
        }

    fall:
        rip = (c->BlockRip + op->Imm) & (ulong)op->Disp;
        if (b->Fall != null)
        {
            b = b->Fall;
            goto follow;
        }
        _link = &b->Fall;
        goto find;

    follow:
        if (*(ulong*)&c->ExitRequest != 0)
        {
            c->Rip = rip;
            return LoopExit.Poll;
        }
        c->BlockRip = rip;
        goto enter;

    indirect:
        _link = null;
    find:
        c->Rip = rip;
        if (*(ulong*)&c->ExitRequest != 0)
            return LoopExit.Poll;
        {
            JumpEntry* e = _jumps + JumpIndex(rip);
            if (e->Linear != rip || e->Packed >> 48 != (c->TlbContext | (ulong)BlockMode.Code64 << 12) || c->BlockMode != BlockMode.Code64 || _jumpGeneration != Tlb.FetchGeneration)
                return LoopExit.Lookup;
            b = (Block*)(e->Packed & BlockAddress);
        }
        if (_link != null)
            Connect(c, b);
        c->BlockRip = rip;
        goto enter;
    }

    /// <summary>Takes back the instructions of the block from <paramref name="op"/> on, which were counted at its entry.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void Uncount(CpuState* c, Block* b, Op* op)
    {
        int retired = 0;
        for (Op* at = Block.FirstOp(b); at < op; at++)
            retired += OpOptimizer.InstructionsOf(at);
        c->InstructionsRetired -= (ulong)(b->Instructions - retired);
    }

    /// <summary>A non-canonical operand in the stack segment is #SS(0).</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void StackSegmentFault(CpuState* c, Op* op)
    {
        if (c->ExitPending == 0 && op->Seg == SegmentIndex.SS)
            c->PendingVector = Arch.Vector.SS;
        c->PendingNonCanonical = 0;
    }

    /// <summary>Links the successor slot in <see cref="_link"/> to its block when both lie in one page, so that the next transfer needs no lookup.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void Connect(CpuState* c, Block* target)
    {
        Block** slot = _link;
        _link = null;
        bool samePage = ((c->BlockRip ^ c->Rip) & ~0xfffUL) == 0;
        if (!samePage || target->HostNext != null || c->BlockMode != BlockMode.Code64 || (target->Mode & BlockMode.Single) != 0 || Machine.ExternalWriters)
            return;
        *slot = target;
        // The block may have been invalidated by another processor before the link existed.
        Interlocked.MemoryBarrier();
        if (Block.FirstOp(target)->Kind == (ushort)OpKind.Stale)
            *slot = null;
    }

    /// <summary>Whether something must happen at this instruction boundary before the fast loop goes on.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool NeedsAttention(CpuState* c)
        => (c->InterruptShadow | c->StepMode | c->PendingDebug) != 0
        || (c->RequestInterruptWindow != 0 && (c->Rflags & Arch.Rflags.IF) != 0)
        || (c->RequestNmiWindow != 0 && c->NmiBlocked == 0);
}

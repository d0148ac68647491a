using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Why the run loop came back.</summary>
internal enum LoopExit
{
    /// <summary>CpuState.Rip needs a lookup.</summary>
    Lookup,
    /// <summary>The block went stale before the instruction at CpuState.Rip: the jump cache may still hold it.</summary>
    Stale,
    /// <summary>At a block boundary, CpuState.Rip exact: ExitRequest, Attention, the timer or an event needs a look.</summary>
    Poll,
    /// <summary>The instruction at CpuState.Rip did not retire: an exception or an exit is pending.</summary>
    Fault,
    /// <summary>The block at CpuState.Rip has a translation.</summary>
    Hot,
    /// <summary>An instruction retired and left an exit.</summary>
    RetiredExit,
}

/// <summary>The run loop: one op after the other, by a call of its handler; and from block to block, as long as nothing else is to be done.</summary>
/// <remarks>
/// SAFETY: ops follow each other up to the one that ends the block; block pointers are used within the epoch.
/// </remarks>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Executes from a block on whose code is at RIP, which is <see cref="CpuState.BlockRip"/> as well.</summary>
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private LoopExit RunLoop(CpuState* c, Block* block)
    {
        uint mode = block->Mode & ~BlockMode.Single;
        while (true)
        {
            if (block->VerifiedAt < c->EntryStamp && !BlockCache.Verify(block, c->EntryStamp))
                return LoopExit.Stale;
            if (c->InstructionsRetired >= c->TimerLook)
                return LoopExit.Poll;
            if (--block->Heat < 0 && _p.Translator.IsHot(c, block))
                return LoopExit.Hot;
            c->InstructionsRetired += block->Instructions;

            Op* op = Block.FirstOp(block) - 1;
            OpResult result;
            do
            {
                op++;
                // Another processor, or the instruction before, may have overwritten the code.
                if (Volatile.Read(ref block->Stale) != 0)
                    return Abandon(c, block, op);
                c->CurrentOp = op;
                result = op->Handler(_p, c, op);
            }
            while (result == OpResult.Next);

            Block** link = null;
            switch (result)
            {
                case OpResult.Taken:
                    link = &block->Taken;
                    break;
                case OpResult.Fall:
                    link = &block->Fall;
                    break;
                case OpResult.Jump:
                    break;
                case OpResult.EndBlock:
                    if (EventUnit.NeedsAttention(c) || !_fetch.IsCurrent || CpuMode.CodeMode(c) != mode)
                        return LoopExit.Poll;
                    break;
                case OpResult.RetiredExit:
                    return LoopExit.RetiredExit;
                default:
                    return Interrupt(c, block, op);
            }

            // Another processor that overwrites the code clears the link.
            Block* next = link != null ? (Block*)Volatile.Read(ref *(nint*)link) : null;
            if (*(ulong*)&c->ExitRequest != 0)
                return LoopExit.Poll;
            if (next == null && (next = _fetch.Follow(c, mode, link)) == null)
                return LoopExit.Lookup;
            block = next;
            c->BlockRip = c->Rip;
        }
    }

    /// <summary>The block went stale under the processor.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static LoopExit Abandon(CpuState* c, Block* block, Op* op)
    {
        c->Rip = Addressing.RipOf(c, op);
        Uncount(c, block, op);
        return LoopExit.Stale;
    }

    /// <summary>An instruction did not retire.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private LoopExit Interrupt(CpuState* c, Block* block, Op* op)
    {
        c->Rip = Addressing.RipOf(c, op);
        Uncount(c, block, op);
        if (c->ExitPending != 0 && c->Exit->Reason == ExitReason.Mmio)
            NoteLastAccess(c, op);
        // A non-canonical operand in the stack segment is #SS(0).
        if (c->PendingNonCanonical != 0 && c->ExitPending == 0 && op->Seg == SegmentIndex.SS)
            c->PendingVector = Arch.Vector.SS;
        c->PendingNonCanonical = 0;
        return LoopExit.Fault;
    }

    /// <summary>
    /// Takes back the instructions of the block from <paramref name="op"/> on, which were counted at its entry. Ops before the last execute one instruction
    /// each.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static void Uncount(CpuState* c, Block* block, Op* op) => c->InstructionsRetired -= (ulong)(block->Instructions - (op - Block.FirstOp(block)));
}

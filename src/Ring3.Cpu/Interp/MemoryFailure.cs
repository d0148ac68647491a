using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Host memory that is gone under a translation: the access faults, <see cref="FaultGuard"/> raises a null reference at it, and here it becomes <see cref="ExitReason.MemoryFailure"/> with the state
/// of before the instruction.
/// </summary>
/// <remarks>
/// What makes the state exact: <see cref="CpuState.CurrentOp"/> is stored before every access of the loop and every handler, and an instruction changes registers only after its last access, keeps the old stack pointer with <see cref="MemoryGuard.Keep"/>, or can be
/// executed again from what it has left (REP, gathers, task switches), as page faults demand anyway.
/// SAFETY: the op lies in a block of the running epoch; the record belongs to this thread.
/// </remarks>
public sealed unsafe partial class LogicalProcessor
{

    private ExitReason RunGuarded(CpuState* c)
    {
        FaultRecord* faults = Guard.Record = FaultGuard.RecordOfThread(Guard.Record);
        faults->Inside = 1;
        ExitReason reason;
        // Not a finally: it would be a call on each exit.
        try
        {
            reason = Run(c);
        }
        catch (NullReferenceException) when (faults->Pending != 0)
        {
            // Between instructions, or fetching one: RIP is exact.
            Guard.Failed(c);
            reason = Exit->Reason;
        }
        catch
        {
            faults->Inside = 0;
            throw;
        }
        faults->Inside = 0;
        return reason;
    }

    private LoopExit LoopGuarded(CpuState* c, Block* block)
    {
        try
        {
            return RunLoop(c, block);
        }
        catch (NullReferenceException) when (Guard.Record->Pending != 0)
        {
            Guard.Failed(c);
            if (c->KeptBy == c->CurrentOp)
                c->Gpr[4] = c->KeptRsp;
            return Interrupt(c, BlockOf(c->CurrentOp), c->CurrentOp);
        }
    }

    /// <summary>Only a block's first op has offset 0.</summary>
    internal static Block* BlockOf(Op* op)
    {
        while (op->Offset != 0)
            op--;
        return (Block*)op - 1;
    }
}

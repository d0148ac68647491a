using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// How an instruction ends other than by going on to the next: an exception or an exit that is pending in the state, or the end of its block.
/// </summary>
/// <remarks>SAFETY: writes fields of the state and of its exit block, which lives as long as the state.</remarks>
internal static unsafe class Outcome
{
    /// <summary>Makes a software event pending. RIP is moved over the instruction when it is delivered.</summary>
    internal static OpResult RaiseSoftware(CpuState* c, byte vector, EventType type, int length)
    {
        Raise(c, vector);
        c->PendingType = (byte)type;
        c->PendingLength = (byte)length;
        return OpResult.Fault;
    }

    /// <summary>Leaves with <see cref="ExitReason.MemoryFailure"/>.</summary>
    internal static OpResult LeaveForMemory(CpuState* c, ulong host, AccessKind access)
    {
        c->Exit->Host = host;
        c->Exit->Access = access;
        return Leave(c, ExitReason.MemoryFailure);
    }

    /// <summary>Marks an exception pending. Handlers: <c>return Outcome.Raise(c, Vector.GP, 0);</c></summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static OpResult Raise(CpuState* c, byte vector, uint errorCode)
    {
        c->PendingVector = vector;
        c->PendingErrorCode = errorCode;
        c->PendingHasErrorCode = 1;
        c->PendingType = (byte)EventType.HardwareException;
        c->ExitPending = 0;
        return OpResult.Fault;
    }

    /// <summary>Marks an exception without error code pending.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static OpResult Raise(CpuState* c, byte vector)
    {
        Raise(c, vector, 0);
        c->PendingHasErrorCode = 0;
        return OpResult.Fault;
    }

    /// <summary>Marks a page fault pending; the loop writes CR2 when it delivers it.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static OpResult RaisePageFault(CpuState* c, ulong linear, uint errorCode)
    {
        c->PendingAddress = linear;
        return Raise(c, Vector.PF, errorCode);
    }

    /// <summary>Marks an exit pending. The caller fills <see cref="LogicalProcessor.Exit"/> fields besides the reason.</summary>
    internal static OpResult Leave(CpuState* c, ExitReason reason)
    {
        c->Exit->Reason = reason;
        c->ExitPending = 1;
        return OpResult.Fault;
    }

    /// <summary>Retires a handler that ends its block.</summary>
    internal static OpResult EndBlock(CpuState* c, Op* op)
    {
        c->Rip = Addressing.NextRip(c, op);
        return OpResult.EndBlock;
    }

    /// <summary>An iteration of a repeated instruction has ended, and others follow.</summary>
    internal static void RetireIteration(CpuState* c)
    {
        c->BetweenIterations = 1;
        c->InterruptShadow = 0;
        c->HostStepDone = c->HostSingleStep;
        DebugTraps.NoteStep(c, c->Rflags);
    }

    internal static void Retire(CpuState* c, int length)
    {
        c->BetweenIterations = 0;
        ulong rip = c->Rip + (ulong)length;
        c->Rip = CpuMode.WrapRip(c, rip);
        c->InterruptShadow = 0;
        c->InstructionsRetired++;
        c->HostStepDone = c->HostSingleStep;
        DebugTraps.NoteStep(c, c->Rflags);
        c->Rflags &= ~Rflags.RF;
    }
}

using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Registration of the integer instructions, and the ones about interrupts: CLI, STI, HLT, PAUSE.</summary>
/// <remarks>SAFETY: CLI, STI, HLT and PAUSE change single fields of the state; the rest registers others' handlers.</remarks>
internal static unsafe class IntegerHandlers
{
    internal static void Register()
    {
        AluHandlers.Register();
        MoveHandlers.Register();
        ShiftHandlers.Register();
        MulDivHandlers.Register();
        BitHandlers.Register();
        ExchangeHandlers.Register();
        StackHandlers.Register();
        FlowHandlers.Register();
        BcdHandlers.Register();
        MiscHandlers.Register();
        StringHandlers.Register();
        PortHandlers.Register();
        HandlerTable.Set(Code.Cli, &Cli, true);
        HandlerTable.Set(Code.Sti, &Sti, true);
        HandlerTable.Set(Code.Hlt, &Hlt, true);
        HandlerTable.Set(Code.Pause, &Pause, true);
    }

    private static OpResult Cli(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VirtualInterrupts.InterruptFlagOf(c, out ulong flag))
            return OpResult.Fault;
        c->Rflags &= ~flag;
        return Outcome.EndBlock(c, op);
    }

    private static OpResult Sti(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!VirtualInterrupts.InterruptFlagOf(c, out ulong flag))
            return OpResult.Fault;
        if (flag == Rflags.VIF && (c->Rflags & Rflags.VIP) != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        if (flag == Rflags.IF && (c->Rflags & Rflags.IF) == 0)
            c->InterruptShadow = 1;
        c->Rflags |= flag;
        return Outcome.EndBlock(c, op);
    }

    private static OpResult Hlt(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (c->Cpl != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        Outcome.Leave(c, ExitReason.Hlt);
        c->Rip = Addressing.NextRip(c, op);
        return OpResult.RetiredExit;
    }

    private static OpResult Pause(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rip = Addressing.NextRip(c, op);
        if (!p.Interpreter.SpinsTooLong(c))
            return OpResult.EndBlock;
        Outcome.Leave(c, ExitReason.Pause);
        return OpResult.RetiredExit;
    }
}

internal sealed unsafe partial class Interpreter
{
    /// <summary>PAUSEs that are farther apart than this many instructions belong to different loops.</summary>
    private const ulong PauseGap = 128;

    internal uint Pauses;
    private ulong _lastPause;

    /// <summary>Counts a PAUSE; true when the loop that it belongs to has reached <see cref="CpuState.PauseLoopWindow"/>.</summary>
    internal bool SpinsTooLong(CpuState* c)
    {
        if (c->PauseLoopWindow == 0)
            return false;
        Pauses = c->InstructionsRetired - _lastPause > PauseGap ? 1 : Pauses + 1;
        _lastPause = c->InstructionsRetired;
        if (Pauses < c->PauseLoopWindow)
            return false;
        Pauses = 0;
        return true;
    }
}

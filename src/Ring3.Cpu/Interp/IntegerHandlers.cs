using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Registration of the integer instructions, and the ones about interrupts: CLI, STI, HLT, PAUSE.</summary>
/// <remarks>SAFETY: works on the processor's own state.</remarks>
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

    /// <summary>
    /// CLI and STI change IF when CPL allows it; with CR4.PVI at CPL 3 or CR4.VME in virtual-8086 mode they change VIF instead.
    /// </summary>
    private static bool Allowed(LogicalProcessor p, CpuState* c, out bool isVirtual)
    {
        isVirtual = false;
        if (c->Cpl <= (c->Rflags & Rflags.IOPL) >> Rflags.IoplShift)
            return true;
        isVirtual = c->Cpl == 3 && ((c->Rflags & Rflags.VM) != 0 ? (c->Cr4 & Cr4.VME) != 0 : (c->Cr4 & Cr4.PVI) != 0);
        if (isVirtual)
            return true;
        p.Raise(c, Vector.GP, 0);
        return false;
    }

    private static OpResult Cli(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Allowed(p, c, out bool isVirtual))
            return OpResult.Fault;
        c->Rflags &= ~(isVirtual ? Rflags.VIF : Rflags.IF);
        return LogicalProcessor.EndBlock(c, op);
    }

    private static OpResult Sti(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Allowed(p, c, out bool isVirtual))
            return OpResult.Fault;
        if (isVirtual)
        {
            if ((c->Rflags & Rflags.VIP) != 0)
                return p.Raise(c, Vector.GP, 0);
            c->Rflags |= Rflags.VIF;
        }
        else
        {
            if ((c->Rflags & Rflags.IF) == 0)
                c->InterruptShadow = 1;
            c->Rflags |= Rflags.IF;
        }
        return LogicalProcessor.EndBlock(c, op);
    }

    private static OpResult Hlt(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (c->Cpl != 0)
            return p.Raise(c, Vector.GP, 0);
        p.LeaveWith(c, ExitReason.Hlt);
        c->Rip = LogicalProcessor.NextRip(c, op);
        return OpResult.RetiredExit;
    }

    private static OpResult Pause(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rip = LogicalProcessor.NextRip(c, op);
        if (!p.SpinsTooLong(c))
            return OpResult.EndBlock;
        p.LeaveWith(c, ExitReason.Pause);
        return OpResult.RetiredExit;
    }
}

public sealed unsafe partial class LogicalProcessor
{
    /// <summary>PAUSEs that are farther apart than this many instructions belong to different loops.</summary>
    private const ulong PauseGap = 128;

    private uint _pauses;
    private ulong _lastPause;

    /// <summary>Counts a PAUSE; true when the loop that it belongs to has reached <see cref="CpuState.PauseLoopWindow"/>.</summary>
    internal bool SpinsTooLong(CpuState* c)
    {
        if (c->PauseLoopWindow == 0)
            return false;
        _pauses = c->InstructionsRetired - _lastPause > PauseGap ? 1 : _pauses + 1;
        _lastPause = c->InstructionsRetired;
        if (_pauses < c->PauseLoopWindow)
            return false;
        _pauses = 0;
        return true;
    }
}

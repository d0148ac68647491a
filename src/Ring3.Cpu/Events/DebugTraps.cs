using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Debug traps: what an instruction has met and what its boundary delivers as one #DB. From its retirement to that delivery a trap is in <see cref="CpuState.PendingDebug"/>, where the owner finds it.
/// MOV SS keeps it there over the next instruction; a software interrupt takes it along to its handler's first instruction, any other event discards it.
/// SPEC: SDM volume 3, "Masking Exceptions and Interrupts When Switching Stacks", "Delivery of Pending Debug Exceptions after VM Entry".
/// </summary>
/// <remarks>SAFETY: pending traps are bits of one field of the state.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>The event at this instruction boundary that comes first: of <paramref name="waiting"/>, what the owner or the processor knows of, and the pending debug traps.</summary>
    public BoundaryEvents FirstEvent(BoundaryEvents waiting, EventBlocking blocking = 0)
    {
        CpuState* c = State;
        if (c->PendingDebug != 0)
            waiting |= (c->PendingDebug & Dr.Dr6BT) != 0 ? BoundaryEvents.TaskTrap : BoundaryEvents.DebugTrap;
        return waiting == 0 ? 0 : EventPriority.First(waiting, blocking | Blocking(c));
    }

    private EventBlocking Blocking(CpuState* c)
    {
        // Resume is what keeps an instruction breakpoint from hitting.
        EventBlocking b = (c->InterruptShadow & 2) == 0 ? 0 : Model.MovSsHidesBreakpoint ? EventBlocking.MovSs | EventBlocking.Resume : EventBlocking.MovSs;
        if ((c->InterruptShadow & 1) != 0)
            b |= EventBlocking.Sti;
        if (c->NmiBlocked != 0)
            b |= EventBlocking.NmiHandler;
        if ((c->Rflags & Rflags.IF) == 0)
            b |= EventBlocking.InterruptsOff;
        if (c->InSmm != 0)
            b |= EventBlocking.Smm;
        if ((c->Rflags & Rflags.RF) != 0 || c->BetweenIterations != 0)
            b |= EventBlocking.Resume;
        if (IsInstructionInProgress)
            b |= EventBlocking.MidInstruction;
        return b;
    }

    /// <summary>Whether an event of this kind leaves pending traps for its handler's first instruction.</summary>
    private static bool KeepsDebugTraps(in PendingEvent e) => e.Type is EventType.SoftwareInterrupt or EventType.SoftwareException;

    /// <summary>Whether DR6 bits can all come from traps: an instruction breakpoint is a fault.</summary>
    public bool AreTraps(ulong bits)
    {
        if (bits == 0 || (bits & ~(15 | Dr.Dr6BS | Dr.Dr6BT)) != 0)
            return false;
        for (int n = 0; n < 4; n++)
            if ((bits >> n & 1) != 0 && BreakpointType(State, n) == TypeExecute)
                return false;
        return true;
    }

    private static ulong TakeDebugTraps(CpuState* c)
    {
        ulong bits = c->PendingDebug;
        c->PendingDebug = 0;
        return bits;
    }

    /// <summary>An instruction that began with <paramref name="rflags"/> has retired, or one iteration of it.</summary>
    private static void NoteSingleStep(CpuState* c, ulong rflags)
    {
        if ((rflags & Rflags.TF) != 0)
            c->PendingDebug |= (ushort)Dr.Dr6BS;
    }

    /// <summary>Set by an instruction whose single-step trap follows the TF that it leaves, not the one that it found (SYSCALL, SYSRET).</summary>
    internal bool TrapDecided;

    /// <summary>SYSCALL or SYSRET has loaded RFLAGS: with TF the trap comes before the first instruction of the target.</summary>
    internal void DecideSingleStep(CpuState* c)
    {
        TrapDecided = true;
        NoteSingleStep(c, c->Rflags);
        UpdateStepMode(c);
    }
}

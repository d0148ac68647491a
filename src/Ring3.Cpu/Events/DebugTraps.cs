using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Debug traps: what an instruction has met and what its boundary delivers as one #DB. From its retirement to that delivery a trap is in <see
/// cref="CpuState.PendingDebug"/>, where the owner finds it.
/// MOV SS keeps it there over the next instruction; a software interrupt takes it along to its handler's first instruction, any other event discards it.
/// SPEC: SDM volume 3, "Masking Exceptions and Interrupts When Switching Stacks", "Delivery of Pending Debug Exceptions after VM Entry".
/// </summary>
/// <remarks>SAFETY: pending traps are bits of one field of the state.</remarks>
internal static unsafe class DebugTraps
{
    /// <summary>Whether an event of this kind leaves pending traps for its handler's first instruction.</summary>
    internal static bool KeepsDebugTraps(in PendingEvent e) => e.Type is EventType.SoftwareInterrupt or EventType.SoftwareException;

    /// <summary>Whether DR6 bits can all come from traps: an instruction breakpoint is a fault.</summary>
    public static bool AreTraps(CpuState* c, ulong bits)
    {
        if (bits == 0 || (bits & ~(15 | Dr.Dr6BS | Dr.Dr6BT)) != 0)
            return false;
        for (int n = 0; n < 4; n++)
            if ((bits >> n & 1) != 0 && Breakpoints.BreakpointType(c, n) == Breakpoints.TypeExecute)
                return false;
        return true;
    }

    internal static ulong Take(CpuState* c)
    {
        ulong bits = c->PendingDebug;
        c->PendingDebug = 0;
        return bits;
    }

    /// <summary>An instruction that began with <paramref name="rflags"/> has retired, or one iteration of it.</summary>
    internal static void NoteStep(CpuState* c, ulong rflags)
    {
        if ((rflags & Rflags.TF) != 0)
            c->PendingDebug |= (ushort)Dr.Dr6BS;
    }

    /// <summary>SYSCALL or SYSRET has loaded RFLAGS: with TF the trap comes before the first instruction of the target.</summary>
    internal static void DecideStep(CpuState* c)
    {
        c->TrapDecided = 1;
        NoteStep(c, c->Rflags);
        Breakpoints.UpdateStep(c);
    }
}

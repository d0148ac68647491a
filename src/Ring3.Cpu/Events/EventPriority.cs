using System.Numerics;

namespace Ring3.Cpu;

/// <summary>
/// Events that can wait for the same instruction boundary, the one that is taken first in the lowest bit. SPEC: SDM volume 3, "Priority Among Concurrent
/// Events".
/// </summary>
/// <remarks>
/// RESET and INIT are not here: they replace the state in which the others wait. Faults of fetching, decoding and executing come last, because they are met
/// only by the instruction that follows.
/// </remarks>
[Flags]
public enum BoundaryEvents : ushort
{
    None = 0,
    /// <summary>An event whose delivery an exit has interrupted: the processor is still inside it.</summary>
    Reinjection = 1 << 0,
    /// <summary>An exception of the instruction at RIP that the owner has found, or a machine check.</summary>
    Exception = 1 << 1,
    /// <summary>Trap on a switch to a task whose TSS has T set.</summary>
    TaskTrap = 1 << 2,
    /// <summary>System management interrupt.</summary>
    Smi = 1 << 3,
    /// <summary>Traps of the instruction that has retired: single step, data breakpoints.</summary>
    DebugTrap = 1 << 4,
    Nmi = 1 << 5,
    /// <summary>Maskable external interrupt.</summary>
    Interrupt = 1 << 6,
    /// <summary>Instruction breakpoint on the next instruction, a fault.</summary>
    CodeBreakpoint = 1 << 7,
}

/// <summary>Conditions that keep events waiting.</summary>
[Flags]
public enum EventBlocking : byte
{
    None = 0,
    /// <summary>An instruction has made an access that cannot be taken back and has not retired: there is no boundary yet.</summary>
    MidInstruction = 1 << 0,
    /// <summary>MOV SS or POP SS was the last instruction.</summary>
    MovSs = 1 << 1,
    /// <summary>STI was the last instruction and has set IF.</summary>
    Sti = 1 << 2,
    /// <summary>An NMI has been delivered and no IRET followed.</summary>
    NmiHandler = 1 << 3,
    /// <summary>RFLAGS.IF is clear.</summary>
    InterruptsOff = 1 << 4,
    /// <summary>In system management mode.</summary>
    Smm = 1 << 5,
    /// <summary>RFLAGS.RF is set, or the next instruction is a repeated one between two of its iterations.</summary>
    Resume = 1 << 6,
    /// <summary>The owner's user keeps asynchronous events out (KVM_GUESTDBG_BLOCKIRQ).</summary>
    Owner = 1 << 7,
}

/// <summary>The one place that decides which of several events comes first.</summary>
public static class EventPriority
{
    private const BoundaryEvents Asynchronous = BoundaryEvents.Smi | BoundaryEvents.Nmi | BoundaryEvents.Interrupt;

    /// <summary>What each bit of <see cref="EventBlocking"/> blocks, from bit 0 on.</summary>
    private static ReadOnlySpan<ushort> Blocks =>
    [
        (ushort)(BoundaryEvents.TaskTrap | BoundaryEvents.DebugTrap | BoundaryEvents.CodeBreakpoint | Asynchronous),
        (ushort)(BoundaryEvents.TaskTrap | BoundaryEvents.DebugTrap | BoundaryEvents.Nmi | BoundaryEvents.Interrupt),
        (ushort)(BoundaryEvents.Nmi | BoundaryEvents.Interrupt),
        (ushort)BoundaryEvents.Nmi,
        (ushort)BoundaryEvents.Interrupt,
        (ushort)BoundaryEvents.Smi,
        (ushort)BoundaryEvents.CodeBreakpoint,
        (ushort)Asynchronous,
    ];

    /// <summary>The first of the events that are not blocked, or None.</summary>
    public static BoundaryEvents First(BoundaryEvents waiting, EventBlocking blocking)
    {
        uint left = (uint)waiting;
        for (uint b = (uint)blocking; b != 0; b &= b - 1)
            left &= ~(uint)Blocks[BitOperations.TrailingZeroCount(b)];
        return (BoundaryEvents)(left & (0u - left));
    }
}

using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>INT n, INT3, INTO, INT1. In virtual-8086 mode INT n has rules of its own (VirtualInterrupts.cs).</summary>
/// <remarks>SAFETY: fills the three fields of the state that describe a pending event.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>
    /// The event at this instruction boundary that comes first: of <paramref name="waiting"/>, what the owner or the processor knows of, and the pending debug
    /// traps.
    /// </summary>
    public BoundaryEvents FirstEvent(BoundaryEvents waiting, EventBlocking blocking = 0)
    {
        CpuState* c = _state;
        if (c->PendingDebug != 0)
            waiting |= (c->PendingDebug & Dr.Dr6BT) != 0 ? BoundaryEvents.TaskTrap : BoundaryEvents.DebugTrap;
        return waiting == 0 ? 0 : EventPriority.First(waiting, blocking | Blocking(c));
    }

    private EventBlocking Blocking(CpuState* c)
    {
        // Resume is what keeps an instruction breakpoint from hitting.
        EventBlocking b = (c->InterruptShadow & 2) == 0 ? 0 : _identity.Model.MovSsHidesBreakpoint ? EventBlocking.MovSs | EventBlocking.Resume
            : EventBlocking.MovSs;
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

    /// <summary>POPF and IRET of 16 bits: VIF from the image's IF; IF and IOPL stay.</summary>
    internal void LoadVirtualFlags(CpuState* c, ulong image)
    {
        const ulong loaded = Rflags.Status | Rflags.TF | Rflags.DF | Rflags.NT;
        ulong kept = Flags.Get(c) & ~(loaded | Rflags.VIF | Rflags.RF);
        SetRflags(c, kept | (image & loaded) | ((image & Rflags.IF) != 0 ? Rflags.VIF : 0));
    }

    /// <summary>INT n in virtual-8086 mode. SPEC: SDM volume 3, "Software Interrupt Handling Methods While in Virtual-8086 Mode".</summary>
    internal OpResult SoftwareInterrupt8086(CpuState* c, byte vector, int length, ulong next)
    {
        if ((c->Cr4 & Cr4.VME) != 0)
        {
            if (!IsRedirected(c, vector, out bool toProgram))
                return OpResult.Fault;
            if (toProgram)
                return InterruptProgram8086(c, vector, next);
        }
        return VirtualInterrupts.BelowIopl3(c) ? Outcome.Raise(c, Vector.GP, 0) : Outcome.RaiseSoftware(c, vector, EventType.SoftwareInterrupt, length);
    }

    /// <summary>
    /// Reads the redirection bitmap, the 32 bytes below the TSS's I/O permission bitmap: a clear bit sends the interrupt to the 8086 program's own table.
    /// False: a fault is pending.
    /// </summary>
    private bool IsRedirected(CpuState* c, byte vector, out bool toProgram)
    {
        toProgram = false;
        if ((c->Tr.Access & 8) == 0 || c->Tr.Limit < 0x67)
        {
            Outcome.Raise(c, Vector.GP, 0);
            return false;
        }
        if (!_access.LoadSystem16(c, (uint)(c->Tr.Base + 0x66), out ushort map))
            return false;
        uint at = map - 32u + (uint)(vector >> 3);
        if (at > c->Tr.Limit)
        {
            Outcome.Raise(c, Vector.GP, 0);
            return false;
        }
        if (!_access.LoadSystem(c, (uint)(c->Tr.Base + at), 1, out ulong bits))
            return false;
        toProgram = (bits >> (vector & 7) & 1) == 0;
        return true;
    }

    /// <summary>Interrupts the program as in real-address mode, through the table at linear address 0.</summary>
    private OpResult InterruptProgram8086(CpuState* c, byte vector, ulong next)
    {
        bool isVirtual = VirtualInterrupts.BelowIopl3(c);
        if (!_access.LoadSystem32(c, (uint)vector * 4, out uint target))
            return OpResult.Fault;
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Push(_access, c, 2, isVirtual ? VirtualInterrupts.FlagsOf(c) : Flags.Get(c)) || !stack.Push(_access, c, 2, c->Cs.Selector)
            || !stack.Push(_access, c, 2, next))
            return OpResult.Fault;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)(target >> 16));
        c->Rip = (ushort)target;
        c->Rflags &= ~(Rflags.TF | Rflags.RF | (isVirtual ? Rflags.VIF : Rflags.IF));
        DebugTraps.DecideStep(c);
        return OpResult.EndBlock;
    }
}

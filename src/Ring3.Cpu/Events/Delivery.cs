using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>An exception or interrupt on its way to its handler.</summary>
internal struct PendingEvent
{
    public byte Vector;
    public EventType Type;
    public bool HasErrorCode;
    public uint ErrorCode;
    /// <summary>#PF: linear address. #DB: DR6 bits.</summary>
    public ulong Payload;
    /// <summary>Software events: added to RIP.</summary>
    public byte InstructionLength;

    public readonly bool IsSoftware => Type is EventType.SoftwareInterrupt or EventType.SoftwareException or EventType.PrivilegedSoftwareException;
}

/// <summary>
/// Delivery of exceptions and interrupts: priorities of faults inside faults, intercepts, and the common part of all modes. SPEC: SDM volume 3, "Interrupt and
/// Exception Handling".
/// </summary>
/// <remarks>SAFETY: vectors index tables by linear addresses, which are translated; what is pushed goes through a <see cref="StackCursor"/>.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>
    /// Delivers the exception that a handler left in CpuState.Pending*. RIP is at the instruction. True: the guest's handler is next. False: an exit is pending
    /// (intercept, nested fault, MMIO, triple fault) with IdtVectoring describing what was being delivered.
    /// </summary>
    internal bool DeliverPending(CpuState* c)
    {
        PendingEvent e = TakePending(c);
        return Deliver(c, e, true);
    }

    /// <summary>Delivers an external interrupt. The caller has checked that it is allowed now.</summary>
    internal bool DeliverInterrupt(CpuState* c, byte vector) => Deliver(c, new PendingEvent { Vector = vector, Type = EventType.External }, false);

    /// <summary>Delivers CpuState.Inject and invalidates it. CR2 and DR6 are the owner's business; an intercept does not apply.</summary>
    internal bool DeliverInjected(CpuState* c)
    {
        ref EventInjection i = ref c->Inject;
        PendingEvent e = new()
        {
            Vector = i.Vector, Type = i.Type, HasErrorCode = i.HasErrorCode != 0, ErrorCode = i.ErrorCode, InstructionLength = i.InstructionLength,
            Payload = i.Payload,
        };
        i.Valid = 0;
        return Deliver(c, e, false);
    }

    private static PendingEvent TakePending(CpuState* c)
    {
        PendingEvent e = new()
        {
            Vector = c->PendingVector, Type = (EventType)c->PendingType, HasErrorCode = c->PendingHasErrorCode != 0, ErrorCode = (uint)c->PendingErrorCode,
            Payload = c->PendingVector is Vector.PF or Vector.DB ? c->PendingAddress : 0,
            InstructionLength = c->PendingLength,
        };
        c->PendingLength = 0;
        c->PendingNonCanonical = 0;
        c->PendingAddress = 0;
        return e;
    }

    private bool Deliver(CpuState* c, PendingEvent e, bool interceptable)
    {
        EventObserver?.Invoke(new DeliveredEvent(e.Vector, e.Type, c->Rip, e.HasErrorCode, e.ErrorCode, e.Payload));
        bool nested = false;
        int depth = 0;
        PendingEvent original = default;
        c->Exit->IdtVectoring.Valid = 0;
        for (; ; )
        {
            if (!DebugTraps.KeepsDebugTraps(e))
                c->PendingDebug = 0;
            if (interceptable && (Intercepted(c, e) || (!nested && InterceptsReservedFault(c, e))))
            {
                LeaveWithException(c, e);
                if (nested)
                    ReportVectoring(original);
                return false;
            }
            if (interceptable)
                ApplyPayload(c, e);
            if (++depth > LongestChain && LeavesChain(c))
            {
                ReportVectoring(e);
                return false;
            }
            _externalEvent = e.IsSoftware && e.Type != EventType.PrivilegedSoftwareException ? 0u : 1u;
            c->ExitPending = 0;
            _switched = false;
            bool delivered = DeliverGuarded(c, e);
            _externalEvent = 0;
            if (delivered)
            {
                EventDelivered(c, e);
                _chainSince = 0;
                return true;
            }
            if (c->ExitPending != 0)
            {
                if (_switched)
                    EventDelivered(c, e);
                else if (c->Exit->Reason is not (ExitReason.Shutdown or ExitReason.Exception))
                    ReportVectoring(e);
                return false;
            }
            original = e;
            nested = true;
            interceptable = true;
            if (!Escalate(c, ref e))
                return false;
        }
    }

    /// <summary>Combines a fault with the event during whose delivery it happened. False: triple fault.</summary>
    private bool Escalate(CpuState* c, ref PendingEvent e)
    {
        PendingEvent second = TakePending(c);
        FaultClass a = ClassOf(e), b = ClassOf(second);
        if (a == FaultClass.DoubleFault && b != FaultClass.Benign)
        {
            Outcome.Leave(c, ExitReason.Shutdown);
            return false;
        }
        bool doubleFault = (a == FaultClass.Contributory && b == FaultClass.Contributory)
            || (a == FaultClass.PageFault && b is FaultClass.PageFault or FaultClass.Contributory);
        if (a == FaultClass.PageFault && b == FaultClass.Benign)
            doubleFault = false;
        e = doubleFault ? new PendingEvent { Vector = Vector.DF, Type = EventType.HardwareException, HasErrorCode = true } : second;
        if (doubleFault && second.Vector == Vector.PF)
            c->Cr2 = second.Payload;
        return true;
    }

    private enum FaultClass { Benign, Contributory, PageFault, DoubleFault }

    private static FaultClass ClassOf(in PendingEvent e) => e.Type != EventType.HardwareException ? FaultClass.Benign : e.Vector switch
    {
        Vector.DE or Vector.TS or Vector.NP or Vector.SS or Vector.GP => FaultClass.Contributory,
        Vector.PF => FaultClass.PageFault,
        Vector.DF => FaultClass.DoubleFault,
        _ => FaultClass.Benign,
    };

    private static bool Intercepted(CpuState* c, in PendingEvent e) =>
        e.Vector < 32 && e.Type is EventType.HardwareException or EventType.SoftwareException or EventType.PrivilegedSoftwareException
            && (c->ExceptionIntercepts >> e.Vector & 1) != 0;

    private static bool InterceptsReservedFault(CpuState* c, in PendingEvent e) =>
        c->InterceptReservedFaults != 0 && e.Vector == Vector.PF && e.Type == EventType.HardwareException && (e.ErrorCode & (uint)PageFaultError.RSVD) != 0;

    private void LeaveWithException(CpuState* c, in PendingEvent e)
    {
        c->Exit->Vector = e.Vector;
        c->Exit->HasErrorCode = e.HasErrorCode ? (byte)1 : (byte)0;
        c->Exit->ErrorCode = e.ErrorCode;
        c->Exit->Payload = e.Payload;
        c->Exit->InstructionLength = e.InstructionLength;
        c->Exit->IdtVectoring.Valid = 0;
        _access.Replay.Retire();
        Outcome.Leave(c, ExitReason.Exception);
    }

    private void ReportVectoring(in PendingEvent e) => _state->Exit->IdtVectoring = new EventInjection
    {
        Valid = 1, Vector = e.Vector, Type = e.Type, HasErrorCode = e.HasErrorCode ? (byte)1 : (byte)0,
        ErrorCode = e.ErrorCode, InstructionLength = e.InstructionLength, Payload = e.Payload,
    };

    private void ApplyPayload(CpuState* c, in PendingEvent e)
    {
        if (e.Type != EventType.HardwareException)
            return;
        if (e.Vector == Vector.PF)
            c->Cr2 = e.Payload;
        else if (e.Vector == Vector.DB)
        {
            c->Dr6 = (c->Dr6 & ~0xfUL) | e.Payload | Dr.Dr6Fixed1;
            if ((c->Dr7 & Dr.Dr7GD) != 0)
                c->Dr7 &= ~Dr.Dr7GD;
        }
    }

    private void EventDelivered(CpuState* c, in PendingEvent e)
    {
        c->InterruptShadow = 0;
        c->Halted = 0;
        c->BetweenIterations = 0;
        if (e.Type == EventType.Nmi)
            c->NmiBlocked = 1;
        _access.Replay.Retire();
        Breakpoints.UpdateStep(c);
        ModeChanged(c);
    }

    private bool DeliverOnce(CpuState* c, in PendingEvent e)
    {
        if ((c->Cr0 & Cr0.PE) == 0)
            return DeliverReal(c, e);
        return CpuMode.LongMode(c) ? DeliverLong(c, e) : DeliverProtected(c, e);
    }

    /// <summary>RIP that the frame saves: the instruction, or for software events the one after it.</summary>
    private static ulong ReturnRip(CpuState* c, in PendingEvent e) => e.IsSoftware ? CpuMode.WrapRip(c, c->Rip + e.InstructionLength) : c->Rip;

    /// <summary>
    /// RFLAGS image of the frame: RF is set for faults and between iterations, so that an instruction breakpoint does not trigger again on return.
    /// </summary>
    private static ulong FlagsImage(CpuState* c, in PendingEvent e)
    {
        ulong flags = Flags.Get(c);
        bool fault = e.Type == EventType.HardwareException && e.Vector is not (Vector.DB or Vector.DF or Vector.MC);
        if (e.Type == EventType.HardwareException && e.Vector == Vector.DB && (e.Payload & Dr.Dr6BD) != 0)
            fault = true;
        return fault || c->BetweenIterations != 0 ? flags | Rflags.RF : flags;
    }

    /// <summary>Error code of a fault about an IDT entry. EXT follows the event being delivered.</summary>
    private bool IdtFault(CpuState* c, byte vector, byte entry)
    {
        Outcome.Raise(c, vector, (uint)entry << 3 | 2 | _externalEvent);
        return false;
    }

    private bool DeliverReal(CpuState* c, in PendingEvent e)
    {
        uint entry = (uint)e.Vector * 4;
        if (entry + 3 > c->Idtr.Limit)
            return IdtFault(c, Vector.GP, e.Vector);
        if (!_access.LoadSystem32(c, (uint)(c->Idtr.Base + entry), out uint target))
            return false;
        StackCursor stack = StackCursor.Current(c);
        if (!stack.Push(_access, c, 2, FlagsImage(c, e)) || !stack.Push(_access, c, 2, c->Cs.Selector) || !stack.Push(_access, c, 2, ReturnRip(c, e)))
            return false;
        CommitStack(c, stack);
        LoadRealSegment(c, SegmentIndex.CS, (ushort)(target >> 16));
        c->Rip = (ushort)target;
        Flags.Set(c, Flags.Get(c) & ~(Rflags.IF | Rflags.TF | Rflags.AC | Rflags.RF));
        return true;
    }
}

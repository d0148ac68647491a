using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Irqchip;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>
/// Exceptions, interrupts and NMIs on their way into the guest: what the next entry injects, what waits behind it, and what came back undelivered. An event is
/// in one place at a time: at its source, queued or pending here, in the processor's Inject, or here again as injected.
/// </summary>
internal sealed partial class VcpuEvents(VcpuCore core, InterruptInbox inbox, SystemManagement smm, VcpuApic apic, XenPort xen) : VcpuPart(core)
{
    /// <summary>
    /// An event taken from its source, to be injected (again) before anything else: an interrupted delivery, or an entry that did not happen.
    /// </summary>
    private EventInjection _injected;
    /// <summary>An exception that waits for the next entry; unlike an injected one its side effects (CR2, DR6) are still to come.</summary>
    private EventInjection _pendingException;
    /// <summary>NMIs taken from the inbox: at most two.</summary>
    private int _nmiPending;
    /// <summary>Vector that the client has given and the guest has not been able to take; -1: none.</summary>
    private int _externalInterrupt = -1;

    /// <summary>Interrupts come from the kernel's controllers. They are made before the first vCPU, or never.</summary>
    private readonly bool _hasChip = core.Vm.Irqchip is { Split: false };

    /// <summary>Injection has to be evaluated before the next entry.</summary>
    public bool IsDirty { get => _core.Work.Events; set => _core.Work.Events = value; }

    /// <summary>The next entry delivers an event and leaves again, because another event waits for the boundary behind it.</summary>
    private bool LeavesAtOnce { get => _core.Work.LeaveAtOnce; set => _core.Work.LeaveAtOnce = value; }

    /// <summary>The client single-steps without interrupts (KVM_GUESTDBG_BLOCKIRQ).</summary>
    public bool AreBlockedByClient { get; set; }

    // ---- What is there ----

    public bool HasPendingException => _pendingException.Valid != 0;

    /// <summary>The last exit came out of the delivery of an event, which is to be injected again.</summary>
    public bool DeliveryFailed => _deliveryFailed && _injected.Valid != 0;

    /// <summary>The event that is to be injected (again).</summary>
    public ref readonly EventInjection Injected => ref _injected;

    public bool HasInterrupt(bool mayWait = true) =>
        _externalInterrupt >= 0 || xen.HasInterrupt(mayWait) || Lapic is not null && Vm.Irqchip!.HasInterrupt(Lapic);

    /// <summary>KVM: the guest is at an instruction boundary where nothing else comes first, so that the client may give it an interrupt.</summary>
    public unsafe bool IsReadyForInjection() =>
        (_s->Rflags & Rflags.IF) != 0 && _s->InterruptShadow == 0 && (_injected.Valid | _pendingException.Valid) == 0 && _s->PendingDebug == 0
        && _externalInterrupt < 0;

    /// <summary>kvm_run.ready_for_interrupt_injection.</summary>
    public bool IsReadyForClient => _hasChip || IsReadyForInjection();

    /// <summary>A halted vCPU has an event to take.</summary>
    public unsafe bool EndsHalt => _injected.Valid != 0 || _pendingException.Valid != 0 || _s->PendingDebug != 0
        || !smm.IsActive && (smm.IsPending || Requests.Test(VcpuRequest.Smi))
        || (inbox.HasNmi || _nmiPending != 0) && _s->NmiBlocked == 0
        || (_s->Rflags & Rflags.IF) != 0 && HasInterrupt(mayWait: false);

    private static bool IsException(in EventInjection e) =>
        e.Valid != 0 && e.Type is EventType.HardwareException or EventType.SoftwareException or EventType.PrivilegedSoftwareException;

    // ---- What comes ----

    /// <summary>
    /// KVM_INTERRUPT: queues an external interrupt of a client that has the interrupt controllers; without a local APIC here it takes the place of one that is
    /// queued. 0, -EINVAL, -ENXIO with an in-kernel irqchip, -EEXIST when a split one still has the last.
    /// </summary>
    public int Interrupt(uint vector)
    {
        if (vector >= 256)
            return -Errno.EINVAL;
        if (_hasChip)
            return -Errno.ENXIO;
        if (_externalInterrupt >= 0 && Lapic is not null)
            return -Errno.EEXIST;
        if (Lapic is null)
            QueueInterrupt((byte)vector);
        else
            _externalInterrupt = (int)vector;
        Requests.MakeSelf(VcpuRequest.Event);
        return 0;
    }

    /// <summary>Queues a fault for the instruction at RIP.</summary>
    public void Queue(byte vector, bool hasErrorCode = false, uint errorCode = 0)
    {
        byte has = hasErrorCode ? (byte)1 : (byte)0;
        _pendingException = new() { Valid = 1, Type = EventType.HardwareException, Vector = vector, HasErrorCode = has, ErrorCode = errorCode };
        IsDirty = true;
    }

    /// <summary>#GP(0) for the instruction at RIP.</summary>
    public void QueueGeneralProtection() => Queue(Vector.GP, true);

    /// <summary>Gives the guest the breakpoint that the client took from it: an INT3 of one byte, whose frame points behind it.</summary>
    public void QueueBreakpoint()
    {
        _pendingException = new() { Valid = 1, Type = EventType.SoftwareException, Vector = Vector.BP, InstructionLength = 1 };
        IsDirty = true;
    }

    /// <summary>The debug traps that the processor has ready become an exception, whose side effects are still to come.</summary>
    private void QueueTraps() =>
        _pendingException = new() { Valid = 1, Type = EventType.HardwareException, Vector = Vector.DB, HasPayload = 1, Payload = Cpu.TakePendingDebug() };

    /// <summary>A fault that the processor has left the guest with goes to the guest after all.</summary>
    public void Return(byte vector, byte hasErrorCode, uint errorCode)
    {
        _injected = new() { Valid = 1, Type = EventType.HardwareException, Vector = vector, HasErrorCode = hasErrorCode, ErrorCode = errorCode };
        IsDirty = true;
    }

    /// <summary>
    /// KVM: another exception takes the place of one whose delivery has begun, whose instruction will raise it again; a double fault becomes the end.
    /// </summary>
    public void ReplaceInjectedException()
    {
        if (!IsException(_injected))
            return;
        if (_injected.Vector == Vector.DF)
            Requests.MakeSelf(VcpuRequest.TripleFault);
        _injected = default;
    }

    public void DropPendingException() => _pendingException = default;

    /// <summary>INIT: nothing of what was there reaches the guest.</summary>
    public void Reset() => (_injected, _pendingException, _nmiPending) = (default, default, 0);

    // ---- Before an entry ----

    /// <summary>At most two NMIs are remembered, one while one is being handled, as on hardware.</summary>
    private unsafe void CollectNmis()
    {
        int limit = _s->NmiBlocked != 0 || _injected.Valid != 0 && _injected.Type == EventType.Nmi ? 1 : 2;
        _nmiPending = Math.Min(_nmiPending + inbox.TakeNmis(), limit);
    }

    /// <summary>Chooses what the next entry injects, by <see cref="EventPriority"/>, and asks for a window for what cannot be injected yet.</summary>
    public unsafe void Prepare()
    {
        CpuState* c = _s;
        IsDirty = false;
        LeavesAtOnce = false;
        c->RequestInterruptWindow = 0;
        c->RequestNmiWindow = 0;
        CollectNmis();
        switch (Cpu.FirstEvent(WaitingEvents(), AreBlockedByClient ? EventBlocking.Owner : 0))
        {
            case BoundaryEvents.Reinjection:
                c->Inject = _injected;
                _injected = default;
                LeavesAtOnce = _pendingException.Valid != 0;
                break;
            case BoundaryEvents.Exception:
                InjectPendingException();
                break;
            case BoundaryEvents.Smi:
                smm.Enter();
                IsDirty = true;
                break;
            case BoundaryEvents.Nmi:
                _nmiPending--;
                Stats.nmi_injections++;
                c->Inject = new() { Valid = 1, Type = EventType.Nmi, Vector = Vector.NMI };
                break;
            case BoundaryEvents.Interrupt:
                InjectInterrupt();
                break;
            case BoundaryEvents.TaskTrap when smm.IsPending && (c->ExceptionIntercepts >> Vector.DB & 1) == 0:
                // The processor delivers debug traps itself, but it does not come back for an SMI.
                QueueTraps();
                InjectPendingException();
                break;
        }
        if (AreBlockedByClient)
            return;
        if (smm.IsPending && !smm.IsActive)
        {
            LeavesAtOnce |= c->Inject.Valid != 0;
            if (Cpu.IsInstructionInProgress)
            {
                // The boundary is behind the instruction: a request makes the vCPU stop there. Where it is going to anyway, one would only keep it out.
                if (c->FinishInstruction == 0)
                    Requests.MakeSelf(VcpuRequest.Event);
                IsDirty = true;
            }
        }
        if (_nmiPending > 0)
            c->RequestNmiWindow = 1;
        if (HasInterrupt() || KvmRun->request_interrupt_window != 0)
            c->RequestInterruptWindow = 1;
    }

    private BoundaryEvents WaitingEvents() =>
        (_injected.Valid != 0 ? BoundaryEvents.Reinjection : 0)
        | (_pendingException.Valid != 0 ? BoundaryEvents.Exception : 0)
        | (smm.IsPending ? BoundaryEvents.Smi : 0)
        | (_nmiPending > 0 ? BoundaryEvents.Nmi : 0)
        | (HasInterrupt() ? BoundaryEvents.Interrupt : 0);

    /// <summary>After the mode says that the vCPU is in the guest: it delivers the injected event and comes back.</summary>
    public unsafe void LeaveAtOnce()
    {
        IsDirty = true;
        Volatile.Write(ref _s->ExitRequest, 1);
    }

    private unsafe void InjectInterrupt()
    {
        int vector = _externalInterrupt;
        if (vector >= 0)
            _externalInterrupt = -1;
        else if (xen.HasInterrupt(mayWait: true))
            vector = Vm.Xen.Side.UpcallVector;
        else
            vector = Vm.Irqchip!.AckInterrupt(Lapic!);
        if (vector < 0)
            return;
        Stats.irq_injections++;
        _s->Inject = new() { Valid = 1, Type = EventType.External, Vector = (byte)vector };
        apic.SyncCr8();
    }

    /// <summary>A pending exception is about to reach the guest: now its side effects happen.</summary>
    private unsafe void InjectPendingException()
    {
        EventInjection x = _pendingException;
        _pendingException = default;
        ApplyPayload(x);
        if (x.Vector == Vector.DB && (_s->Dr7 & Dr.Dr7GD) != 0)
        {
            _s->Dr7 &= ~Dr.Dr7GD;
            Cpu.RecomputeMode();
        }
        x.HasPayload = 0;
        _s->Inject = x;
    }

    /// <summary>CR2 of a page fault, DR6 bits of a debug exception, if the event still carries them.</summary>
    private unsafe void ApplyPayload(in EventInjection x)
    {
        if (x.HasPayload == 0)
            return;
        if (x.Vector == Vector.PF)
            _s->Cr2 = x.Payload;
        else if (x.Vector == Vector.DB)
            _s->Dr6 = _s->Dr6 & ~15UL | x.Payload & ProcessorMode.Dr6Writable | Dr.Dr6Fixed1;
    }

    // ---- After an entry, or instead of it ----

    /// <summary>The entry did not happen: what was to be injected waits for the next one.</summary>
    public unsafe void CancelInjection()
    {
        if (_s->Inject.Valid == 0)
            return;
        _injected = _s->Inject;
        _s->Inject = default;
        IsDirty = true;
    }

    /// <summary>The last exit with an event to inject again came out of that event's delivery, not before it.</summary>
    private bool _deliveryFailed;

    /// <summary>An exit came before the injected event was delivered, or during a delivery: it is injected again.</summary>
    public unsafe void KeepInjection()
    {
        if (_s->Inject.Valid != 0)
            CancelInjection();
        _deliveryFailed = _exit->IdtVectoring.Valid != 0;
        if (!_deliveryFailed)
            return;
        _injected = _exit->IdtVectoring;
        _exit->IdtVectoring = default;
        if (_injected.Type == EventType.Nmi)
            _s->NmiBlocked = 0;
        IsDirty = true;
    }

    /// <summary>The guest can take an interrupt, perhaps one of the client's.</summary>
    public unsafe int HandleInterruptWindow()
    {
        IsDirty = true;
        if (KvmRun->request_interrupt_window == 0 || HasInterrupt() || !IsReadyForInjection())
            return RunStep.KeepRunning;
        KvmRun->exit_reason = KvmApi.KVM_EXIT_IRQ_WINDOW_OPEN;
        return RunStep.ToClient;
    }
}

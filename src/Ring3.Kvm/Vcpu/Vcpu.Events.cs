using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Irqchip;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Interrupts, NMIs, INIT and SIPI: what other threads queue, and what the next entry injects.
public sealed unsafe partial class Vcpu : IVcpuInterruptSink
{
    /// <summary>An event taken from its source, to be injected (again) before anything else: an interrupted delivery, or an entry that did not happen.</summary>
    private EventInjection _injected;
    /// <summary>An exception that the client wants delivered; unlike an injected one its side effects (CR2, DR6) are still to come.</summary>
    private EventInjection _pendingException;
    /// <summary>Injection has to be evaluated before the next entry.</summary>
    private bool _eventsDirty = true;
    private int _nmiQueued, _nmiPending;
    /// <summary>The next entry delivers an event and leaves again, because another event waits for the boundary behind it.</summary>
    private bool _leaveAtOnce;
    private int _initPending, _sipiVector = -1;
    private byte _eoiVector;

    // ---- From any thread ----

    void IVcpuInterruptSink.InterruptPending() => Requests.Make(VcpuRequest.Event);
    void IVcpuInterruptSink.RaiseNmi() => InjectNmi();
    uint IVcpuInterruptSink.GuestTscKhz => _tsc.Khz;

    void IVcpuInterruptSink.RaiseInit()
    {
        // INIT discards a SIPI that has not been taken.
        Interlocked.Exchange(ref _sipiVector, -1);
        Interlocked.Exchange(ref _initPending, 1);
        Requests.Make(VcpuRequest.Event);
    }

    void IVcpuInterruptSink.RaiseSipi(byte vector)
    {
        Interlocked.Exchange(ref _sipiVector, vector);
        Requests.Make(VcpuRequest.Event);
    }

    void IVcpuInterruptSink.IoapicEoi(byte vector)
    {
        _eoiVector = vector;
        Requests.MakeSelf(VcpuRequest.IoapicEoiExit);
    }

    /// <summary>KVM_NMI: queues a non-maskable interrupt. Any thread.</summary>
    public void InjectNmi()
    {
        Interlocked.Increment(ref _nmiQueued);
        Requests.Make(VcpuRequest.Nmi);
    }


    /// <summary>
    /// KVM_INTERRUPT: queues an external interrupt of a client that has the interrupt controllers; without a local APIC here it takes the place of one that is queued.
    /// 0, -EINVAL, -ENXIO with an in-kernel irqchip, -EEXIST when a split one still has the last.
    /// </summary>
    public int Interrupt(uint vector)
    {
        if (vector >= 256)
            return -Errno.EINVAL;
        if (Vm.Irqchip is { Split: false })
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

    /// <summary>Vector that the client has given and the guest has not been able to take; -1: none.</summary>
    private int _externalInterrupt = -1;

    // ---- On the vCPU's thread ----

    /// <summary>INIT, then SIPI, in the order in which a processor takes them. In system management mode INIT waits for RSM and SIPI is lost.</summary>
    private void AcceptInitAndSipi()
    {
        if (Volatile.Read(ref _initPending) == 0 && Volatile.Read(ref _sipiVector) < 0)
            return;
        if (InSmm)
        {
            Interlocked.Exchange(ref _sipiVector, -1);
            return;
        }
        if (Interlocked.Exchange(ref _initPending, 0) != 0)
        {
            ResetForInit();
            _mpState = IsBootProcessor ? MpState.Runnable : MpState.InitReceived;
        }
        int vector = Interlocked.Exchange(ref _sipiVector, -1);
        if (vector < 0 || _mpState != MpState.InitReceived)
            return;
        _s->Cs.Selector = (ushort)(vector << 8);
        _s->Cs.Base = (ulong)vector << 12;
        _s->Rip = 0;
        Cpu.RecomputeMode();
        _mpState = MpState.Runnable;
    }

    private void ResetForInit()
    {
        Cpu.Reset(true);
        Lapic?.Reset(init: true);
        (_injected, _pendingException, _nmiPending) = (default, default, 0);
        _smiPending = false;
        Volatile.Write(ref _nmiQueued, 0);
        _apic.SyncCr8();
        ApplyDebugRegisters();
        Requests.MakeSelf(VcpuRequest.Event);
    }

    /// <summary>At most two NMIs are remembered, one while one is being handled, as on hardware.</summary>
    private void CollectNmis()
    {
        int limit = _s->NmiBlocked != 0 || _injected.Valid != 0 && _injected.Type == EventType.Nmi ? 1 : 2;
        _nmiPending = Math.Min(_nmiPending + Interlocked.Exchange(ref _nmiQueued, 0), limit);
    }

    private bool HasInterrupt(bool mayWait = true) => _externalInterrupt >= 0 || _xen.HasInterrupt(mayWait) || Lapic is not null && Vm.Irqchip!.HasInterrupt(Lapic);

    /// <summary>KVM: the guest is at an instruction boundary where nothing else comes first, so that the client may give it an interrupt.</summary>
    private bool IsReadyForInjection() =>
        (_s->Rflags & Rflags.IF) != 0 && _s->InterruptShadow == 0 && (_injected.Valid | _pendingException.Valid) == 0 && _s->PendingDebug == 0 && _externalInterrupt < 0;

    private static bool IsException(in EventInjection e) => e.Valid != 0 && e.Type is EventType.HardwareException or EventType.SoftwareException or EventType.PrivilegedSoftwareException;

    /// <summary>Chooses what the next entry injects, by <see cref="EventPriority"/>, and asks for a window for what cannot be injected yet.</summary>
    private void PrepareEvents()
    {
        CpuState* c = _s;
        _eventsDirty = false;
        _leaveAtOnce = false;
        c->RequestInterruptWindow = 0;
        c->RequestNmiWindow = 0;
        CollectNmis();
        switch (Cpu.FirstEvent(WaitingEvents(), ClientBlocksInterrupts ? EventBlocking.Owner : 0))
        {
            case BoundaryEvents.Reinjection:
                c->Inject = _injected;
                _injected = default;
                _leaveAtOnce = _pendingException.Valid != 0;
                break;
            case BoundaryEvents.Exception:
                InjectPendingException();
                break;
            case BoundaryEvents.Smi:
                EnterSmm();
                break;
            case BoundaryEvents.Nmi:
                _nmiPending--;
                Stats.nmi_injections++;
                c->Inject = new() { Valid = 1, Type = EventType.Nmi, Vector = Vector.NMI };
                break;
            case BoundaryEvents.Interrupt:
                InjectInterrupt();
                break;
            case BoundaryEvents.TaskTrap when _smiPending && (c->ExceptionIntercepts >> Vector.DB & 1) == 0:
                // The processor delivers debug traps itself, but it does not come back for an SMI.
                _pendingException = new() { Valid = 1, Type = EventType.HardwareException, Vector = Vector.DB, HasPayload = 1, Payload = Cpu.TakePendingDebug() };
                InjectPendingException();
                break;
        }
        if (ClientBlocksInterrupts)
            return;
        if (_smiPending && !InSmm)
        {
            _leaveAtOnce |= c->Inject.Valid != 0;
            // The boundary is behind the instruction in progress: a request makes the vCPU stop there.
            if (Cpu.IsInstructionInProgress)
                Requests.MakeSelf(VcpuRequest.Event);
        }
        if (_nmiPending > 0)
            c->RequestNmiWindow = 1;
        if (HasInterrupt() || KvmRun->request_interrupt_window != 0)
            c->RequestInterruptWindow = 1;
    }

    private BoundaryEvents WaitingEvents() =>
        (_injected.Valid != 0 ? BoundaryEvents.Reinjection : 0)
        | (_pendingException.Valid != 0 ? BoundaryEvents.Exception : 0)
        | (_smiPending ? BoundaryEvents.Smi : 0)
        | (_nmiPending > 0 ? BoundaryEvents.Nmi : 0)
        | (HasInterrupt() ? BoundaryEvents.Interrupt : 0);

    /// <summary>After the mode says that the vCPU is in the guest: it delivers the injected event and comes back.</summary>
    private void LeaveAtOnce()
    {
        _eventsDirty = true;
        Volatile.Write(ref _s->ExitRequest, 1);
    }

    private void InjectInterrupt()
    {
        int vector = _externalInterrupt;
        if (vector >= 0)
            _externalInterrupt = -1;
        else if (_xen.HasInterrupt(mayWait: true))
            vector = Vm.Xen.UpcallVector;
        else
            vector = Vm.Irqchip!.AckInterrupt(Lapic!);
        if (vector < 0)
            return;
        Stats.irq_injections++;
        _s->Inject = new() { Valid = 1, Type = EventType.External, Vector = (byte)vector };
        _apic.SyncCr8();
    }

    /// <summary>A pending exception is about to reach the guest: now its side effects happen.</summary>
    private void InjectPendingException()
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
    private void ApplyPayload(in EventInjection x)
    {
        if (x.HasPayload == 0)
            return;
        if (x.Vector == Vector.PF)
            _s->Cr2 = x.Payload;
        else if (x.Vector == Vector.DB)
            _s->Dr6 = _s->Dr6 & ~15UL | x.Payload & Dr6Writable | Dr.Dr6Fixed1;
    }

    /// <summary>Queues a fault for the instruction at RIP.</summary>
    private void QueueException(byte vector, bool hasErrorCode = false, uint errorCode = 0)
    {
        _pendingException = new() { Valid = 1, Type = EventType.HardwareException, Vector = vector, HasErrorCode = hasErrorCode ? (byte)1 : (byte)0, ErrorCode = errorCode };
        _eventsDirty = true;
    }

    /// <summary>The entry did not happen: what was to be injected waits for the next one.</summary>
    private void CancelInjection()
    {
        if (_s->Inject.Valid == 0)
            return;
        _injected = _s->Inject;
        _s->Inject = default;
        _eventsDirty = true;
    }

    /// <summary>The last exit with an event to inject again came out of that event's delivery, not before it.</summary>
    private bool _deliveryFailed;

    /// <summary>An exit came before the injected event was delivered, or during a delivery: it is injected again.</summary>
    private void KeepInjection()
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
        _eventsDirty = true;
    }

    private int HandleInterruptWindow()
    {
        if (KvmRun->request_interrupt_window == 0 || HasInterrupt() || !IsReadyForInjection())
            return KeepRunning;
        KvmRun->exit_reason = KvmApi.KVM_EXIT_IRQ_WINDOW_OPEN;
        return ToClient;
    }
}

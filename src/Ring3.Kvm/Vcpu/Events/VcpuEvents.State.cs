using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, the processor state, and the event structures of callers outlive the call.
namespace Ring3.Kvm;

// Events as the client has them: KVM_GET/SET_VCPU_EVENTS, and the interrupt of KVM_GET/SET_SREGS.
internal sealed partial class VcpuEvents
{
    /// <summary>KVM_GET_VCPU_EVENTS.</summary>
    public unsafe void Get(out kvm_vcpu_events events)
    {
        CollectNmis();
        smm.Collect();
        kvm_vcpu_events e = new() { flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM };
        SaveException(ref e);
        if (_injected.Valid != 0 && _injected.Type == EventType.SoftwareInterrupt)
            (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, _injected.Vector, 1);
        else if (QueuedInterrupt is var vector && vector >= 0)
            (e.interrupt.injected, e.interrupt.nr) = (1, (byte)vector);
        e.interrupt.shadow = ProcessorMode.KvmShadow(_s);
        e.nmi.injected = _injected.Valid != 0 && _injected.Type == EventType.Nmi ? (byte)1 : (byte)0;
        e.nmi.pending = (byte)_nmiPending;
        e.nmi.masked = _s->NmiBlocked;
        e.smi.smm = _s->InSmm;
        e.smi.pending = smm.IsPending ? (byte)1 : (byte)0;
        e.smi.smm_inside_nmi = smm.IsInsideNmi ? (byte)1 : (byte)0;
        e.smi.latched_init = Lapic is not null && inbox.HasInit ? (byte)1 : (byte)0;
        if (Vm.Settings.TripleFaultEvents)
        {
            e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            e.triple_fault.pending = Requests.Test(VcpuRequest.TripleFault) ? (byte)1 : (byte)0;
        }
        events = e;
    }

    /// <summary>Vector of the external interrupt that was taken from its source, or given by the client, and is still to be delivered; -1: none.</summary>
    public int QueuedInterrupt => _injected.Valid != 0 && _injected.Type == EventType.External ? _injected.Vector : Lapic is null ? _externalInterrupt : -1;

    /// <summary>
    /// Takes the place of what <see cref="QueuedInterrupt"/> tells. Without a local APIC here it waits until the guest can take it, as after KVM_INTERRUPT.
    /// </summary>
    public void QueueInterrupt(byte vector)
    {
        if (_injected.Type == EventType.External)
            _injected = default;
        if (Lapic is null)
            _externalInterrupt = vector;
        else
            _injected = new() { Valid = 1, Type = EventType.External, Vector = vector };
    }

    /// <summary>Debug traps that MOV SS holds back: they have hit, and are no exception yet.</summary>
    private unsafe bool TrapsAreHeld => _s->PendingDebug != 0 && (_s->InterruptShadow & 2) != 0;

    private unsafe void SaveException(ref kvm_vcpu_events e)
    {
        bool payloads = Vm.Settings.ExceptionPayloads;
        if (payloads)
            e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        if (_s->PendingDebug != 0 && _pendingException.Valid == 0 && !IsException(_injected))
        {
            if (payloads)
            {
                (e.exception.pending, e.exception.nr, e.exception_has_payload, e.exception_payload) = (1, Vector.DB, 1, _s->PendingDebug);
                return;
            }
            // Without payloads the side effects happen now; what MOV SS holds back cannot be said, and stays.
            if (!TrapsAreHeld)
                QueueTraps();
        }
        bool pending = _pendingException.Valid != 0;
        if (!pending && !IsException(_injected))
            return;
        ref EventInjection x = ref pending ? ref _pendingException : ref _injected;
        if (!payloads)
        {
            // A client that does not know payloads finds CR2 and DR6 as the handler will.
            ApplyPayload(x);
            x.HasPayload = 0;
        }
        // Software exceptions are not reported: the API has no room for their length, and their instruction will raise them again. Clients that do not know
        // "pending" take what is for injected.
        if (x.Type == EventType.HardwareException)
            (e.exception.injected, e.exception.pending) = (pending && payloads ? (byte)0 : (byte)1, pending ? (byte)1 : (byte)0);
        (e.exception.nr, e.exception.has_error_code, e.exception.error_code) = (x.Vector, x.HasErrorCode, x.ErrorCode);
        if (x.HasPayload != 0)
            (e.exception_has_payload, e.exception_payload) = (1, x.Payload);
    }

    /// <summary>KVM_SET_VCPU_EVENTS: 0 or -EINVAL.</summary>
    /// <param name="waitsForSipi">The vCPU has taken INIT: no SMI reaches it.</param>
    public unsafe int Set(in kvm_vcpu_events e, bool waitsForSipi)
    {
        const uint Known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM
            | KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        bool payload = (e.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0, hasSmm = (e.flags & KVM_VCPUEVENT_VALID_SMM) != 0;
        if ((e.flags & ~Known) != 0 || payload && !Vm.Settings.ExceptionPayloads
            || (e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0 && !Vm.Settings.TripleFaultEvents)
            return -Errno.EINVAL;
        // Without the payload flag "pending" does not exist; with it, a pending exception is not also an injected one.
        bool pending = payload && e.exception.pending != 0, injected = e.exception.injected != 0 && !pending;
        if ((pending || injected) && (e.exception.nr > 31 || e.exception.nr == Vector.NMI))
            return -Errno.EINVAL;
        if (hasSmm && (e.smi.smm != 0 || e.smi.pending != 0) && waitsForSipi)
            return -Errno.EINVAL;
        EventInjection x = new()
        {
            Valid = 1, Type = e.exception.nr is Vector.BP or Vector.OF ? EventType.SoftwareException : EventType.HardwareException, Vector = e.exception.nr,
            InstructionLength = e.exception.nr is Vector.BP or Vector.OF ? (byte)1 : (byte)0,
            HasErrorCode = e.exception.has_error_code, ErrorCode = e.exception.error_code,
        };
        if (pending && e.exception_has_payload != 0)
            (x.HasPayload, x.Payload) = (1, e.exception_payload);
        _injected = injected ? x : default;
        _pendingException = pending ? x : default;
        _s->PendingDebug = 0;
        if (Lapic is null)
            _externalInterrupt = -1;
        if (!injected && e.interrupt.injected != 0 && e.interrupt.soft != 0)
            _injected = new() { Valid = 1, Vector = e.interrupt.nr, Type = EventType.SoftwareInterrupt };
        else if (!injected && e.nmi.injected != 0 && (e.interrupt.injected == 0 || Lapic is null))
            _injected = new() { Valid = 1, Vector = Vector.NMI, Type = EventType.Nmi };
        if (e.interrupt.injected != 0 && e.interrupt.soft == 0 && (!injected || Lapic is null))
            QueueInterrupt(e.interrupt.nr);
        if ((e.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0)
            ProcessorMode.SetKvmShadow(_s, e.interrupt.shadow);
        if (pending && x.HasPayload != 0 && x.Vector == Vector.DB && (_s->InterruptShadow & 2) != 0 && Cpu.AreTraps(x.Payload))
            (_pendingException, _s->PendingDebug) = (default, (ushort)x.Payload);
        if ((e.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0)
        {
            inbox.DropNmis();
            _nmiPending = Math.Min(e.nmi.pending, (byte)2);
        }
        _s->NmiBlocked = e.nmi.masked != 0 ? (byte)1 : (byte)0;
        if (hasSmm)
            SetSmmEvents(e.smi);
        if ((e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0)
        {
            if (e.triple_fault.pending != 0)
                Requests.MakeSelf(VcpuRequest.TripleFault);
            else
                Requests.Clear(VcpuRequest.TripleFault);
        }
        Requests.MakeSelf(VcpuRequest.Event);
        return 0;
    }

    private void SetSmmEvents(in kvm_vcpu_events.smi_t smi)
    {
        if (smm.IsActive != (smi.smm != 0))
            smm.Switch(smi.smm != 0);
        Requests.Clear(VcpuRequest.Smi);
        smm.IsPending = smi.pending != 0;
        if (smm.IsActive)
            smm.IsInsideNmi = smi.smm_inside_nmi != 0;
        if (Lapic is not null)
            inbox.SetInit(smi.latched_init != 0);
    }
}

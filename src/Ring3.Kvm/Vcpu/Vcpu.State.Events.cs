using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// Events in flight, multiprocessor state, local APIC. For the vCPU's thread, or any thread while the vCPU is not running.
public sealed unsafe partial class Vcpu
{
    /// <summary>KVM_GET_VCPU_EVENTS.</summary>
    public void GetVcpuEvents(out kvm_vcpu_events events)
    {
        CollectNmis();
        kvm_vcpu_events e = new() { flags = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM };
        bool isException = _injected.Valid != 0 && _injected.Type is EventType.HardwareException or EventType.SoftwareException or EventType.PrivilegedSoftwareException;
        EventInjection x = isException ? _injected : _pendingException;
        if (x.Valid != 0)
        {
            // Without KVM_CAP_EXCEPTION_PAYLOAD both kinds read as injected, as in KVM.
            bool pending = !isException && Vm.ExceptionPayloadEnabled;
            (e.exception.injected, e.exception.pending) = (pending ? (byte)0 : (byte)1, pending ? (byte)1 : (byte)0);
            (e.exception.nr, e.exception.has_error_code, e.exception.error_code) = (x.Vector, x.HasErrorCode, x.ErrorCode);
            if (Vm.ExceptionPayloadEnabled)
            {
                e.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
                (e.exception_has_payload, e.exception_payload) = (x.Vector is Vector.PF or Vector.DB ? (byte)1 : (byte)0, x.Payload);
            }
        }
        if (_injected.Valid != 0 && _injected.Type is EventType.External or EventType.SoftwareInterrupt)
            (e.interrupt.injected, e.interrupt.nr, e.interrupt.soft) = (1, _injected.Vector, _injected.Type == EventType.SoftwareInterrupt ? (byte)1 : (byte)0);
        e.interrupt.shadow = (byte)((_s->InterruptShadow & 1) << 1 | _s->InterruptShadow >> 1 & 1);
        e.nmi.injected = _injected.Valid != 0 && _injected.Type == EventType.Nmi ? (byte)1 : (byte)0;
        e.nmi.pending = (byte)_nmiPending;
        e.nmi.masked = _s->NmiBlocked;
        e.sipi_vector = 0;
        e.smi.smm = _s->InSmm;
        e.smi.pending = _smiPending ? (byte)1 : (byte)0;
        e.smi.latched_init = _latchedInit ? (byte)1 : (byte)0;
        if (Vm.TripleFaultEventEnabled)
        {
            e.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            e.triple_fault.pending = Requests.Test(VcpuRequest.TripleFault) ? (byte)1 : (byte)0;
        }
        events = e;
    }

    /// <summary>KVM_SET_VCPU_EVENTS: 0 or -EINVAL.</summary>
    public int SetVcpuEvents(in kvm_vcpu_events e)
    {
        const uint Known = KVM_VCPUEVENT_VALID_NMI_PENDING | KVM_VCPUEVENT_VALID_SIPI_VECTOR | KVM_VCPUEVENT_VALID_SHADOW | KVM_VCPUEVENT_VALID_SMM | KVM_VCPUEVENT_VALID_PAYLOAD | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        bool payload = (e.flags & KVM_VCPUEVENT_VALID_PAYLOAD) != 0;
        if ((e.flags & ~Known) != 0 || payload && !Vm.ExceptionPayloadEnabled || (e.flags & KVM_VCPUEVENT_VALID_TRIPLE_FAULT) != 0 && !Vm.TripleFaultEventEnabled)
            return -Errno.EINVAL;
        if (payload && e.exception.pending != 0 && e.exception.injected != 0 || (e.exception.injected | e.exception.pending) != 0 && (e.exception.nr > 31 || e.exception.nr == Vector.NMI))
            return -Errno.EINVAL;
        bool pending = payload && e.exception.pending != 0, injected = e.exception.injected != 0;
        EventInjection x = default;
        if (pending || injected)
            x = new() { Valid = 1, Type = EventType.HardwareException, Vector = e.exception.nr, HasErrorCode = e.exception.has_error_code, ErrorCode = e.exception.error_code, Payload = pending && e.exception_has_payload != 0 ? e.exception_payload : 0 };
        _injected = injected ? x : default;
        _pendingException = pending ? x : default;
        if (!injected && e.interrupt.injected != 0)
            _injected = new() { Valid = 1, Vector = e.interrupt.nr, Type = e.interrupt.soft != 0 ? EventType.SoftwareInterrupt : EventType.External };
        else if (!injected && e.nmi.injected != 0)
            _injected = new() { Valid = 1, Vector = Vector.NMI, Type = EventType.Nmi };
        if ((e.flags & KVM_VCPUEVENT_VALID_SHADOW) != 0)
            _s->InterruptShadow = (byte)(e.interrupt.shadow >> 1 & 1 | (e.interrupt.shadow & 1) << 1);
        if ((e.flags & KVM_VCPUEVENT_VALID_NMI_PENDING) != 0)
        {
            Volatile.Write(ref _nmiQueued, 0);
            _nmiPending = Math.Min(e.nmi.pending, (byte)2);
        }
        _s->NmiBlocked = e.nmi.masked != 0 ? (byte)1 : (byte)0;
        if ((e.flags & KVM_VCPUEVENT_VALID_SMM) != 0)
        {
            _s->InSmm = e.smi.smm != 0 ? (byte)1 : (byte)0;
            _smiPending = e.smi.pending != 0;
            _latchedInit = e.smi.latched_init != 0;
        }
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

    /// <summary>KVM_GET_MP_STATE.</summary>
    public kvm_mp_state GetMpState()
    {
        AcceptInitAndSipi();
        return new() { mp_state = (uint)_mpState };
    }

    /// <summary>KVM_SET_MP_STATE: 0 or -EINVAL.</summary>
    public int SetMpState(kvm_mp_state state)
    {
        switch (state.mp_state)
        {
            case KVM_MP_STATE_RUNNABLE:
                _mpState = MpState.Runnable;
                break;
            case KVM_MP_STATE_UNINITIALIZED or KVM_MP_STATE_INIT_RECEIVED or KVM_MP_STATE_HALTED or KVM_MP_STATE_SIPI_RECEIVED:
                if (Lapic is null)
                    return -Errno.EINVAL;
                _mpState = state.mp_state == KVM_MP_STATE_SIPI_RECEIVED ? MpState.InitReceived : (MpState)state.mp_state;
                if (state.mp_state == KVM_MP_STATE_SIPI_RECEIVED)
                    Interlocked.Exchange(ref _sipiVector, 0);
                break;
            default:
                return -Errno.EINVAL;
        }
        Requests.MakeSelf(VcpuRequest.Event);
        return 0;
    }

    /// <summary>KVM_GET_LAPIC: 0, or -EINVAL without an in-kernel local APIC.</summary>
    public int GetLapic(out kvm_lapic_state state)
    {
        state = default;
        if (Lapic is null)
            return -Errno.EINVAL;
        fixed (byte* regs = state.regs)
            Lapic.GetState(new Span<byte>(regs, KVM_APIC_REG_SIZE), Vm.ApicBus.X2ApicFormat);
        return 0;
    }

    /// <summary>KVM_SET_LAPIC: 0 or -EINVAL.</summary>
    public int SetLapic(in kvm_lapic_state state)
    {
        if (Lapic is null)
            return -Errno.EINVAL;
        fixed (byte* regs = state.regs)
            if (!Lapic.SetState(new ReadOnlySpan<byte>(regs, KVM_APIC_REG_SIZE), Vm.ApicBus.X2ApicFormat))
                return -Errno.EINVAL;
        SyncCr8();
        Requests.MakeSelf(VcpuRequest.Event);
        return 0;
    }
}

using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: _s is the vCPU's processor state; only single fields of it are touched.
namespace Ring3.Kvm;

/// <summary>Whether the vCPU executes, halts, or waits for INIT or SIPI (KVM_GET/SET_MP_STATE), and the two events that change it from outside.</summary>
internal sealed class VcpuActivity(
    VcpuCore core, InterruptInbox inbox, SystemManagement smm, VcpuEvents events, VcpuApic apic, GuestDebug debug, PvClock clock, StealTime steal,
    AsyncFaults asyncFaults, ApicPages apicPages) : VcpuPart(core)
{
    private readonly bool _isBootProcessor = core.IsBootProcessor;

    public MpState State { get; set; } = core.IsBootProcessor || core.Vm.Irqchip is null ? MpState.Runnable : MpState.Uninitialized;

    public bool IsHalted => State is MpState.Halted or MpState.ApResetHold;

    /// <summary>INIT, then SIPI, in the order in which a processor takes them. In system management mode INIT waits for RSM and SIPI is lost.</summary>
    public unsafe void AcceptInitAndSipi()
    {
        if (!inbox.HasInit && !inbox.HasSipi)
            return;
        if (smm.IsActive)
        {
            _ = inbox.TakeSipi();
            return;
        }
        if (inbox.TakeInit())
        {
            ResetForInit();
            State = _isBootProcessor ? MpState.Runnable : MpState.InitReceived;
        }
        int vector = inbox.TakeSipi();
        if (vector < 0 || State != MpState.InitReceived)
            return;
        _s->Cs.Selector = (ushort)(vector << 8);
        _s->Cs.Base = (ulong)vector << 12;
        _s->Rip = 0;
        Cpu.RecomputeMode();
        State = MpState.Runnable;
    }

    private void ResetForInit()
    {
        Cpu.Reset(true);
        Lapic?.Reset(init: true);
        events.Reset();
        smm.IsPending = false;
        inbox.DropNmis();
        // KVM: what the guest has agreed with it about its memory ends. Whoever starts this CPU again may have other uses for those pages.
        clock.Reset();
        steal.Reset();
        asyncFaults.Reset();
        apicPages.ResetPvEoi();
        apic.SyncCr8();
        debug.Apply();
        Requests.MakeSelf(VcpuRequest.Event);
    }

    /// <summary>KVM_GET_MP_STATE.</summary>
    public kvm_mp_state Get()
    {
        AcceptInitAndSipi();
        return new() { mp_state = (uint)State };
    }

    /// <summary>KVM_SET_MP_STATE: 0 or -EINVAL.</summary>
    public int Set(kvm_mp_state state)
    {
        // INIT and SIPI do not reach a processor in system management mode.
        if ((smm.IsActive || smm.IsPending) && state.mp_state is KVM_MP_STATE_INIT_RECEIVED or KVM_MP_STATE_SIPI_RECEIVED)
            return -Errno.EINVAL;
        switch (state.mp_state)
        {
            case KVM_MP_STATE_RUNNABLE:
                State = MpState.Runnable;
                break;
            case KVM_MP_STATE_UNINITIALIZED or KVM_MP_STATE_INIT_RECEIVED or KVM_MP_STATE_HALTED or KVM_MP_STATE_SIPI_RECEIVED or KVM_MP_STATE_AP_RESET_HOLD:
                if (Lapic is null)
                    return -Errno.EINVAL;
                State = state.mp_state == KVM_MP_STATE_SIPI_RECEIVED ? MpState.InitReceived : (MpState)state.mp_state;
                if (state.mp_state == KVM_MP_STATE_SIPI_RECEIVED)
                    inbox.SetSipi(0);
                break;
            default:
                return -Errno.EINVAL;
        }
        Requests.MakeSelf(VcpuRequest.Event);
        return 0;
    }
}

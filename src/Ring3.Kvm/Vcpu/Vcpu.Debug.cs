using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// KVM_SET_GUEST_DEBUG and the exits it asks for.
public sealed unsafe partial class Vcpu
{
    private uint _guestDebug;
    /// <summary>The guest's DR7 and breakpoints, while the client's occupy the registers.</summary>
    private ulong _guestDr7;
    private readonly ulong[] _hostDr = new ulong[8];

    private bool ClientUsesBreakpoints => (_guestDebug & (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP)) == (KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP);

    /// <summary>KVM_SET_GUEST_DEBUG: 0, -EINVAL, -EBUSY when an exception is already pending and another is to be injected.</summary>
    public int SetGuestDebug(in kvm_guest_debug debug)
    {
        const uint Known = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ;
        if ((debug.control & ~Known) != 0)
            return -Errno.EINVAL;
        if ((debug.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0)
        {
            if (_injected.Valid != 0 || _pendingException.Valid != 0)
                return -Errno.EBUSY;
            QueueException((debug.control & KVM_GUESTDBG_INJECT_DB) != 0 ? Vector.DB : Vector.BP);
        }
        if (!ClientUsesBreakpoints)
            _guestDr7 = _s->Dr7;
        _guestDebug = (debug.control & KVM_GUESTDBG_ENABLE) != 0 ? debug.control : 0;
        for (int i = 0; i < 8; i++)
            fixed (kvm_guest_debug* d = &debug)
                _hostDr[i] = d->arch.debugreg[i];
        ApplyDebugRegisters();
        return 0;
    }

    private void ApplyDebugRegisters()
    {
        bool client = ClientUsesBreakpoints;
        if (client)
            (_s->Dr0, _s->Dr1, _s->Dr2, _s->Dr3) = (_hostDr[0], _hostDr[1], _hostDr[2], _hostDr[3]);
        _s->Dr7 = client ? _hostDr[7] | Dr.Dr7Fixed1 : _guestDr7;
        _s->HostSingleStep = (_guestDebug & KVM_GUESTDBG_SINGLESTEP) != 0 ? (byte)1 : (byte)0;
        uint intercepts = (_guestDebug & KVM_GUESTDBG_USE_SW_BP) != 0 ? 1u << Vector.BP : 0;
        if ((_guestDebug & (KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_SINGLESTEP)) != 0)
            intercepts |= 1u << Vector.DB;
        _s->ExceptionIntercepts = intercepts;
        Cpu.RecomputeMode();
    }

    private int ExitDebug(byte vector, ulong pc, ulong dr6)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_DEBUG;
        run->debug.exception = vector;
        run->debug.pc = pc;
        run->debug.dr6 = dr6;
        run->debug.dr7 = _s->Dr7;
        return ToClient;
    }

    /// <summary>#DB and #BP that the client asked for; anything else goes back to the guest.</summary>
    private int HandleException()
    {
        byte vector = _exit->Vector;
        if (vector is Vector.DB or Vector.BP)
            return ExitDebug(vector, (_s->Cs.Base & ((_s->Efer & Arch.Efer.LMA) != 0 ? 0 : ulong.MaxValue)) + _s->Rip, vector == Vector.DB ? Dr.Dr6Fixed1 | _exit->Payload : Dr.Dr6Fixed1);
        _injected = new() { Valid = 1, Type = EventType.HardwareException, Vector = vector, HasErrorCode = _exit->HasErrorCode, ErrorCode = _exit->ErrorCode };
        _eventsDirty = true;
        return KeepRunning;
    }
}

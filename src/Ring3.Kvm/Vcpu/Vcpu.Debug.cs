using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// KVM_SET_GUEST_DEBUG and the exits it asks for.
public sealed unsafe partial class Vcpu
{
    /// <summary>KVM_CAP_SET_GUEST_DEBUG2: controls that KVM_SET_GUEST_DEBUG knows.</summary>
    internal const uint GuestDebugControls =
        KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP | KVM_GUESTDBG_BLOCKIRQ;

    private const ulong Dr6Writable = Dr.Dr6BD | Dr.Dr6BS | Dr.Dr6BT | 15;

    private uint _guestDebug;

    private bool ClientBlocksInterrupts => (_guestDebug & KVM_GUESTDBG_BLOCKIRQ) != 0;

    /// <summary>KVM_SET_GUEST_DEBUG: 0, or -EBUSY when an exception is already pending and another is to be injected. KVM: controls that do not exist are ignored.</summary>
    public int SetGuestDebug(in kvm_guest_debug debug)
    {
        if ((debug.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0)
        {
            if (_pendingException.Valid != 0 || Requests.Test(VcpuRequest.TripleFault))
                return -Errno.EBUSY;
            ReplaceInjectedException();
            if ((debug.control & KVM_GUESTDBG_INJECT_DB) != 0)
                QueueException(Vector.DB);
            else
                QueueBreakpoint();
        }
        _guestDebug = (debug.control & KVM_GUESTDBG_ENABLE) != 0 ? debug.control : 0;
        fixed (kvm_guest_debug* d = &debug)
            (_s->HostDr0, _s->HostDr1, _s->HostDr2, _s->HostDr3, _s->HostDr7) = (d->arch.debugreg[0], d->arch.debugreg[1], d->arch.debugreg[2], d->arch.debugreg[3], (uint)d->arch.debugreg[7] | Dr.Dr7Fixed1);
        ApplyDebugRegisters();
        return 0;
    }

    /// <summary>KVM: another exception takes the place of one whose delivery has begun, whose instruction will raise it again; a double fault becomes the end.</summary>
    private void ReplaceInjectedException()
    {
        if (!IsException(_injected))
            return;
        if (_injected.Vector == Vector.DF)
            Requests.MakeSelf(VcpuRequest.TripleFault);
        _injected = default;
    }

    /// <summary>Gives the guest the breakpoint that the client took from it: an INT3 of one byte, whose frame points behind it.</summary>
    private void QueueBreakpoint()
    {
        _pendingException = new() { Valid = 1, Type = EventType.SoftwareException, Vector = Vector.BP, InstructionLength = 1 };
        _eventsDirty = true;
    }

    /// <summary>After the client's or the guest's debug registers, or any state that <see cref="LogicalProcessor.RecomputeMode"/> derives from, were replaced.</summary>
    private void ApplyDebugRegisters()
    {
        _s->HostBreakpoints = (_guestDebug & KVM_GUESTDBG_USE_HW_BP) != 0 ? (byte)1 : (byte)0;
        _s->HostSingleStep = (_guestDebug & KVM_GUESTDBG_SINGLESTEP) != 0 ? (byte)1 : (byte)0;
        _s->HostStepDone &= _s->HostSingleStep;
        uint intercepts = (_guestDebug & KVM_GUESTDBG_USE_SW_BP) != 0 ? 1u << Vector.BP : 0;
        if ((_guestDebug & (KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_SINGLESTEP)) != 0)
            intercepts |= 1u << Vector.DB;
        _s->ExceptionIntercepts = intercepts;
        _policies.UpdateWideAddresses();
        _eventsDirty = true;
        Cpu.RecomputeMode();
    }

    private bool Is64BitCode => ProcessorMode.Is64BitCode(_s);

    private int ExitDebug(byte vector, ulong dr6)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_DEBUG;
        run->debug.exception = vector;
        run->debug.pc = ProcessorMode.LinearRip(_s);
        run->debug.dr6 = dr6;
        run->debug.dr7 = _s->HostBreakpoints != 0 ? _s->HostDr7 : _s->Dr7;
        return ToClient;
    }

    private int ExitSingleStep() => ExitDebug(Vector.DB, Dr.Dr6Fixed1 | Dr.Dr6BS | _exit->Payload);

    /// <summary>#DB and #BP that the client asked for; anything else goes back to the guest.</summary>
    private int HandleException()
    {
        byte vector = _exit->Vector;
        if (vector is Vector.DB or Vector.BP)
            return ExitDebug(vector, vector == Vector.DB ? Dr.Dr6Fixed1 | _exit->Payload : Dr.Dr6Fixed1);
        if (vector == Vector.PF)
        {
            if (_tables.MeetsWideAddress(_exit->Payload) && Cpu.IsBeyondMmioEmulation())
                return ExitEmulationFailure();
            _s->Cr2 = _exit->Payload;
        }
        _injected = new() { Valid = 1, Type = EventType.HardwareException, Vector = vector, HasErrorCode = _exit->HasErrorCode, ErrorCode = _exit->ErrorCode };
        _eventsDirty = true;
        return KeepRunning;
    }
}

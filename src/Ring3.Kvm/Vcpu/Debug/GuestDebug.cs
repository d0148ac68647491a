using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU; the client's structures are pinned where a pointer is taken.
namespace Ring3.Kvm;

/// <summary>
/// Debugging of the guest by the client (KVM_SET_GUEST_DEBUG) and the guest's own debug registers (KVM_GET/SET_DEBUGREGS): the processor serves whichever of
/// them is in use.
/// </summary>
internal sealed class GuestDebug(
    VcpuCore core, VcpuEvents events, ExitPolicies policies, GuestTables tables, EmulationFailures failures) : VcpuPart(core)
{
    /// <summary>KVM_CAP_SET_GUEST_DEBUG2: controls that KVM_SET_GUEST_DEBUG knows.</summary>
    public const uint Controls =
        KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP
        | KVM_GUESTDBG_BLOCKIRQ;

    /// <summary>The controls that are in force; 0 without KVM_GUESTDBG_ENABLE.</summary>
    private uint _controls;

    /// <summary>
    /// KVM_SET_GUEST_DEBUG: 0, or -EBUSY when an exception is already pending and another is to be injected. KVM: controls that do not exist are ignored.
    /// </summary>
    public unsafe int Set(in kvm_guest_debug debug)
    {
        if ((debug.control & (KVM_GUESTDBG_INJECT_DB | KVM_GUESTDBG_INJECT_BP)) != 0)
        {
            if (events.HasPendingException || Requests.Test(VcpuRequest.TripleFault))
                return -Errno.EBUSY;
            events.ReplaceInjectedException();
            if ((debug.control & KVM_GUESTDBG_INJECT_DB) != 0)
                events.Queue(Vector.DB);
            else
                events.QueueBreakpoint();
        }
        _controls = (debug.control & KVM_GUESTDBG_ENABLE) != 0 ? debug.control : 0;
        events.AreBlockedByClient = (_controls & KVM_GUESTDBG_BLOCKIRQ) != 0;
        fixed (kvm_guest_debug* d = &debug)
        {
            (_s->HostDr0, _s->HostDr1, _s->HostDr2, _s->HostDr3) = (d->arch.debugreg[0], d->arch.debugreg[1], d->arch.debugreg[2], d->arch.debugreg[3]);
            _s->HostDr7 = (uint)d->arch.debugreg[7] | Dr.Dr7Fixed1;
        }
        Apply();
        return 0;
    }

    /// <summary>
    /// After the client's or the guest's debug registers, or any state that <see cref="LogicalProcessor.RecomputeMode"/> derives from, were replaced.
    /// </summary>
    public unsafe void Apply()
    {
        _s->HostBreakpoints = (_controls & KVM_GUESTDBG_USE_HW_BP) != 0 ? (byte)1 : (byte)0;
        _s->HostSingleStep = (_controls & KVM_GUESTDBG_SINGLESTEP) != 0 ? (byte)1 : (byte)0;
        _s->HostStepDone &= _s->HostSingleStep;
        uint intercepts = (_controls & KVM_GUESTDBG_USE_SW_BP) != 0 ? 1u << Vector.BP : 0;
        if ((_controls & (KVM_GUESTDBG_USE_HW_BP | KVM_GUESTDBG_SINGLESTEP)) != 0)
            intercepts |= 1u << Vector.DB;
        _s->ExceptionIntercepts = intercepts;
        policies.UpdateWideAddresses();
        events.IsDirty = true;
        Cpu.RecomputeMode();
    }

    /// <summary>An exception that the processor has left the guest with: #DB and #BP that the client asked for; anything else goes back to the guest.</summary>
    public unsafe int HandleException()
    {
        byte vector = _exit->Vector;
        if (vector is Vector.DB or Vector.BP)
            return Exit(vector, vector == Vector.DB ? Dr.Dr6Fixed1 | _exit->Payload : Dr.Dr6Fixed1);
        if (vector == Vector.PF)
        {
            if (tables.MeetsWideAddress(_exit->Payload) && Cpu.IsBeyondMmioEmulation())
                return failures.Exit();
            _s->Cr2 = _exit->Payload;
        }
        events.Return(vector, _exit->HasErrorCode, _exit->ErrorCode);
        return RunStep.KeepRunning;
    }

    /// <summary>The client's single step is done, and has met these traps (DR6) besides.</summary>
    public int ExitStep(ulong traps) => Exit(Vector.DB, Dr.Dr6Fixed1 | Dr.Dr6BS | traps);

    private unsafe int Exit(byte vector, ulong dr6)
    {
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_DEBUG;
        run->debug.exception = vector;
        run->debug.pc = ProcessorMode.LinearRip(_s);
        run->debug.dr6 = dr6;
        run->debug.dr7 = _s->HostBreakpoints != 0 ? _s->HostDr7 : _s->Dr7;
        return RunStep.ToClient;
    }

    /// <summary>KVM_GET_DEBUGREGS.</summary>
    public unsafe void GetRegisters(out kvm_debugregs regs)
    {
        regs = new() { dr6 = _s->Dr6, dr7 = _s->Dr7 };
        (regs.db[0], regs.db[1], regs.db[2], regs.db[3]) = (_s->Dr0, _s->Dr1, _s->Dr2, _s->Dr3);
    }

    /// <summary>KVM_SET_DEBUGREGS: 0 or -EINVAL.</summary>
    public unsafe int SetRegisters(in kvm_debugregs regs)
    {
        if (regs.flags != 0 || regs.dr6 >> 32 != 0 || regs.dr7 >> 32 != 0)
            return -Errno.EINVAL;
        fixed (kvm_debugregs* r = &regs)
            (_s->Dr0, _s->Dr1, _s->Dr2, _s->Dr3) = (r->db[0], r->db[1], r->db[2], r->db[3]);
        _s->Dr6 = regs.dr6 & ProcessorMode.Dr6Writable | Dr.Dr6Fixed1;
        _s->Dr7 = regs.dr7 | Dr.Dr7Fixed1;
        Apply();
        return 0;
    }
}

using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s, _exit and KvmRun live as long as the vCPU; register numbers are constants.
namespace Ring3.Kvm;

/// <summary>
/// The MSRs of a vCPU: the guest's RDMSR and WRMSR, and the client's KVM_GET_MSRS and KVM_SET_MSRS. What each register does is in its group, by <see
/// cref="MsrTable"/>; here is who may access it.
/// </summary>
internal sealed class VcpuMsrs : VcpuPart
{
    private readonly VcpuEvents _events;

    public VcpuMsrs(
        VcpuCore core, VcpuCpuid cpuid, VcpuTsc tsc, PvClock clock, StealTime steal, AsyncFaults asyncFaults, VcpuApic apic, ApicPages apicPages,
        SystemManagement smm, VcpuEvents events, Halting halting, HypervPort hyperv) : base(core)
    {
        _events = events;
        Processor = new(core, cpuid);
        Time = new(core, tsc);
        Apic = new(core, apic);
        Paravirt = new(core, cpuid, clock, steal, asyncFaults, apicPages, halting);
        Platform = new(core, cpuid);
        Speculation = new(core, cpuid);
        Smm = new(smm);
        Mtrr = new(core);
        MachineCheck = new(core, Platform, events);
        Hyperv = new(core, hyperv);
        UpdateIntercepts();
    }

    // ---- Groups, for MsrTable ----

    public ProcessorMsrs Processor { get; }
    public TimeMsrs Time { get; }
    public ApicMsrs Apic { get; }
    public ParavirtMsrs Paravirt { get; }
    public PlatformMsrs Platform { get; }
    public SpeculationMsrs Speculation { get; }
    public SmmMsrs Smm { get; }
    public MtrrMsrs Mtrr { get; }
    public MachineCheckMsrs MachineCheck { get; }
    public HypervMsrs Hyperv { get; }

    // ---- The client ----

    /// <summary>KVM_GET_MSRS: fills the data of the entries; returns how many were known before the first unknown one.</summary>
    public int Get(Span<kvm_msr_entry> entries)
    {
        for (int i = 0; i < entries.Length; i++)
            if (!TryRead(entries[i].index, host: true, out entries[i].data))
                return i;
        return entries.Length;
    }

    /// <summary>KVM_SET_MSRS: returns how many were accepted before the first refused one.</summary>
    public int Set(ReadOnlySpan<kvm_msr_entry> entries)
    {
        for (int i = 0; i < entries.Length; i++)
            if (!TryWrite(entries[i].index, host: true, entries[i].data))
                return i;
        return entries.Length;
    }

    /// <summary>
    /// Which accesses come here although the processor would do them by itself: with a filter all of them, and when the client wants to see refused ones those.
    /// Any thread.
    /// </summary>
    public unsafe void UpdateIntercepts() => Volatile.Write(ref _s->InterceptMsrs,
        Vm.Msrs.Filter is not null ? MsrIntercepts.All : (Vm.Msrs.UserSpaceMask & KVM_MSR_EXIT_REASON_INVAL) != 0 ? MsrIntercepts.Refused : MsrIntercepts.None);

    // ---- The guest ----

    /// <summary>RDMSR.</summary>
    public unsafe int HandleRead()
    {
        uint msr = (uint)_s->Gpr[1];
        if (Vm.Msrs.Filter is { } f && !f.Allows(msr, KVM_MSR_FILTER_READ))
            return Refuse(KVM_EXIT_X86_RDMSR, KVM_MSR_EXIT_REASON_FILTER, msr, 0);
        if (!TryRead(msr, host: false, out ulong value))
            return Refuse(KVM_EXIT_X86_RDMSR, IsKnown(msr) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN, msr, 0);
        Finish(true, value);
        return KeepRunning;
    }

    /// <summary>WRMSR.</summary>
    public unsafe int HandleWrite()
    {
        uint msr = (uint)_s->Gpr[1];
        ulong value = _s->Gpr[2] << 32 | (uint)_s->Gpr[0];
        if (Vm.Msrs.Filter is { } f && !f.Allows(msr, KVM_MSR_FILTER_WRITE))
            return Refuse(KVM_EXIT_X86_WRMSR, KVM_MSR_EXIT_REASON_FILTER, msr, value);
        if (!TryWrite(msr, host: false, value))
            return Refuse(KVM_EXIT_X86_WRMSR, IsKnown(msr) ? KVM_MSR_EXIT_REASON_INVAL : KVM_MSR_EXIT_REASON_UNKNOWN, msr, value);
        Finish(true, 0);
        return KeepRunning;
    }

    /// <summary>An access that KVM does not make: the client's, when it asked for accesses with this reason, else #GP(0).</summary>
    private unsafe int Refuse(uint exit, uint reason, uint msr, ulong data)
    {
        if ((Vm.Msrs.UserSpaceMask & reason) == 0)
        {
            Finish(false, 0);
            return KeepRunning;
        }
        kvm_run* run = KvmRun;
        run->exit_reason = exit;
        run->msr.error = 0;
        run->msr.reason = reason;
        run->msr.index = msr;
        run->msr.data = data;
        return ExitToClient(exit == KVM_EXIT_X86_RDMSR ? Completion.MsrRead : Completion.MsrWrite);
    }

    /// <summary>The client has answered.</summary>
    public unsafe void Complete(bool isRead) => Finish(KvmRun->msr.error == 0, isRead ? KvmRun->msr.data : 0);

    /// <summary>Retires the RDMSR of the last exit with its value, or the WRMSR; or raises #GP(0) for it.</summary>
    private unsafe void Finish(bool ok, ulong value)
    {
        if (!ok)
        {
            _events.QueueGeneralProtection();
            return;
        }
        if (_exit->Reason == ExitReason.MsrRead)
            (_s->Gpr[0], _s->Gpr[2]) = ((uint)value, value >> 32);
        Cpu.SkipInstruction();
    }

    // ---- Both ----

    private bool IsKnown(uint msr) => MsrTable.Find(msr) is { IsKnownUnread: true } || TryRead(msr, host: true, out _);

    private bool TryRead(uint msr, bool host, out ulong value)
    {
        if (!host && Cpu.OwnsMsr(msr))
            return Cpu.TryReadGuestMsr(msr, out value);
        value = 0;
        return MsrTable.Find(msr) is { } r && r.TryRead(this, new(msr, host), out value);
    }

    private unsafe bool TryWrite(uint msr, bool host, ulong value)
    {
        // The client has chosen its number, perhaps that of another register. It writes itself, and is not read.
        if (msr != 0 && Vm.Xen.SideOrNull is { } xen && xen.HypercallMsr == msr && !Hyperv.Has(msr))
            return XenHypercallPage.TryWrite(Vm, value, (_s->Efer & Efer.LMA) != 0);
        if (!host && Cpu.OwnsMsr(msr))
            return Cpu.TryWriteGuestMsr(msr, value);
        return MsrTable.Find(msr) is { } r && r.TryWrite(this, new(msr, host), value);
    }
}

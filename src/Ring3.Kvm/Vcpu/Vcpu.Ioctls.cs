using Ring3.Abi;
using Ring3.Xen;

// SAFETY: the words for signals can be written for ever (SignalWords.cs); the first element of a structure's array is in it.
namespace Ring3.Kvm;

// The ioctls of a vCPU, and which part answers each. For the vCPU's thread, or for any while the vCPU is not running, unless said otherwise.
public sealed partial class Vcpu
{
    // ---- Registers ----

    /// <summary>KVM_GET_REGS.</summary>
    public void GetRegs(out kvm_regs regs) => _registers.Get(out regs);

    /// <summary>KVM_SET_REGS.</summary>
    public void SetRegs(in kvm_regs regs) => _registers.Set(regs);

    /// <summary>KVM_GET_SREGS.</summary>
    public void GetSregs(out kvm_sregs sregs) => _systemRegisters.Get(out sregs);

    /// <summary>KVM_SET_SREGS: 0 or -EINVAL.</summary>
    public int SetSregs(in kvm_sregs sregs) => _systemRegisters.Set(sregs);

    /// <summary>KVM_GET_SREGS2.</summary>
    public void GetSregs2(out kvm_sregs2 sregs) => _systemRegisters.Get2(out sregs);

    /// <summary>KVM_SET_SREGS2: 0 or -EINVAL.</summary>
    public int SetSregs2(in kvm_sregs2 sregs) => _systemRegisters.Set2(sregs);

    /// <summary>KVM_GET_DEBUGREGS.</summary>
    public void GetDebugRegs(out kvm_debugregs regs) => _debug.GetRegisters(out regs);

    /// <summary>KVM_SET_DEBUGREGS: 0 or -EINVAL.</summary>
    public int SetDebugRegs(in kvm_debugregs regs) => _debug.SetRegisters(regs);

    /// <summary>KVM_GET_FPU. KVM: mxcsr is 0; it belongs to KVM_GET_XSAVE.</summary>
    public void GetFpu(out kvm_fpu fpu) => _extended.GetFpu(out fpu);

    /// <summary>KVM_SET_FPU. KVM: mxcsr is ignored.</summary>
    public void SetFpu(in kvm_fpu fpu) => _extended.SetFpu(fpu);

    /// <summary>KVM_GET_XSAVE: the standard format, with the components in use as XSAVEC finds them.</summary>
    public void GetXsave(out kvm_xsave xsave) => _extended.GetXsave(out xsave);

    /// <summary>KVM_SET_XSAVE: 0, or -EINVAL for unsupported components, a compacted area, other bytes of the header, or reserved bits of MXCSR.</summary>
    public int SetXsave(in kvm_xsave xsave) => _extended.SetXsave(xsave);

    /// <summary>KVM_GET_XCRS.</summary>
    public void GetXcrs(out kvm_xcrs xcrs) => _extended.GetXcrs(out xcrs);

    /// <summary>KVM_SET_XCRS: 0 or -EINVAL.</summary>
    public int SetXcrs(in kvm_xcrs xcrs) => _extended.SetXcrs(xcrs);

    // ---- Events ----

    /// <summary>KVM_GET_VCPU_EVENTS.</summary>
    public void GetVcpuEvents(out kvm_vcpu_events events) => _events.Get(out events);

    /// <summary>KVM_SET_VCPU_EVENTS: 0 or -EINVAL.</summary>
    public int SetVcpuEvents(in kvm_vcpu_events events) => _events.Set(events, waitsForSipi: _activity.State == MpState.InitReceived);

    /// <summary>KVM_GET_MP_STATE.</summary>
    public kvm_mp_state GetMpState() => _activity.Get();

    /// <summary>KVM_SET_MP_STATE: 0 or -EINVAL.</summary>
    public int SetMpState(kvm_mp_state state) => _activity.Set(state);

    /// <summary>KVM_INTERRUPT: queues an external interrupt. 0, -EINVAL, -ENXIO with an in-kernel irqchip, -EEXIST when a split one has the last.</summary>
    public int Interrupt(uint vector) => _events.Interrupt(vector);

    /// <summary>KVM_NMI: queues a non-maskable interrupt. Any thread.</summary>
    public void InjectNmi() => Inbox.RaiseNmi();

    /// <summary>KVM_SMI: requests a system management interrupt. Any thread.</summary>
    public void InjectSmi() => Inbox.RaiseSmi();

    /// <summary>KVM_SET_GUEST_DEBUG: 0, or -EBUSY when an exception is pending and another is to be injected. KVM: unknown controls are ignored.</summary>
    public int SetGuestDebug(in kvm_guest_debug debug) => _debug.Set(debug);

    // ---- Memory ----

    /// <summary>KVM_PRE_FAULT_MEMORY: maps a range as reads of the guest would, and advances it by what was done. Not while the vCPU runs.</summary>
    /// <returns>0 when at least one page was mapped; else -EINVAL, -ENOENT without memory at the address, -EFAULT, -EINTR after a signal, -ENOMEM.</returns>
    public int PreFaultMemory(ref kvm_pre_fault_memory range) => _memoryFaults.PreFault(ref range);

    /// <summary>KVM_TRANSLATE: the guest-physical address of a linear one under the current paging mode, with the privilege of the processor itself.</summary>
    public void Translate(ref kvm_translation tr) => _tables.Translate(ref tr);

    // ---- CPUID ----

    /// <summary>KVM_MAX_CPUID_ENTRIES.</summary>
    public const int MaxCpuidEntries = 256;

    /// <summary>KVM_SET_CPUID2: 0, -E2BIG, -EINVAL for linear addresses of other than 48 and 57 bits, or for a change once the vCPU has run.</summary>
    public int SetCpuid2(ReadOnlySpan<kvm_cpuid_entry2> entries) => _cpuid.Set(entries);

    /// <summary>KVM_GET_CPUID2: number of entries, or -E2BIG.</summary>
    public int GetCpuid2(Span<kvm_cpuid_entry2> entries) => _cpuid.Get(entries);

    /// <summary>What the guest gets for a leaf.</summary>
    internal (uint Eax, uint Ebx, uint Ecx, uint Edx) Cpuid(uint function, uint index) => _cpuid.Read(function, index);

    /// <summary>KVM_ENABLE_CAP on the vCPU: 0 or -EINVAL.</summary>
    public unsafe int EnableCap(in kvm_enable_cap cap)
    {
        if (cap.flags != 0 || cap.cap != KvmApi.KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
            return -Errno.EINVAL;
        _cpuid.EnforcesPvFeatures = cap.args[0] != 0;
        return 0;
    }

    // ---- MSRs ----

    /// <summary>KVM_GET_MSRS: fills the data of the entries; returns how many were known before the first unknown one.</summary>
    public int GetMsrs(Span<kvm_msr_entry> entries) => _msrs.Get(entries);

    /// <summary>KVM_SET_MSRS: returns how many were accepted before the first refused one.</summary>
    public int SetMsrs(ReadOnlySpan<kvm_msr_entry> entries) => _msrs.Set(entries);

    /// <summary>KVM_X86_SETUP_MCE: 0 or -EINVAL.</summary>
    public int SetupMce(ulong capability) => _msrs.MachineCheck.Setup(capability);

    /// <summary>KVM_X86_SET_MCE: 0 or -EINVAL.</summary>
    public int SetMce(in kvm_x86_mce mce) => _msrs.MachineCheck.Inject(mce);

    // ---- Local APIC ----

    /// <summary>KVM_GET_LAPIC: 0, or -EINVAL without an in-kernel local APIC.</summary>
    public int GetLapic(out kvm_lapic_state state) => _apic.GetState(out state);

    /// <summary>KVM_SET_LAPIC: 0 or -EINVAL.</summary>
    public int SetLapic(in kvm_lapic_state state) => _apic.SetState(state);

    /// <summary>KVM_TPR_ACCESS_REPORTING: accesses to the task priority register leave with KVM_EXIT_TPR_ACCESS. 0, or -EINVAL for flags.</summary>
    public int SetTprAccessReporting(in kvm_tpr_access_ctl control) => _apic.SetTprAccessReporting(control);

    /// <summary>KVM_SET_VAPIC_ADDR: the word that mirrors the local APIC's priorities. 0, or -EINVAL without a local APIC here or outside the slots.</summary>
    public int SetVapicAddress(ulong gpa) => _apicPages.SetVapicAddress(gpa);

    // ---- Time ----

    /// <summary>KVM_GET_TSC_KHZ: the TSC frequency that the guest sees, in kHz.</summary>
    public uint TscKhz => _tsc.Khz;

    /// <summary>KVM_SET_TSC_KHZ: 0 or -EINVAL.</summary>
    public int SetTscKhz(uint khz) => _tsc.SetKhz(khz);

    /// <summary>The guest's TSC now. Any thread.</summary>
    internal ulong GuestTsc() => _tsc.Now();

    /// <summary>KVM_VCPU_TSC_OFFSET: guest TSC minus the (scaled) host TSC.</summary>
    public ulong TscOffset { get => _tsc.Offset; set => _tsc.Offset = value; }

    /// <summary>KVM_KVMCLOCK_CTRL: tells the guest that it was stopped, so that its watchdogs do not bark. 0 or -EINVAL without a clock page.</summary>
    public int KvmClockCtrl() => _clock.NoteStopped();

    // ---- Xen ----

    /// <summary>The Xen side, made on first use. Any thread.</summary>
    internal XenVcpu Xen => _xenProcessor.Side;

    /// <summary>KVM_XEN_VCPU_SET_ATTR. See <see cref="XenVcpu.SetAttribute"/>.</summary>
    public int XenSetAttr(in kvm_xen_vcpu_attr attr) => Xen.SetAttribute(attr);

    /// <summary>KVM_XEN_VCPU_GET_ATTR. See <see cref="XenVcpu.GetAttribute"/>.</summary>
    public int XenGetAttr(ref kvm_xen_vcpu_attr attr) => Xen.GetAttribute(ref attr);

    // ---- Signals ----

    /// <summary>Words for the signal handlers of this vCPU's thread. They mean this vCPU until the VM is disposed of, and can be written for ever.</summary>
    public unsafe VcpuSignal* Signal { get; }

    // ---- For other vCPUs and for the VM. Any thread. ----

    /// <summary>KVM_HC_KICK_CPU: wakes the vCPU from HLT; if it is not halted, its next HLT returns at once.</summary>
    internal void PvUnhalt() => _halting.Unhalt();

    /// <summary>The client's MSR filter, or the MSR accesses that it wants to see, have changed.</summary>
    internal void InterceptMsrs() => _msrs.UpdateIntercepts();

    /// <summary>Gives the processor the exits that the client has enabled on the VM.</summary>
    internal void ApplyExitPolicies() => _policies.Apply();

    /// <summary>The VM's quirks have changed.</summary>
    internal void UpdateMonitor() => _cpuid.UpdateMonitor();
}

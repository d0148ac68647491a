using Ring3.Abi;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;

// SAFETY: _s lives as long as the vCPU; the client's structures are pinned where a span is made of them.
namespace Ring3.Kvm;

/// <summary>
/// The vCPU's side of its local APIC, be that here or the client's: CR8, IA32_APIC_BASE, KVM_GET/SET_LAPIC, and reports of accesses to the task priority
/// register (KVM_CAP_VAPIC).
/// </summary>
internal sealed class VcpuApic : VcpuPart
{
    private readonly ApicBase _base;
    private bool _reportTprAccess, _tprAccessIsWrite;
    private ulong _tprAccessRip;

    public VcpuApic(VcpuCore core) : base(core) =>
        // Where the local APIC is the client's, the register is still the processor's. Before KVM_SET_CPUID2 there is no x2APIC to switch to then.
        _base = core.Lapic?.BaseRegister ?? new ApicBase(core.IsBootProcessor) { X2ApicSupported = false };

    // ---- CR8 ----

    /// <summary>Task priority class: the local APIC's, or where that is the client's, what guest and client have set.</summary>
    public unsafe ulong Cr8
    {
        get => Lapic?.Cr8 ?? _s->Cr8;
        set
        {
            if (Lapic is not null)
                Lapic.Cr8 = value & 15;
            _s->Cr8 = value & 15;
        }
    }

    /// <summary>The processor reads CR8 without an exit: keeps its copy equal to the local APIC's.</summary>
    public unsafe void SyncCr8()
    {
        if (Lapic is not null)
            _s->Cr8 = Lapic.Cr8;
    }

    // ---- IA32_APIC_BASE ----

    public ulong Base => _base.Value;

    /// <summary>The APIC bit of CPUID.</summary>
    public bool IsEnabled => _base.IsEnabled;

    /// <summary>False: a value that the guest or the client cannot set, and nothing has changed.</summary>
    public bool TrySetBase(ulong value, bool host) => Lapic?.SetBase(value, host) ?? _base.TrySet(value, host);

    /// <summary>What the guest's CPUID allows in the register.</summary>
    public void LimitBase(bool hasX2Apic, int physicalAddressBits) => (_base.X2ApicSupported, _base.PhysicalAddressBits) = (hasX2Apic, physicalAddressBits);

    // ---- State ----

    /// <summary>KVM_GET_LAPIC: 0, or -EINVAL without an in-kernel local APIC.</summary>
    public unsafe int GetState(out kvm_lapic_state state)
    {
        state = default;
        if (Lapic is null)
            return -Errno.EINVAL;
        fixed (byte* regs = state.regs)
            Lapic.GetState(new Span<byte>(regs, KVM_APIC_REG_SIZE), Vm.ApicBus.X2ApicFormat);
        return 0;
    }

    /// <summary>KVM_SET_LAPIC: 0 or -EINVAL.</summary>
    public unsafe int SetState(in kvm_lapic_state state)
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

    // ---- Reports of task priority accesses ----

    /// <summary>
    /// KVM_TPR_ACCESS_REPORTING: each guest access to the in-kernel local APIC's task priority register leaves with KVM_EXIT_TPR_ACCESS once its instruction
    /// has retired. 0, or -EINVAL for flags.
    /// </summary>
    public int SetTprAccessReporting(in kvm_tpr_access_ctl control)
    {
        if (control.flags != 0)
            return -Errno.EINVAL;
        _reportTprAccess = control.enabled != 0;
        return 0;
    }

    /// <summary>An access to the local APIC's page.</summary>
    public void NoteTprAccess(ulong gpa, bool write)
    {
        if ((gpa & 0xff0) == ApicRegister.TPR && Lapic!.Mode == ApicMode.XApic)
            NoteTprAccess(write);
    }

    /// <summary>RIP is at the instruction that makes the access.</summary>
    public unsafe void NoteTprAccess(bool write)
    {
        if (!_reportTprAccess)
            return;
        (_tprAccessRip, _tprAccessIsWrite) = (_s->Rip, write);
        Requests.MakeSelf(VcpuRequest.ReportTprAccess);
    }

    /// <summary>KVM_EXIT_TPR_ACCESS, of the access that was noted last.</summary>
    public unsafe void FillTprAccessExit()
    {
        KvmRun->exit_reason = KVM_EXIT_TPR_ACCESS;
        KvmRun->tpr_access.rip = _tprAccessRip;
        KvmRun->tpr_access.is_write = _tprAccessIsWrite ? 1u : 0;
    }
}

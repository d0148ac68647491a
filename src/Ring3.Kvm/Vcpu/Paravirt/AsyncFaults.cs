namespace Ring3.Kvm;

/// <summary>
/// The guest's offer to be told of pages that the host has to fetch. KVM: since Linux 5.8 it is told by interrupts only, and KVM_FEATURE_ASYNC_PF_INT is not
/// offered here, so that the register keeps what is written and pages are waited for.
/// </summary>
internal sealed class AsyncFaults(VcpuCore core) : VcpuPart(core)
{
    private const ulong Enabled = 1 << 0, ByInterrupt = 1 << 3, Reserved = 0x30;

    /// <summary>MSR_KVM_ASYNC_PF_EN as it was written.</summary>
    public ulong EnableMsr { get; private set; }

    /// <summary>WRMSR of MSR_KVM_ASYNC_PF_EN. False: #GP.</summary>
    public bool TryWriteMsr(ulong value)
    {
        if ((value & (Reserved | ByInterrupt)) != 0)
            return false;
        if (Lapic is null)
            return value == 0;
        if ((value & Enabled) != 0 && !Vm.Memory.TryRead(value & ~0x3fUL, out uint _))
            return false;
        EnableMsr = value;
        return true;
    }

    /// <summary>INIT.</summary>
    public void Reset() => EnableMsr = 0;
}

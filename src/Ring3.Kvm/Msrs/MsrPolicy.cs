using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>Which accesses to MSRs the client has taken from the guest, or to itself.</summary>
internal sealed class MsrPolicy(VmCore core)
{
    /// <summary>What KVM_X86_SET_MSR_FILTER has set; null: everything is allowed.</summary>
    public MsrFilter? Filter { get; private set; }

    /// <summary>KVM_MSR_EXIT_REASON_* for which the client handles MSR accesses.</summary>
    public uint UserSpaceMask { get; private set; }

    /// <summary>Whether the guest can read MSR_PLATFORM_INFO (KVM_CAP_MSR_PLATFORM_INFO).</summary>
    public bool PlatformInfoReadable { get; set; } = true;

    /// <summary>KVM_X86_SET_MSR_FILTER: 0, -EINVAL, or -EFAULT when a bitmap cannot be read.</summary>
    public int SetFilter(in kvm_msr_filter filter)
    {
        int r = MsrFilter.Create(filter, out MsrFilter? created);
        if (r != 0)
            return r;
        using (core.Shaping.Enter())
        {
            Filter = created;
            UpdateIntercepts();
        }
        return 0;
    }

    /// <summary>KVM_CAP_X86_USER_SPACE_MSR: 0 or -EINVAL.</summary>
    public int SetUserSpaceMask(ulong reasons)
    {
        if ((reasons & ~(ulong)(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)) != 0)
            return -Errno.EINVAL;
        UserSpaceMask = (uint)reasons;
        UpdateIntercepts();
        return 0;
    }

    private void UpdateIntercepts()
    {
        foreach (Vcpu v in core.Vcpus.All)
            v.InterceptMsrs();
    }
}

using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>KVM_X86_SET_MSR_FILTER: which MSRs the guest may access. Immutable; the VM publishes a new one.</summary>
internal sealed class MsrFilter
{
    private readonly record struct Range(uint Flags, uint Base, uint Count, byte[] Bitmap);

    private readonly Range[] _ranges;
    private readonly bool _defaultAllow;

    private MsrFilter(Range[] ranges, bool defaultAllow) => (_ranges, _defaultAllow) = (ranges, defaultAllow);

    /// <summary>0 with a filter (null: everything is allowed), -EINVAL, or -EFAULT when a bitmap cannot be read.</summary>
    public static unsafe int Create(in kvm_msr_filter filter, out MsrFilter? result)
    {
        result = null;
        if ((filter.flags & ~KVM_MSR_FILTER_DEFAULT_DENY) != 0)
            return -Errno.EINVAL;
        bool allow = (filter.flags & KVM_MSR_FILTER_DEFAULT_DENY) == 0;
        var ranges = new List<Range>();
        for (int i = 0; i < KVM_MSR_FILTER_MAX_RANGES; i++)
        {
            kvm_msr_filter_range r = filter.ranges[i];
            if (r.nmsrs == 0)
                continue;
            if ((r.flags & ~(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE)) != 0 || r.flags == 0 || r.nmsrs > KVM_MSR_FILTER_MAX_BITMAP_SIZE * 8)
                return -Errno.EINVAL;
            byte[] bitmap = new byte[(r.nmsrs + 63) / 64 * 8];
            // SAFETY: the client's address is followed by the checked copy only.
            fixed (byte* p = bitmap)
                if (!UserCopy.TryRead(r.bitmap, p, (nuint)bitmap.Length))
                    return -Errno.EFAULT;
            ranges.Add(new(r.flags, r.@base, r.nmsrs, bitmap));
        }
        if (ranges.Count == 0 && !allow)
            return -Errno.EINVAL;
        result = ranges.Count == 0 ? null : new([.. ranges], allow);
        return 0;
    }

    public bool Allows(uint msr, uint access)
    {
        // The x2APIC registers are not filtered, as in KVM.
        if (msr is >= Arch.Msr.X2APIC_FIRST and <= Arch.Msr.X2APIC_LAST)
            return true;
        foreach (Range r in _ranges)
            if ((r.Flags & access) != 0 && msr - r.Base < r.Count)
                return (r.Bitmap[(msr - r.Base) / 8] >> (int)((msr - r.Base) & 7) & 1) != 0;
        return _defaultAllow;
    }
}

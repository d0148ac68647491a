using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: reads inside the structure it is given.
namespace Ring3.Kvm;

// KVM_ENABLE_CAP on a vCPU, and KVM_TRANSLATE.
public sealed unsafe partial class Vcpu
{
    /// <summary>PV features that are not in the guest's CPUID do not work (KVM_CAP_ENFORCE_PV_FEATURE_CPUID).</summary>
    public bool EnforcePvFeatures { get; private set; }

    /// <summary>KVM_ENABLE_CAP on the vCPU: 0 or -EINVAL.</summary>
    public int EnableCap(in kvm_enable_cap cap)
    {
        if (cap.flags != 0 || cap.cap != KVM_CAP_ENFORCE_PV_FEATURE_CPUID)
            return -Errno.EINVAL;
        EnforcePvFeatures = cap.args[0] != 0;
        return 0;
    }
}

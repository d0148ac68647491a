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

    /// <summary>KVM_TRANSLATE: what a linear address maps to with the current paging mode. The answer is in <paramref name="tr"/>; an address that maps to nothing is not an error.</summary>
    public void Translate(ref kvm_translation tr)
    {
        bool valid = Cpu.TranslateGva(tr.linear_address, out ulong gpa, out _, out _);
        tr.physical_address = valid ? gpa : ulong.MaxValue;
        tr.valid = valid ? (byte)1 : (byte)0;
        // KVM: these two are constants there.
        tr.writeable = 1;
        tr.usermode = 0;
    }
}

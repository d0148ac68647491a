using Ring3.Abi;

namespace Ring3.Kvm;

/// <summary>The system calls of KVM: what exists before any VM.</summary>
public static class KvmSystem
{
    /// <summary>KVM_GET_API_VERSION.</summary>
    public const int ApiVersion = KvmApi.KVM_API_VERSION;

    /// <summary>KVM_CHECK_EXTENSION.</summary>
    public static int CheckExtension(int capability) => Capabilities.Check(capability);

    /// <summary>KVM_GET_VCPU_MMAP_SIZE.</summary>
    public static int VcpuMmapSize => Vcpu.RunAreaBytes;

    /// <summary>KVM_GET_SUPPORTED_CPUID: number of entries, or -E2BIG.</summary>
    public static int GetSupportedCpuid(Span<kvm_cpuid_entry2> entries) => SupportedCpuid.Get(entries);

    /// <summary>KVM_GET_MSR_INDEX_LIST.</summary>
    public static ReadOnlySpan<uint> MsrIndexList => MsrList.All;

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST.</summary>
    public static ReadOnlySpan<uint> MsrFeatureIndexList => MsrList.Features;

    /// <summary>KVM_GET_MSRS on /dev/kvm: what the host offers to guests. False for a register that is not in <see cref="MsrFeatureIndexList"/>.</summary>
    public static bool TryGetFeatureMsr(uint msr, out ulong value) => Vcpu.TryGetFeatureMsr(msr, out value);

    /// <summary>KVM_X86_GET_MCE_CAP_SUPPORTED.</summary>
    public const ulong MceCapability = MachineCheckState.SupportedCapability;
}

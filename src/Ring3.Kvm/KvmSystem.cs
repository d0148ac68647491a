using Ring3.Abi;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>The system calls of KVM: what exists before any VM.</summary>
public static class KvmSystem
{
    /// <summary>KVM_GET_API_VERSION.</summary>
    public const int ApiVersion = KvmApi.KVM_API_VERSION;

    /// <summary>KVM_CHECK_EXTENSION.</summary>
    public static int CheckExtension(int capability) => Capabilities.Check(capability);

    /// <summary>Finds out what takes a while and the first VM needs, the frequency of the host's TSC. It need not be called; then that VM waits. Any
    /// thread; what stands in the way, a policy that refuses memory for code, the first VM says.</summary>
    public static void Prepare()
    {
        try { _ = HostTsc.Khz; }
        catch (TypeInitializationException) { }
    }

    /// <summary>KVM_GET_VCPU_MMAP_SIZE.</summary>
    public static int VcpuMmapSize => Vcpu.RunAreaBytes;

    /// <summary>KVM_GET_SUPPORTED_CPUID: number of entries, or -E2BIG. <paramref name="model"/>: the host's when null.</summary>
    public static int GetSupportedCpuid(Span<kvm_cpuid_entry2> entries, ProcessorModel? model = null) => SupportedCpuid.Get(entries, model);

    /// <summary>KVM_GET_SUPPORTED_HV_CPUID: leaves for a client that shows Hyper-V's hypercall interface to a guest.</summary>
    public static ReadOnlySpan<kvm_cpuid_entry2> SupportedHvCpuid => HypervCpuid.Entries;

    /// <summary>KVM_GET_MSR_INDEX_LIST.</summary>
    internal static ReadOnlySpan<uint> MsrIndexList => MsrIndexListOf(ProcessorModel.Host);

    /// <summary>KVM_GET_MSR_FEATURE_INDEX_LIST.</summary>
    internal static ReadOnlySpan<uint> MsrFeatureIndexList => MsrFeatureIndexListOf(ProcessorModel.Host);

    /// <summary><see cref="MsrIndexList"/> of another processor than the host's.</summary>
    public static ReadOnlySpan<uint> MsrIndexListOf(ProcessorModel model) => MsrTable.Listed(model);

    /// <summary><see cref="MsrFeatureIndexList"/> of another processor than the host's.</summary>
    public static ReadOnlySpan<uint> MsrFeatureIndexListOf(ProcessorModel model) => MsrTable.Features(model);

    /// <summary>KVM_GET_MSRS on /dev/kvm: what the host offers to guests. False for a register that is not in <see cref="MsrFeatureIndexList"/>.</summary>
    public static bool TryGetFeatureMsr(uint msr, out ulong value, ProcessorModel? model = null) =>
        MsrTable.TryGetFeature(model ?? ProcessorModel.Host, msr, out value);

    /// <summary>KVM_X86_GET_MCE_CAP_SUPPORTED.</summary>
    public const ulong MceCapability = MachineCheckMsrs.SupportedCapability;
}

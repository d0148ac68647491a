using Ring3.Abi;

namespace Ring3.Kvm;

/// <summary>Leaves for a client that shows Hyper-V's hypercall interface to a guest.</summary>
internal static class HypervCpuid
{
    public const uint InterfaceLeaf = 0x4000_0001, InterfaceSignature = 0x3123_7648;

    private static readonly kvm_cpuid_entry2[] s_entries =
    [
        // "Linux KVM Hv", interface "Hv#1", no version, AccessHypercallMsrs only, no recommendations, limits.
        new() { function = 0x4000_0000, eax = 0x4000_0005, ebx = 0x756e_694c, ecx = 0x564b_2078, edx = 0x7648_204d },
        new() { function = InterfaceLeaf, eax = InterfaceSignature },
        new() { function = 0x4000_0002 },
        new() { function = 0x4000_0003, eax = 1 << 5 },
        new() { function = 0x4000_0004, ebx = uint.MaxValue },
        new() { function = 0x4000_0005, eax = Vm.MaxVcpus, ebx = 64 },
    ];

    /// <summary>KVM_GET_SUPPORTED_HV_CPUID.</summary>
    public static ReadOnlySpan<kvm_cpuid_entry2> Entries => s_entries;
}

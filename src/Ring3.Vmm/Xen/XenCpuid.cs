using Ring3.Abi;

namespace Ring3.Vmm;

/// <summary>The CPUID leaves by which a guest knows Xen. SPEC: Xen public headers, arch-x86/cpuid.h.</summary>
internal static class XenCpuid
{
    public const uint HypercallMsr = 0x4000_0000;
    /// <summary>Xen 4.17.</summary>
    public const uint Version = 4 << 16 | 17;
    private const uint First = 0x4000_0000, VcpuIdPresent = 1 << 3, UpcallVector = 1 << 6, HostTscReliable = 1 << 1, TscNeverEmulated = 2;

    /// <summary>Replaces KVM's leaves by Xen's for a vCPU. The clock's factors are filled in by the hypervisor.</summary>
    public static kvm_cpuid_entry2[] Apply(kvm_cpuid_entry2[] cpuid, uint xenId, uint tscKhz)
    {
        var list = cpuid.Where(e => e.function is < First or > First + 0xff).ToList();
        list.Add(new() { function = First, eax = First + 5, ebx = 0x566e_6558, ecx = 0x6558_4d4d, edx = 0x4d4d_566e });
        list.Add(new() { function = First + 1, eax = Version });
        list.Add(new() { function = First + 2, eax = 1, ebx = HypercallMsr });
        list.Add(Indexed(3, 0, HostTscReliable, TscNeverEmulated, tscKhz, 0));
        list.Add(Indexed(3, 1, 0, 0, 0, 0));
        list.Add(Indexed(3, 2, tscKhz, 0, 0, 0));
        list.Add(Indexed(4, 0, VcpuIdPresent | UpcallVector, xenId, 0, 0));
        list.Add(Indexed(5, 0, 0, 0, 0, 0));
        return [.. list];
    }

    private static kvm_cpuid_entry2 Indexed(uint leaf, uint index, uint eax, uint ebx, uint ecx, uint edx) =>
        new() { function = First + leaf, index = index, flags = KvmApi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX, eax = eax, ebx = ebx, ecx = ecx, edx = edx };
}

using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>KVM_GET_MSR_INDEX_LIST and KVM_GET_MSR_FEATURE_INDEX_LIST. Everything listed can be read and written by the client.</summary>
public static class MsrList
{
    private static readonly uint[] s_features = [Msr.BIOS_SIGN_ID, Msr.ARCH_CAPABILITIES, MsrIndex.PERF_CAPABILITIES, MsrIndex.PLATFORM_INFO];
    private static readonly uint[] s_amdFeatures = [.. s_features, MsrIndex.DE_CFG];
    private static readonly uint[] s_all = Build(isAmd: false), s_amdAll = Build(isAmd: true);

    public static ReadOnlySpan<uint> All(ProcessorModel model) => model.IsAmd ? s_amdAll : s_all;
    public static ReadOnlySpan<uint> Features(ProcessorModel model) => model.IsAmd ? s_amdFeatures : s_features;

    private static uint[] Build(bool isAmd)
    {
        List<uint> list =
        [
            Msr.SYSENTER_CS, Msr.SYSENTER_ESP, Msr.SYSENTER_EIP, Msr.STAR, Msr.CSTAR, Msr.KERNEL_GS_BASE, Msr.SFMASK, Msr.LSTAR, Msr.TSC, Msr.PAT, Msr.TSC_AUX,
            Msr.KVM_WALL_CLOCK, Msr.KVM_SYSTEM_TIME, Msr.KVM_WALL_CLOCK_NEW, Msr.KVM_SYSTEM_TIME_NEW, Msr.KVM_ASYNC_PF_EN, Msr.KVM_STEAL_TIME, Msr.KVM_PV_EOI_EN, Msr.KVM_POLL_CONTROL,
            Msr.TSC_ADJUST, Msr.TSC_DEADLINE, Msr.MISC_ENABLE, Msr.XSS, MsrIndex.POWER_CTL, Msr.MCG_STATUS, Msr.SMBASE, MsrIndex.SMI_COUNT, MsrIndex.PLATFORM_INFO, MsrIndex.MISC_FEATURES_ENABLES, Msr.BIOS_SIGN_ID, Msr.DEBUGCTL,
            Msr.MTRR_DEF_TYPE, MsrIndex.MTRR_FIX64K,
        ];
        for (uint i = MsrIndex.MTRR_FIX16K_FIRST; i <= MsrIndex.MTRR_FIX16K_LAST; i++)
            list.Add(i);
        for (uint i = MsrIndex.MTRR_FIX4K_FIRST; i <= MsrIndex.MTRR_FIX4K_LAST; i++)
            list.Add(i);
        for (uint i = MsrIndex.MTRR_VAR_FIRST; i <= MsrIndex.MTRR_VAR_LAST; i++)
            list.Add(i);
        if (isAmd)
            list.AddRange([Msr.HWCR, Msr.SPEC_CTRL, MsrIndex.DE_CFG]);
        else
            list.AddRange([Msr.FEATURE_CONTROL, Msr.SPEC_CTRL, Msr.ARCH_CAPABILITIES]);
        return [.. list];
    }
}

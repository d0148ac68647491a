using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm;

/// <summary>What the processor is, and the switches of its facilities. SPEC: SDM volume 4; AMD PPR, "MSRs".</summary>
internal sealed class PlatformMsrs(VcpuCore core, VcpuCpuid cpuid) : VcpuPart(core)
{
    private const uint EBC_FREQUENCY_ID = 0x2c, UCODE_WRITE = 0x79, FSB_FREQ = 0xcd, PLATFORM_INFO = 0xce, MISC_FEATURES_ENABLES = 0x140, POWER_CTL = 0x1fc,
        PERF_CAPABILITIES = 0x345, PATCH_LOADER = 0xc001_0020;
    internal const uint OSVW_ID_LENGTH = 0xc001_0140, OSVW_STATUS = 0xc001_0141, DE_CFG = 0xc001_1029;

    private const ulong FeatureControlLocked = 1, HwcrTscFreqSel = 1 << 24, HwcrMcStatusWrite = 1 << 18;
    private const ulong DeCfgLfenceSerialize = 2, PlatformInfoCpuidFault = 1UL << 31, MiscFeaturesCpuidFault = 1, MiscEnableMonitoring = 1 << 7;

    private readonly VcpuCpuid _cpuid = cpuid;
    private ulong _featureControl, _hwcr, _powerControl, _osvwStatus, _platformInfo = PlatformInfoCpuidFault, _microcode = DefaultMicrocode(core.Vm.Processor);
    /// <summary>OSVW: this many errata are known of, and with a status of 0 none of them is there.</summary>
    private ulong _osvwLength = 4;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.MISC_ENABLE)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Platform._cpuid.MiscEnable,
            Write = (m, a, v) => m.Platform.SetMiscEnable(v, a.Host),
        },
        new(POWER_CTL) { Listed = MsrListing.Always, Read = (m, _) => m.Platform._powerControl, Write = (m, _, v) => Set(ref m.Platform._powerControl, v) },
        new(Msr.BIOS_SIGN_ID)
        {
            Listed = MsrListing.Always,
            Feature = model => DefaultMicrocode(model),
            Read = (m, _) => m.Platform._microcode,
            // The guest writes 0 before it asks for the revision.
            Write = (m, a, v) => !a.Host || Set(ref m.Platform._microcode, v),
        },
        new(PERF_CAPABILITIES)
        {
            // No performance monitoring: the feature bit PDCM is not offered.
            Feature = _ => 0,
            Read = (_, a) => a.Host ? 0 : null,
            Write = (_, a, v) => a.Host && v == 0,
        },
        new(PLATFORM_INFO)
        {
            Listed = MsrListing.Always,
            Feature = _ => PlatformInfoCpuidFault,
            Read = (m, a) => a.Host || m.Platform.Vm.Msrs.PlatformInfoReadable ? m.Platform._platformInfo : null,
            Write = (m, a, v) => a.Host && Set(ref m.Platform._platformInfo, v),
        },
        new(MISC_FEATURES_ENABLES)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Platform._cpuid.MiscFeatures,
            Write = (m, _, v) => m.Platform.SetMiscFeatures(v),
        },
        new(Msr.FEATURE_CONTROL)
        {
            Listed = MsrListing.Intel,
            Read = (m, _) => m.Platform.IsAmd ? null : m.Platform._featureControl,
            Write = (m, a, v) => m.Platform.SetFeatureControl(v, a.Host),
        },
        new(Msr.HWCR) { Listed = MsrListing.Amd, Read = (m, _) => m.Platform._hwcr, Write = (m, a, v) => m.Platform.SetHwcr(v, a.Host) },
        new(DE_CFG)
        {
            Listed = MsrListing.Amd,
            Feature = model => model.IsAmd ? DeCfgLfenceSerialize : null,
            Read = (m, _) => m.Platform.IsAmd ? DeCfgLfenceSerialize : null,
            Write = (m, a, v) => m.Platform.IsAmd && (a.Host || v == DeCfgLfenceSerialize),
        },
        new(OSVW_ID_LENGTH)
        {
            Read = (m, _) => m.Platform._cpuid.HasOsvw ? m.Platform._osvwLength : null,
            Write = (m, _, v) => m.Platform._cpuid.HasOsvw && Set(ref m.Platform._osvwLength, v),
        },
        new(OSVW_STATUS)
        {
            Read = (m, _) => m.Platform._cpuid.HasOsvw ? m.Platform._osvwStatus : null,
            Write = (m, _, v) => m.Platform._cpuid.HasOsvw && Set(ref m.Platform._osvwStatus, v),
        },
        // Microcode is taken, and changes nothing.
        new(UCODE_WRITE) { Write = (_, _, _) => true },
        new(PATCH_LOADER) { Write = (_, _, _) => true },
        // Frequencies, where kernels look for them.
        new(Msr.PERF_STATUS) { Read = (_, _) => 1000 | 4UL << 40 },
        new(FSB_FREQ) { Read = (_, _) => 3 },
        new(EBC_FREQUENCY_ID) { Read = (_, _) => 1 << 24 },
    ];

    /// <summary>HWCR lets the guest write the status of machine-check banks.</summary>
    public bool IsMcStatusWritable => (_hwcr & HwcrMcStatusWrite) != 0;

    private static ulong DefaultMicrocode(ProcessorModel model) => model.IsAmd ? 0x0100_0065 : 1UL << 32;

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }

    private bool SetMiscEnable(ulong value, bool host)
    {
        if (!host)
        {
            if (((value ^ _cpuid.MiscEnable) & VcpuCpuid.MiscEnableReadOnly) != 0)
                return false;
            // KVM: this read-only bit ignores writes.
            value = value & ~MiscEnableMonitoring | _cpuid.MiscEnable & MiscEnableMonitoring;
        }
        _cpuid.MiscEnable = value;
        return true;
    }

    private bool SetFeatureControl(ulong value, bool host) =>
        !IsAmd && (value & ~FeatureControlLocked) == 0 && (host || (_featureControl & FeatureControlLocked) == 0) && Set(ref _featureControl, value);

    /// <summary>CPUID faulting can be switched on where MSR_PLATFORM_INFO offers it.</summary>
    private bool SetMiscFeatures(ulong value)
    {
        if ((value & ~((_platformInfo & PlatformInfoCpuidFault) != 0 ? MiscFeaturesCpuidFault : 0)) != 0)
            return false;
        _cpuid.MiscFeatures = value;
        return true;
    }

    private bool SetHwcr(ulong value, bool host)
    {
        // Bits that BIOSes and kernels set and that mean nothing here: toggle cache, flush filter, monitor in user mode.
        value &= ~0x148UL;
        return (value & ~(HwcrTscFreqSel | HwcrMcStatusWrite)) == 0 && Set(ref _hwcr, value | (host ? 0 : _hwcr & HwcrTscFreqSel));
    }
}

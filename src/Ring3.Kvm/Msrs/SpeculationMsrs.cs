using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>
/// Speculation control: commands without effect, and a processor that needs none of them. SPEC: SDM volume 4; Intel, "Speculative Execution Side Channel
/// Mitigations".
/// </summary>
internal sealed class SpeculationMsrs(VcpuCore core, VcpuCpuid cpuid) : VcpuPart(core)
{
    /// <summary>Hardware without Meltdown, L1TF, MDS, TAA, SSB and their kin: what an interpreter is.</summary>
    private const ulong ArchCapabilities = 1 << 0 /* RDCL_NO */ | 1 << 1 /* IBRS_ALL */ | 1 << 3 /* SKIP_L1DFL_VMENTRY */ | 1 << 4 /* SSB_NO */
        | 1 << 5 /* MDS_NO */ | 1 << 6 /* PSCHANGE_MC_NO */ | 1 << 8 /* TAA_NO */ | 1 << 13 /* SBDR_SSDP_NO */ | 1 << 14 /* FBSDP_NO */
        | 1 << 15 /* PSDP_NO */ | 1 << 20 /* BHI_NO */ | 1 << 24 /* PBRSB_NO */ | 1 << 26 /* GDS_NO */ | 1 << 27 /* RFDS_NO */ | 1UL << 62 /* ITS_NO */;

    /// <summary>SPEC_CTRL: IBRS, STIBP and SSBD; BHI_DIS_S.</summary>
    private const ulong CommonControls = 7, BhiDisS = 1 << 10;

    private readonly VcpuCpuid _cpuid = cpuid;
    private ulong _specCtrl, _archCapabilities = ArchCapabilities;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.SPEC_CTRL)
        {
            Listed = MsrListing.Always,
            Read = (m, a) => a.Host || m.Speculation.HasSpecCtrl ? m.Speculation._specCtrl : null,
            Write = (m, a, v) => (v & ~m.Speculation.Controls) == 0 && (a.Host || m.Speculation.HasSpecCtrl) && Set(ref m.Speculation._specCtrl, v),
        },
        new(Msr.PRED_CMD) { IsKnownUnread = true, Write = (m, a, v) => (v & ~1UL) == 0 && (a.Host || m.Speculation._cpuid.Speculation.PredCmd) },
        new(Msr.FLUSH_CMD) { IsKnownUnread = true, Write = (m, a, v) => (v & ~1UL) == 0 && (a.Host || m.Speculation._cpuid.Speculation.FlushCmd) },
        new(Msr.ARCH_CAPABILITIES)
        {
            Listed = MsrListing.Intel,
            Feature = _ => ArchCapabilities,
            Read = (m, a) => m.Speculation.HasArchCapabilities ? m.Speculation._archCapabilities : a.Host && !m.Speculation.IsAmd ? 0 : null,
            Write = (m, a, v) => a.Host && (m.Speculation.HasArchCapabilities ? Set(ref m.Speculation._archCapabilities, v) : v == 0 && !m.Speculation.IsAmd),
        },
    ];

    /// <summary>Bits of SPEC_CTRL that the processor has: KVM lets a guest that has the register write those of its host.</summary>
    private ulong Controls => IsAmd ? CommonControls : CommonControls | BhiDisS;

    private bool HasSpecCtrl => _cpuid.Speculation.SpecCtrl;
    private bool HasArchCapabilities => _cpuid.Speculation.ArchCapabilities;

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }
}

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

    private readonly VcpuCpuid _cpuid = cpuid;
    private ulong _specCtrl, _archCapabilities = ArchCapabilities;

    public static MsrRegister[] Registers { get; } = MsrRegister<SpeculationMsrs>.Table(m => m.Speculation,
    [
        new(Msr.SPEC_CTRL)
        {
            Listed = MsrListing.Always,
            Read = (s, a) => a.Host || s._cpuid.Speculation.SpecCtrl ? s._specCtrl : null,
            Write = (s, a, v) => (v & ~7UL) == 0 && (a.Host || s._cpuid.Speculation.SpecCtrl) && Set(ref s._specCtrl, v),
        },
        new(Msr.PRED_CMD) { IsKnownUnread = true, Write = (s, a, v) => (v & ~1UL) == 0 && (a.Host || s._cpuid.Speculation.PredCmd) },
        new(Msr.FLUSH_CMD) { IsKnownUnread = true, Write = (s, a, v) => (v & ~1UL) == 0 && (a.Host || s._cpuid.Speculation.FlushCmd) },
        new(Msr.ARCH_CAPABILITIES)
        {
            Listed = MsrListing.Intel,
            Feature = _ => ArchCapabilities,
            Read = (s, a) => s._cpuid.Speculation.ArchCapabilities ? s._archCapabilities : a.Host && !s.IsAmd ? 0 : null,
            Write = (s, a, v) => a.Host && (s._cpuid.Speculation.ArchCapabilities ? Set(ref s._archCapabilities, v) : v == 0 && !s.IsAmd),
        },
    ]);

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }
}

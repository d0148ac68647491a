using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>
/// Registers of real machines that kernels probe, and that have nothing to say here: they read as zero. The guest may write most of them, for nothing; the
/// client writes the 0 that it has read.
/// </summary>
internal static class InertMsrs
{
    private const uint P5_MC_ADDR = 0, P5_MC_TYPE = 1, EBL_CR_POWERON = 0x2a, PERFCTR0 = 0xc1, PERFCTR1 = 0xc2, BBL_CR_CTL3 = 0x11e, EVNTSEL0 = 0x186,
        EVNTSEL1 = 0x187, PERF_CTL = 0x199;
    private const uint LASTBRANCH_FIRST = 0x1db, LASTBRANCH_LAST = 0x1de;
    private const uint RAPL_POWER_UNIT = 0x606, PKG_ENERGY_STATUS = 0x611, DRAM_ENERGY_STATUS = 0x619, PP0_ENERGY_STATUS = 0x639, PP1_ENERGY_STATUS = 0x641;
    private const uint K7_EVNTSEL_FIRST = 0xc001_0000, K7_PERFCTR_LAST = 0xc001_0007, SYSCFG = 0xc001_0010, IORR_FIRST = 0xc001_0016, TOP_MEM = 0xc001_001a,
        TOP_MEM2 = 0xc001_001d, NB_CFG = 0xc001_001f;
    private const uint INT_PENDING_MSG = 0xc001_0055, MMIO_CONF_BASE = 0xc001_0058, TSEG_ADDR = 0xc001_0112, TSEG_MASK = 0xc001_0113, VM_CR = 0xc001_0114,
        VM_HSAVE_PA = 0xc001_0117;
    private const uint LS_CFG = 0xc001_1020, IC_CFG = 0xc001_1021, DC_CFG = 0xc001_1022, TW_CFG = 0xc001_1023, BU_CFG2 = 0xc001_102a, F15H_EX_CFG = 0xc001_102c;

    public static MsrRegister[] Registers { get; } =
    [
        ReadOnly(P5_MC_ADDR), ReadOnly(P5_MC_TYPE), ReadOnly(Msr.PLATFORM_ID), ReadOnly(PERF_CTL),
        Inert(EBL_CR_POWERON), Inert(BBL_CR_CTL3), Inert(LASTBRANCH_FIRST, LASTBRANCH_LAST), Inert(PERFCTR0), Inert(PERFCTR1), Inert(EVNTSEL0), Inert(EVNTSEL1),
        Inert(RAPL_POWER_UNIT), Inert(PKG_ENERGY_STATUS), Inert(DRAM_ENERGY_STATUS), Inert(PP0_ENERGY_STATUS), Inert(PP1_ENERGY_STATUS),
        Inert(K7_EVNTSEL_FIRST, K7_PERFCTR_LAST), Inert(SYSCFG), Inert(IORR_FIRST, TOP_MEM), Inert(TOP_MEM2), Inert(NB_CFG), Inert(INT_PENDING_MSG),
        Inert(MMIO_CONF_BASE), Inert(TSEG_ADDR), Inert(TSEG_MASK), Inert(VM_CR), Inert(VM_HSAVE_PA),
        Inert(LS_CFG), Inert(IC_CFG), Inert(DC_CFG), Inert(TW_CFG), Inert(BU_CFG2), Inert(F15H_EX_CFG),
    ];

    private static MsrRegister Inert(uint msr) => Inert(msr, msr);

    private static MsrRegister Inert(uint first, uint last) =>
        new(first, last - first + 1) { Read = (_, _) => 0, Write = (_, a, v) => !a.Host || v == 0 };

    /// <summary>The guest gets #GP when it writes.</summary>
    private static MsrRegister ReadOnly(uint msr) => new(msr) { Read = (_, _) => 0, Write = (_, a, v) => a.Host && v == 0 };
}

namespace Ring3.Irqchip;

/// <summary>Local APIC register offsets in the xAPIC page; the x2APIC MSR is 0x800 + offset / 16. SPEC: SDM volume 3, "Local APIC Register Address
/// Map".</summary>
public static class ApicRegister
{
    public const int ID = 0x20, VERSION = 0x30, TPR = 0x80, APR = 0x90, PPR = 0xa0, EOI = 0xb0, RRD = 0xc0, LDR = 0xd0, DFR = 0xe0, SVR = 0xf0;
    public const int ISR = 0x100, TMR = 0x180, IRR = 0x200, ESR = 0x280, LVT_CMCI = 0x2f0, ICR = 0x300, ICR2 = 0x310;
    public const int LVT_TIMER = 0x320, LVT_THERMAL = 0x330, LVT_PMC = 0x340, LVT_LINT0 = 0x350, LVT_LINT1 = 0x360, LVT_ERROR = 0x370;
    public const int TMICT = 0x380, TMCCT = 0x390, TDCR = 0x3e0, SELF_IPI = 0x3f0;
}

/// <summary>Bits of SVR and the LVT entries.</summary>
internal static class ApicBits
{
    internal const uint SvrEnable = 1 << 8, SvrFocus = 1 << 9, SvrSuppressEoiBroadcast = 1 << 12, VersionDirectedEoi = 1 << 24;
    internal const uint LvtVector = 0xff, LvtMode = 7 << 8, LvtPending = 1 << 12, LvtPolarity = 1 << 13, LvtRemoteIrr = 1 << 14, LvtLevel = 1 << 15,
        LvtMasked = 1 << 16;
    internal const uint LvtTimerPeriodic = 1 << 17, LvtTimerDeadline = 2 << 17, LvtTimerMode = 3 << 17;
    internal const uint IcrLogical = 1 << 11, IcrBusy = 1 << 12, IcrAssert = 1 << 14, IcrLevel = 1 << 15;
    internal const uint DfrFlat = 0xffff_ffff, DfrCluster = 0x0fff_ffff;
    internal const uint EsrSendIllegal = 1 << 5, EsrReceiveIllegal = 1 << 6, EsrIllegalRegister = 1 << 7;
}

/// <summary>Modes of IA32_APIC_BASE bits 11 and 10.</summary>
public enum ApicMode : byte { Disabled = 0, Invalid = 1, XApic = 2, X2Apic = 3 }

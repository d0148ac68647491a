namespace Ring3.Arch;

/// <summary>MSR indices. SPEC: SDM volume 4; KVM's paravirtual MSRs: Documentation/virt/kvm/x86/msr.rst.</summary>
public static class Msr
{
    public const uint TSC = 0x10, PLATFORM_ID = 0x17, APIC_BASE = 0x1b, FEATURE_CONTROL = 0x3a, TSC_ADJUST = 0x3b, SPEC_CTRL = 0x48, PRED_CMD = 0x49,
        BIOS_SIGN_ID = 0x8b, SMBASE = 0x9e, ARCH_CAPABILITIES = 0x10a, FLUSH_CMD = 0x10b;
    public const uint SYSENTER_CS = 0x174, SYSENTER_ESP = 0x175, SYSENTER_EIP = 0x176, MCG_CAP = 0x179, MCG_STATUS = 0x17a, MCG_CTL = 0x17b,
        PERF_STATUS = 0x198, MISC_ENABLE = 0x1a0;
    public const uint DEBUGCTL = 0x1d9, PAT = 0x277, MTRR_CAP = 0xfe, MTRR_DEF_TYPE = 0x2ff, MC0_CTL = 0x400, TSC_DEADLINE = 0x6e0, XSS = 0xda0;
    public const uint X2APIC_FIRST = 0x800, X2APIC_LAST = 0x8ff;
    public const uint EFER = 0xc000_0080, STAR = 0xc000_0081, LSTAR = 0xc000_0082, CSTAR = 0xc000_0083, SFMASK = 0xc000_0084;
    public const uint FS_BASE = 0xc000_0100, GS_BASE = 0xc000_0101, KERNEL_GS_BASE = 0xc000_0102, TSC_AUX = 0xc000_0103;
    public const uint HWCR = 0xc001_0015, K7_EVNTSEL0 = 0xc001_0000;
    public const uint KVM_WALL_CLOCK = 0x11, KVM_SYSTEM_TIME = 0x12, KVM_WALL_CLOCK_NEW = 0x4b56_4d00, KVM_SYSTEM_TIME_NEW = 0x4b56_4d01,
        KVM_ASYNC_PF_EN = 0x4b56_4d02, KVM_STEAL_TIME = 0x4b56_4d03;
    public const uint KVM_PV_EOI_EN = 0x4b56_4d04, KVM_POLL_CONTROL = 0x4b56_4d05, KVM_ASYNC_PF_INT = 0x4b56_4d06, KVM_ASYNC_PF_ACK = 0x4b56_4d07;
}

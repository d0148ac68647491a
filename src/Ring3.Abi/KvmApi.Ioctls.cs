namespace Ring3.Abi;

/// <summary>Request numbers of the KVM ioctls that x86 uses. SPEC: linux/kvm.h; asm-generic/ioctl.h for the encoding.</summary>
public static partial class KvmApi
{
    public const int KVM_API_VERSION = 12;
    /// <summary>Type byte of every KVM ioctl.</summary>
    public const uint KVMIO = 0xae;

    private const uint None = 0, Write = 1u << 30, Read = 2u << 30, T = KVMIO << 8;
    private const uint RW = Read | Write;

    // System.
    public const uint KVM_GET_API_VERSION = None | T | 0x00, KVM_CREATE_VM = None | T | 0x01, KVM_GET_MSR_INDEX_LIST = RW | 4 << 16 | T | 0x02,
        KVM_CHECK_EXTENSION = None | T | 0x03;
    public const uint KVM_GET_VCPU_MMAP_SIZE = None | T | 0x04, KVM_GET_SUPPORTED_CPUID = RW | 8 << 16 | T | 0x05,
        KVM_GET_EMULATED_CPUID = RW | 8 << 16 | T | 0x09, KVM_GET_MSR_FEATURE_INDEX_LIST = RW | 4 << 16 | T | 0x0a;

    public const uint KVM_GET_SUPPORTED_HV_CPUID = RW | 8 << 16 | T | 0xc1;

    // VM.
    public const uint KVM_CREATE_VCPU = None | T | 0x41, KVM_GET_DIRTY_LOG = Write | 16 << 16 | T | 0x42, KVM_SET_NR_MMU_PAGES = None | T | 0x44,
        KVM_GET_NR_MMU_PAGES = None | T | 0x45;
    public const uint KVM_SET_USER_MEMORY_REGION = Write | 32 << 16 | T | 0x46, KVM_SET_TSS_ADDR = None | T | 0x47,
        KVM_SET_IDENTITY_MAP_ADDR = Write | 8 << 16 | T | 0x48, KVM_SET_USER_MEMORY_REGION2 = Write | 160 << 16 | T | 0x49;
    public const uint KVM_CREATE_IRQCHIP = None | T | 0x60, KVM_IRQ_LINE = Write | 8 << 16 | T | 0x61, KVM_GET_IRQCHIP = RW | 520 << 16 | T | 0x62,
        KVM_SET_IRQCHIP = Read | 520 << 16 | T | 0x63;
    public const uint KVM_CREATE_PIT = None | T | 0x64, KVM_GET_PIT = RW | 72 << 16 | T | 0x65, KVM_SET_PIT = Read | 72 << 16 | T | 0x66,
        KVM_IRQ_LINE_STATUS = RW | 8 << 16 | T | 0x67;
    public const uint KVM_REGISTER_COALESCED_MMIO = Write | 16 << 16 | T | 0x67, KVM_UNREGISTER_COALESCED_MMIO = Write | 16 << 16 | T | 0x68,
        KVM_SET_GSI_ROUTING = Write | 8 << 16 | T | 0x6a;
    public const uint KVM_REINJECT_CONTROL = None | T | 0x71, KVM_IRQFD = Write | 32 << 16 | T | 0x76, KVM_CREATE_PIT2 = Write | 64 << 16 | T | 0x77,
        KVM_SET_BOOT_CPU_ID = None | T | 0x78, KVM_IOEVENTFD = Write | 64 << 16 | T | 0x79;
    public const uint KVM_XEN_HVM_CONFIG = Write | 56 << 16 | T | 0x7a, KVM_SET_CLOCK = Write | 48 << 16 | T | 0x7b, KVM_GET_CLOCK = Read | 48 << 16 | T | 0x7c,
        KVM_GET_PIT2 = Read | 112 << 16 | T | 0x9f, KVM_SET_PIT2 = Write | 112 << 16 | T | 0xa0;
    public const uint KVM_SET_TSC_KHZ = None | T | 0xa2, KVM_GET_TSC_KHZ = None | T | 0xa3, KVM_SIGNAL_MSI = Write | 32 << 16 | T | 0xa5,
        KVM_SET_PMU_EVENT_FILTER = Write | 32 << 16 | T | 0xb2;
    public const uint KVM_CLEAR_DIRTY_LOG = RW | 24 << 16 | T | 0xc0, KVM_X86_SET_MSR_FILTER = Write | 392 << 16 | T | 0xc6,
        KVM_RESET_DIRTY_RINGS = None | T | 0xc7;
    public const uint KVM_XEN_HVM_GET_ATTR = RW | 72 << 16 | T | 0xc8, KVM_XEN_HVM_SET_ATTR = Write | 72 << 16 | T | 0xc9,
        KVM_XEN_HVM_EVTCHN_SEND = Write | 12 << 16 | T | 0xd0;
    public const uint KVM_CREATE_DEVICE = RW | 12 << 16 | T | 0xe0, KVM_SET_DEVICE_ATTR = Write | 24 << 16 | T | 0xe1,
        KVM_GET_DEVICE_ATTR = Write | 24 << 16 | T | 0xe2, KVM_HAS_DEVICE_ATTR = Write | 24 << 16 | T | 0xe3;

    public const uint KVM_MEMORY_ENCRYPT_OP = RW | 8 << 16 | T | 0xba, KVM_MEMORY_ENCRYPT_REG_REGION = Read | 16 << 16 | T | 0xbb,
        KVM_MEMORY_ENCRYPT_UNREG_REGION = Read | 16 << 16 | T | 0xbc;
    public const uint KVM_HYPERV_EVENTFD = Write | 24 << 16 | T | 0xbd, KVM_SET_MEMORY_ATTRIBUTES = Write | 32 << 16 | T | 0xd2,
        KVM_CREATE_GUEST_MEMFD = RW | 64 << 16 | T | 0xd4;

    // vCPU.
    public const uint KVM_RUN = None | T | 0x80, KVM_GET_REGS = Read | 144 << 16 | T | 0x81, KVM_SET_REGS = Write | 144 << 16 | T | 0x82,
        KVM_GET_SREGS = Read | 312 << 16 | T | 0x83, KVM_SET_SREGS = Write | 312 << 16 | T | 0x84;
    public const uint KVM_TRANSLATE = RW | 24 << 16 | T | 0x85, KVM_INTERRUPT = Write | 4 << 16 | T | 0x86, KVM_GET_MSRS = RW | 8 << 16 | T | 0x88,
        KVM_SET_MSRS = Write | 8 << 16 | T | 0x89, KVM_SET_CPUID = Write | 8 << 16 | T | 0x8a;
    public const uint KVM_SET_SIGNAL_MASK = Write | 4 << 16 | T | 0x8b, KVM_GET_FPU = Read | 416 << 16 | T | 0x8c, KVM_SET_FPU = Write | 416 << 16 | T | 0x8d,
        KVM_GET_LAPIC = Read | 1024 << 16 | T | 0x8e, KVM_SET_LAPIC = Write | 1024 << 16 | T | 0x8f;
    public const uint KVM_SET_CPUID2 = Write | 8 << 16 | T | 0x90, KVM_GET_CPUID2 = RW | 8 << 16 | T | 0x91,
        KVM_TPR_ACCESS_REPORTING = RW | 40 << 16 | T | 0x92, KVM_SET_VAPIC_ADDR = Write | 8 << 16 | T | 0x93;
    public const uint KVM_GET_MP_STATE = Read | 4 << 16 | T | 0x98, KVM_SET_MP_STATE = Write | 4 << 16 | T | 0x99, KVM_NMI = None | T | 0x9a,
        KVM_SET_GUEST_DEBUG = Write | 72 << 16 | T | 0x9b;
    public const uint KVM_X86_SETUP_MCE = Write | 8 << 16 | T | 0x9c, KVM_X86_GET_MCE_CAP_SUPPORTED = Read | 8 << 16 | T | 0x9d,
        KVM_X86_SET_MCE = Write | 64 << 16 | T | 0x9e;
    public const uint KVM_GET_VCPU_EVENTS = Read | 64 << 16 | T | 0x9f, KVM_SET_VCPU_EVENTS = Write | 64 << 16 | T | 0xa0,
        KVM_GET_DEBUGREGS = Read | 128 << 16 | T | 0xa1, KVM_SET_DEBUGREGS = Write | 128 << 16 | T | 0xa2;
    public const uint KVM_ENABLE_CAP = Write | 104 << 16 | T | 0xa3, KVM_GET_XSAVE = Read | 4096 << 16 | T | 0xa4,
        KVM_SET_XSAVE = Write | 4096 << 16 | T | 0xa5, KVM_GET_XCRS = Read | 392 << 16 | T | 0xa6, KVM_SET_XCRS = Write | 392 << 16 | T | 0xa7;
    public const uint KVM_KVMCLOCK_CTRL = None | T | 0xad, KVM_SMI = None | T | 0xb7, KVM_GET_NESTED_STATE = RW | 128 << 16 | T | 0xbe,
        KVM_SET_NESTED_STATE = Write | 128 << 16 | T | 0xbf;
    public const uint KVM_XEN_VCPU_GET_ATTR = RW | 72 << 16 | T | 0xca, KVM_XEN_VCPU_SET_ATTR = Write | 72 << 16 | T | 0xcb,
        KVM_GET_SREGS2 = Read | 320 << 16 | T | 0xcc, KVM_SET_SREGS2 = Write | 320 << 16 | T | 0xcd;
    public const uint KVM_GET_STATS_FD = None | T | 0xce, KVM_GET_XSAVE2 = Read | 4096 << 16 | T | 0xcf, KVM_PRE_FAULT_MEMORY = RW | 64 << 16 | T | 0xd5;
}

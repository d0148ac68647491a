using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm;

/// <summary>
/// What the arguments of the ioctls look like, for traces. A schema is a list of <c>name:TYPE</c>: a letter (u decimal, i signed, x hexadecimal) and the size
/// in bytes, with <c>[n]</c> for an array; <c>_n</c> skips n bytes; <c>name:@struct</c> is a structure of <see cref="Structures"/>. After <c>|</c> comes what
/// is repeated as often as the first field says.
/// </summary>
internal static class Schemas
{
    private const string Segment = "base:x8 limit:x4 selector:x2 type:u1 present:u1 dpl:u1 db:u1 s:u1 l:u1 g:u1 avl:u1 unusable:u1 _1";
    private const string Segments =
        "cs:@segment ds:@segment es:@segment fs:@segment gs:@segment ss:@segment tr:@segment ldt:@segment gdt:@dtable idt:@dtable cr0:x8 cr2:x8 cr3:x8 "
        + "cr4:x8 cr8:x8 efer:x8 apic_base:x8";
    private const string Regs =
        "rax:x8 rbx:x8 rcx:x8 rdx:x8 rsi:x8 rdi:x8 rsp:x8 rbp:x8 r8:x8 r9:x8 r10:x8 r11:x8 r12:x8 r13:x8 r14:x8 r15:x8 rip:x8 rflags:x8";
    private const string Events =
        "exception.injected:u1 exception.nr:u1 exception.has_error_code:u1 exception.pending:u1 exception.error_code:x4 interrupt.injected:u1 "
        + "interrupt.nr:u1 interrupt.soft:u1 interrupt.shadow:u1"
        + " nmi.injected:u1 nmi.pending:u1 nmi.masked:u1 _1 sipi_vector:x4 flags:x4 smi.smm:u1 smi.pending:u1 smi.smm_inside_nmi:u1 smi.latched_init:u1 "
        + "triple_fault.pending:u1 _26 exception_has_payload:u1 exception_payload:x8";
    private const string Region = "slot:x4 flags:x4 guest_phys_addr:x8 memory_size:x8 userspace_addr:x8", Attribute = "flags:x4 group:u4 attr:u8 addr:x8",
        Zone = "addr:x8 size:x4 pio:u4", Line = "irq:u4 level:u4";
    private const string Cpuid2 = "nent:u4 _4|function:x4 index:x4 flags:x4 eax:x4 ebx:x4 ecx:x4 edx:x4 _12", Msrs = "nmsrs:u4 _4|index:x4 _4 data:x8";
    private const string Channel =
        "count:u4 latched_count:u2 count_latched:u1 status_latched:u1 status:x1 read_state:u1 write_state:u1 write_latch:x1 rw_mode:u1 mode:u1 bcd:u1 "
        + "gate:u1 count_load_time:i8";
    private const string Pit = "ch0:@channel ch1:@channel ch2:@channel",
        Fpu = "fpr:x8[16] fcw:x2 fsw:x2 ftwx:x1 _1 last_opcode:x2 last_ip:x8 last_dp:x8 _256 mxcsr:x4";
    private const string Xsave = "fcw:x2 fsw:x2 ftw:x1 _19 mxcsr:x4 _484 xstate_bv:x8 xcomp_bv:x8", DebugRegs = "db:x8[4] dr6:x8 dr7:x8 flags:x8",
        Clock = "clock:u8 flags:x4 _4 realtime:u8 host_tsc:u8";

    public static readonly Dictionary<string, string> Structures = new() { ["segment"] = Segment, ["dtable"] = "base:x8 limit:x2 _6", ["channel"] = Channel };

    /// <summary>Schemas by ioctl; calls whose argument is a plain number are not here.</summary>
    public static readonly Dictionary<uint, string> Ioctls = new()
    {
        [KVM_GET_MSR_INDEX_LIST] = "nmsrs:u4|index:x4", [KVM_GET_MSR_FEATURE_INDEX_LIST] = "nmsrs:u4|index:x4", [KVM_GET_SUPPORTED_CPUID] = Cpuid2,
        [KVM_GET_EMULATED_CPUID] = Cpuid2,
        [KVM_GET_DIRTY_LOG] = "slot:x4 _4 dirty_bitmap:x8", [KVM_CLEAR_DIRTY_LOG] = "slot:x4 num_pages:u4 first_page:x8 dirty_bitmap:x8",
        [KVM_SET_USER_MEMORY_REGION] = Region,
        [KVM_SET_USER_MEMORY_REGION2] = Region + " guest_memfd_offset:x8 guest_memfd:i4", [KVM_SET_IDENTITY_MAP_ADDR] = "addr:x8", [KVM_IRQ_LINE] = Line,
        [KVM_IRQ_LINE_STATUS] = Line,
        [KVM_GET_IRQCHIP] = "chip_id:u4", [KVM_SET_IRQCHIP] = "chip_id:u4", [KVM_GET_PIT] = Pit, [KVM_SET_PIT] = Pit, [KVM_GET_PIT2] = Pit + " flags:x4",
        [KVM_SET_PIT2] = Pit + " flags:x4",
        [KVM_REGISTER_COALESCED_MMIO] = Zone, [KVM_UNREGISTER_COALESCED_MMIO] = Zone,
        [KVM_SET_GSI_ROUTING] = "nr:u4 flags:x4|gsi:u4 type:u4 flags:x4 _4 u:x4[8]", [KVM_REINJECT_CONTROL] = "pit_reinject:u1",
        [KVM_IRQFD] = "fd:i4 gsi:u4 flags:x4 resamplefd:i4", [KVM_CREATE_PIT2] = "flags:x4", [KVM_IOEVENTFD] = "datamatch:x8 addr:x8 len:u4 fd:i4 flags:x4",
        [KVM_SET_CLOCK] = Clock, [KVM_GET_CLOCK] = Clock,
        [KVM_SIGNAL_MSI] = "address_lo:x4 address_hi:x4 data:x4 flags:x4 devid:x4", [KVM_X86_SET_MSR_FILTER] = "flags:x4",
        [KVM_CREATE_DEVICE] = "type:u4 fd:i4 flags:x4", [KVM_SET_DEVICE_ATTR] = Attribute,
        [KVM_GET_DEVICE_ATTR] = Attribute, [KVM_HAS_DEVICE_ATTR] = Attribute, [KVM_SET_MEMORY_ATTRIBUTES] = "address:x8 size:x8 attributes:x8 flags:x8",
        [KVM_CREATE_GUEST_MEMFD] = "size:x8 flags:x8",
        [KVM_GET_REGS] = Regs, [KVM_SET_REGS] = Regs, [KVM_GET_SREGS] = Segments + " interrupt_bitmap:x8[4]",
        [KVM_SET_SREGS] = Segments + " interrupt_bitmap:x8[4]",
        [KVM_GET_SREGS2] = Segments + " flags:x8 pdptrs:x8[4]", [KVM_SET_SREGS2] = Segments + " flags:x8 pdptrs:x8[4]",
        [KVM_TRANSLATE] = "linear_address:x8 physical_address:x8 valid:u1 writeable:u1 usermode:u1",
        [KVM_INTERRUPT] = "irq:u4", [KVM_GET_MSRS] = Msrs, [KVM_SET_MSRS] = Msrs, [KVM_SET_CPUID] = "nent:u4 _4|function:x4 eax:x4 ebx:x4 ecx:x4 edx:x4 _4",
        [KVM_SET_SIGNAL_MASK] = "len:u4 sigset:x8",
        [KVM_GET_FPU] = Fpu, [KVM_SET_FPU] = Fpu, [KVM_GET_LAPIC] = "regs:x4[8]", [KVM_SET_LAPIC] = "regs:x4[8]", [KVM_SET_CPUID2] = Cpuid2,
        [KVM_GET_CPUID2] = Cpuid2,
        [KVM_TPR_ACCESS_REPORTING] = "enabled:u4 flags:x4", [KVM_SET_VAPIC_ADDR] = "vapic_addr:x8", [KVM_GET_MP_STATE] = "mp_state:u4",
        [KVM_SET_MP_STATE] = "mp_state:u4",
        [KVM_SET_GUEST_DEBUG] = "control:x4 _4 debugreg:x8[8]", [KVM_X86_SETUP_MCE] = "mcg_cap:x8", [KVM_X86_GET_MCE_CAP_SUPPORTED] = "mce_cap:x8",
        [KVM_X86_SET_MCE] = "status:x8 addr:x8 misc:x8 mcg_status:x8 bank:u1", [KVM_GET_VCPU_EVENTS] = Events, [KVM_SET_VCPU_EVENTS] = Events,
        [KVM_GET_DEBUGREGS] = DebugRegs, [KVM_SET_DEBUGREGS] = DebugRegs,
        [KVM_ENABLE_CAP] = "cap:u4 flags:x4 args:x8[4]", [KVM_GET_XSAVE] = Xsave, [KVM_SET_XSAVE] = Xsave, [KVM_GET_XSAVE2] = Xsave,
        [KVM_GET_XCRS] = "nr_xcrs:u4 flags:x4 xcr:u4 _4 value:x8",
        [KVM_SET_XCRS] = "nr_xcrs:u4 flags:x4 xcr:u4 _4 value:x8", [KVM_GET_NESTED_STATE] = "flags:x2 format:u2 size:u4",
        [KVM_SET_NESTED_STATE] = "flags:x2 format:u2 size:u4",
        [KVM_PRE_FAULT_MEMORY] = "gpa:x8 size:x8 flags:x8", [KVM_SET_PMU_EVENT_FILTER] = "action:u4 nevents:u4 fixed_counter_bitmap:x4 flags:x4",
    };

    /// <summary>What follows the 32 bytes of the header of kvm_run, by exit reason.</summary>
    public static readonly Dictionary<uint, string> Exits = new()
    {
        [KVM_EXIT_UNKNOWN] = "hardware_exit_reason:x8", [KVM_EXIT_IO] = "direction:u1 size:u1 port:x2 count:u4 data_offset:x8",
        [KVM_EXIT_HYPERCALL] = "nr:u8 args:x8[6] ret:x8 flags:x8",
        [KVM_EXIT_DEBUG] = "exception:u4 _4 pc:x8 dr6:x8 dr7:x8", [KVM_EXIT_MMIO] = "phys_addr:x8 data:x8 len:u4 is_write:u1",
        [KVM_EXIT_INTERNAL_ERROR] = "suberror:u4 ndata:u4 data:x8[4]",
        [KVM_EXIT_SYSTEM_EVENT] = "type:u4 ndata:u4", [KVM_EXIT_IOAPIC_EOI] = "vector:u1", [KVM_EXIT_X86_RDMSR] = "error:u1 _7 reason:x4 index:x4 data:x8",
        [KVM_EXIT_X86_WRMSR] = "error:u1 _7 reason:x4 index:x4 data:x8",
        [KVM_EXIT_NOTIFY] = "flags:x4", [KVM_EXIT_MEMORY_FAULT] = "flags:x8 gpa:x8 size:x8", [KVM_EXIT_FAIL_ENTRY] = "hardware_entry_failure_reason:x8 cpu:u4",
        [KVM_EXIT_TPR_ACCESS] = "rip:x8 is_write:u4",
    };
}

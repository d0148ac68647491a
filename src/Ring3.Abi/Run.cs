using System.Runtime.InteropServices;

// SAFETY: kvm_run's union holds fixed arrays of the lengths in linux/kvm.h; whoever indexes one asks its own count first.
namespace Ring3.Abi;

/// <summary>
/// The page shared between a vCPU and whoever runs it. The data of port I/O exits is at <see cref="io_t.data_offset"/> from its start (the next page).
/// </summary>
[StructLayout(LayoutKind.Explicit, Size = 2352)]
public struct kvm_run
{
    [FieldOffset(0)] public byte request_interrupt_window;
    [FieldOffset(1)] public byte immediate_exit;
    [FieldOffset(8)] public uint exit_reason;
    [FieldOffset(12)] public byte ready_for_interrupt_injection;
    [FieldOffset(13)] public byte if_flag;
    [FieldOffset(14)] public ushort flags;
    [FieldOffset(16)] public ulong cr8;
    [FieldOffset(24)] public ulong apic_base;

    [FieldOffset(32)] public hw_t hw;
    [FieldOffset(32)] public fail_entry_t fail_entry;
    [FieldOffset(32)] public ex_t ex;
    [FieldOffset(32)] public io_t io;
    [FieldOffset(32)] public debug_t debug;
    [FieldOffset(32)] public mmio_t mmio;
    [FieldOffset(32)] public hypercall_t hypercall;
    [FieldOffset(32)] public tpr_access_t tpr_access;
    [FieldOffset(32)] public internal_t @internal;
    [FieldOffset(32)] public emulation_failure_t emulation_failure;
    [FieldOffset(32)] public system_event_t system_event;
    [FieldOffset(32)] public eoi_t eoi;
    [FieldOffset(32)] public msr_t msr;
    [FieldOffset(32)] public xen_t xen;
    [FieldOffset(32)] public notify_t notify;
    [FieldOffset(32)] public memory_fault_t memory_fault;

    [FieldOffset(288)] public ulong kvm_valid_regs;
    [FieldOffset(296)] public ulong kvm_dirty_regs;
    [FieldOffset(304)] public kvm_sync_regs s;

    /// <summary>KVM_EXIT_UNKNOWN.</summary>
    public struct hw_t { public ulong hardware_exit_reason; }
    /// <summary>KVM_EXIT_FAIL_ENTRY.</summary>
    public struct fail_entry_t { public ulong hardware_entry_failure_reason; public uint cpu; }
    /// <summary>KVM_EXIT_EXCEPTION.</summary>
    public struct ex_t { public uint exception, error_code; }
    /// <summary>KVM_EXIT_IO.</summary>
    public struct io_t { public byte direction, size; public ushort port; public uint count; public ulong data_offset; }
    /// <summary>KVM_EXIT_DEBUG.</summary>
    public struct debug_t { public uint exception, pad; public ulong pc, dr6, dr7; }
    /// <summary>KVM_EXIT_MMIO.</summary>
    public struct mmio_t { public ulong phys_addr; public unsafe fixed byte data[8]; public uint len; public byte is_write; }
    /// <summary>KVM_EXIT_HYPERCALL.</summary>
    public struct hypercall_t { public ulong nr; public unsafe fixed ulong args[6]; public ulong ret; public uint longmode, pad; }
    /// <summary>KVM_EXIT_TPR_ACCESS.</summary>
    public struct tpr_access_t { public ulong rip; public uint is_write, pad; }
    /// <summary>KVM_EXIT_INTERNAL_ERROR.</summary>
    public struct internal_t { public uint suberror, ndata; public unsafe fixed ulong data[16]; }
    /// <summary>KVM_EXIT_INTERNAL_ERROR with KVM_INTERNAL_ERROR_EMULATION.</summary>
    public struct emulation_failure_t { public uint suberror, ndata; public ulong flags; public byte insn_size; public unsafe fixed byte insn_bytes[15]; }
    /// <summary>KVM_EXIT_SYSTEM_EVENT.</summary>
    public struct system_event_t { public uint type, ndata; public unsafe fixed ulong data[16]; }
    /// <summary>KVM_EXIT_IOAPIC_EOI.</summary>
    public struct eoi_t { public byte vector; }
    /// <summary>KVM_EXIT_X86_RDMSR and KVM_EXIT_X86_WRMSR.</summary>
    public struct msr_t { public byte error; public unsafe fixed byte pad[7]; public uint reason, index; public ulong data; }
    /// <summary>KVM_EXIT_XEN with KVM_EXIT_XEN_HCALL.</summary>
    public struct xen_t { public uint type, pad; public uint longmode, cpl; public ulong input, result; public unsafe fixed ulong @params[6]; }
    /// <summary>KVM_EXIT_NOTIFY.</summary>
    public struct notify_t { public uint flags; }
    /// <summary>KVM_EXIT_MEMORY_FAULT (Linux 6.8).</summary>
    public struct memory_fault_t { public ulong flags, gpa, size; }
}

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

// SAFETY: pins, register pages and padding are fixed arrays of the sizes that the kernel's header gives.
namespace Ring3.Abi;

/// <summary>State of one 8259A.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pic_state
{
    public byte last_irr, irr, imr, isr, priority_add, irq_base, read_reg_select, poll, special_mask, init_state, auto_eoi, rotate_on_auto_eoi,
        special_fully_nested_mode, init4, elcr, elcr_mask;
}

/// <summary>State of the I/O APIC.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_ioapic_state
{
    public ulong base_address;
    public uint ioregsel, id, irr, pad;
    public unsafe fixed ulong redirtbl[24];
}

/// <summary>KVM_GET_IRQCHIP / KVM_SET_IRQCHIP.</summary>
[StructLayout(LayoutKind.Explicit, Size = 520)]
public struct kvm_irqchip
{
    [FieldOffset(0)] public uint chip_id;
    [FieldOffset(4)] public uint pad;
    [FieldOffset(8)] public kvm_pic_state pic;
    [FieldOffset(8)] public kvm_ioapic_state ioapic;
}

/// <summary>KVM_GET_LAPIC / KVM_SET_LAPIC: the register page.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_lapic_state { public unsafe fixed byte regs[0x400]; }

[StructLayout(LayoutKind.Sequential)]
public struct kvm_pit_channel_state
{
    public uint count;
    public ushort latched_count;
    public byte count_latched, status_latched, status, read_state, write_state, write_latch, rw_mode, mode, bcd, gate;
    public long count_load_time;
}

/// <summary>KVM_GET_PIT2 / KVM_SET_PIT2.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pit_state2
{
    public channel_array channels;
    public uint flags;
    public unsafe fixed uint reserved[9];

    [InlineArray(3)]
    public struct channel_array { private kvm_pit_channel_state _first; }
}

/// <summary>KVM_CREATE_PIT2.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pit_config
{
    public uint flags;
    public unsafe fixed uint pad[15];
}

/// <summary>KVM_IRQ_LINE and KVM_IRQ_LINE_STATUS (which overwrites irq with the status).</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_level { public uint irq, level; }

[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_routing_irqchip { public uint irqchip, pin; }

[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_routing_msi { public uint address_lo, address_hi, data, devid; }

[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_routing_hv_sint { public uint vcpu, sint; }

[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_routing_xen_evtchn { public uint port, vcpu, priority; }

/// <summary>One route of KVM_SET_GSI_ROUTING.</summary>
[StructLayout(LayoutKind.Explicit, Size = 48)]
public struct kvm_irq_routing_entry
{
    [FieldOffset(0)] public uint gsi;
    [FieldOffset(4)] public uint type;
    [FieldOffset(8)] public uint flags;
    [FieldOffset(12)] public uint pad;
    [FieldOffset(16)] public kvm_irq_routing_irqchip irqchip;
    [FieldOffset(16)] public kvm_irq_routing_msi msi;
    [FieldOffset(16)] public kvm_irq_routing_hv_sint hv_sint;
    [FieldOffset(16)] public kvm_irq_routing_xen_evtchn xen_evtchn;
}

/// <summary>KVM_IRQFD.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_irqfd
{
    public uint fd, gsi, flags, resamplefd;
    public unsafe fixed byte pad[16];
}

/// <summary>KVM_IOEVENTFD.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_ioeventfd
{
    public ulong datamatch, addr;
    public uint len;
    public int fd;
    public uint flags;
    public unsafe fixed byte pad[36];
}

/// <summary>KVM_SIGNAL_MSI.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msi
{
    public uint address_lo, address_hi, data, flags, devid;
    public unsafe fixed byte pad[12];
}

/// <summary>KVM_GET_CLOCK / KVM_SET_CLOCK.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_clock_data
{
    public ulong clock;
    public uint flags, pad0;
    public ulong realtime, host_tsc;
    public unsafe fixed uint pad[4];
}

/// <summary>KVM_REGISTER_COALESCED_MMIO / KVM_UNREGISTER_COALESCED_MMIO.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_coalesced_mmio_zone
{
    public ulong addr;
    public uint size;
    /// <summary>1: port I/O. The header calls it pio (in a union with pad).</summary>
    public uint pio;
}

[StructLayout(LayoutKind.Sequential)]
public struct kvm_coalesced_mmio
{
    public ulong phys_addr;
    public uint len, pio;
    public unsafe fixed byte data[8];
}

/// <summary>Header of the ring of coalesced writes; entries follow to the end of the page.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_coalesced_mmio_ring { public uint first, last; }

/// <summary>KVM_SET_USER_MEMORY_REGION.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_userspace_memory_region
{
    public uint slot, flags;
    public ulong guest_phys_addr, memory_size, userspace_addr;
}

/// <summary>KVM_SET_USER_MEMORY_REGION2.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_userspace_memory_region2
{
    public uint slot, flags;
    public ulong guest_phys_addr, memory_size, userspace_addr, guest_memfd_offset;
    public uint guest_memfd, pad1;
    public unsafe fixed ulong pad2[14];
}

/// <summary>KVM_GET_DIRTY_LOG.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_dirty_log { public uint slot, padding1; public ulong dirty_bitmap; }

/// <summary>KVM_CLEAR_DIRTY_LOG.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_clear_dirty_log { public uint slot, num_pages; public ulong first_page, dirty_bitmap; }

/// <summary>KVM_ENABLE_CAP.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_enable_cap
{
    public uint cap, flags;
    public unsafe fixed ulong args[4];
    public unsafe fixed byte pad[64];
}

/// <summary>KVM_SET_DEVICE_ATTR and its siblings.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_device_attr { public uint flags, group; public ulong attr, addr; }

/// <summary>KVM_REINJECT_CONTROL.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_reinject_control
{
    public byte pit_reinject;
    public unsafe fixed byte reserved[31];
}

/// <summary>One range of KVM_X86_SET_MSR_FILTER.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msr_filter_range
{
    public uint flags, nmsrs, @base;
    /// <summary>Address of the bitmap in the caller's memory; a set bit allows.</summary>
    public ulong bitmap;
}

/// <summary>KVM_X86_SET_MSR_FILTER.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msr_filter
{
    public uint flags;
    public range_array ranges;

    [InlineArray(16)]
    public struct range_array { private kvm_msr_filter_range _first; }
}

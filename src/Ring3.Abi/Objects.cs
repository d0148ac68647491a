using System.Runtime.InteropServices;

// SAFETY: reserved words are bounded by linux/kvm.h; addresses in these structures are the client's and plain numbers.
namespace Ring3.Abi;

/// <summary>KVM_CREATE_DEVICE.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_create_device { public uint type, fd, flags; }

/// <summary>KVM_CREATE_GUEST_MEMFD (Linux 6.8).</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_create_guest_memfd
{
    public ulong size, flags;
    public unsafe fixed ulong reserved[6];
}

/// <summary>KVM_SET_MEMORY_ATTRIBUTES (Linux 6.8).</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_memory_attributes { public ulong address, size, attributes, flags; }

/// <summary>KVM_PRE_FAULT_MEMORY (Linux 6.11).</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pre_fault_memory
{
    public ulong gpa, size, flags;
    public unsafe fixed ulong padding[5];
}

/// <summary>One entry of a dirty ring.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_dirty_gfn
{
    public uint flags, slot;
    public ulong offset;
}

/// <summary>Header of KVM_SET_SIGNAL_MASK; <see cref="len"/> bytes of signal set follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_signal_mask { public uint len; }

/// <summary>KVM_TPR_ACCESS_REPORTING.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_tpr_access_ctl
{
    public uint enabled, flags;
    public unsafe fixed uint reserved[8];
}

/// <summary>KVM_SET_VAPIC_ADDR.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_vapic_addr { public ulong vapic_addr; }

/// <summary>KVM_GET_PIT / KVM_SET_PIT.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pit_state { public kvm_pit_state2.channel_array channels; }

/// <summary>Header of KVM_GET_MSRS / KVM_SET_MSRS; entries follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msrs { public uint nmsrs, pad; }

/// <summary>Header of KVM_GET_MSR_INDEX_LIST; indices follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_msr_list { public uint nmsrs; }

/// <summary>Header of the CPUID calls; entries follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid2 { public uint nent, padding; }

/// <summary>Header of KVM_SET_CPUID; entries follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid { public uint nent, padding; }

/// <summary>One CPUID leaf of KVM_SET_CPUID.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_cpuid_entry { public uint function, eax, ebx, ecx, edx, padding; }

/// <summary>Header of KVM_SET_GSI_ROUTING; entries follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_irq_routing { public uint nr, flags; }

/// <summary>Header of KVM_SET_PMU_EVENT_FILTER; 64-bit events follow.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_pmu_event_filter
{
    public uint action, nevents, fixed_counter_bitmap, flags;
    public unsafe fixed uint pad[4];
}

/// <summary>KVM_MEMORY_ENCRYPT_REG_REGION and its opposite.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_enc_region { public ulong addr, size; }

/// <summary>KVM_HYPERV_EVENTFD.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_hyperv_eventfd
{
    public uint conn_id;
    public int fd;
    public uint flags;
    public unsafe fixed uint padding[3];
}

/// <summary>First bytes of what a statistics descriptor reads as. Offsets are from the start of the file.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_stats_header { public uint flags, name_size, num_desc, id_offset, desc_offset, data_offset; }

/// <summary>One statistic; its name follows, padded to kvm_stats_header.name_size.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_stats_desc
{
    public uint flags;
    /// <summary>The unit is scaled by ten (or two) to this power.</summary>
    public short exponent;
    /// <summary>Number of 64-bit values.</summary>
    public ushort size;
    /// <summary>From the start of the data block.</summary>
    public uint offset, bucket_size;
}

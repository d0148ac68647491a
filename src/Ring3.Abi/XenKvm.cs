using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

// SAFETY: the one fixed array is padding of the length in the kernel's header; overlapping members are plain numbers.
namespace Ring3.Abi;

/// <summary>KVM's Xen interface: flags of KVM_CAP_XEN_HVM and numbers of attributes. SPEC: asm/kvm.h, api.rst "KVM_CAP_XEN_HVM".</summary>
public static partial class KvmApi
{
    public const uint KVM_XEN_HVM_CONFIG_HYPERCALL_MSR = 1 << 0, KVM_XEN_HVM_CONFIG_INTERCEPT_HCALL = 1 << 1, KVM_XEN_HVM_CONFIG_SHARED_INFO = 1 << 2;
    public const uint KVM_XEN_HVM_CONFIG_RUNSTATE = 1 << 3, KVM_XEN_HVM_CONFIG_EVTCHN_2LEVEL = 1 << 4, KVM_XEN_HVM_CONFIG_EVTCHN_SEND = 1 << 5;
    public const uint KVM_XEN_HVM_CONFIG_RUNSTATE_UPDATE_FLAG = 1 << 6, KVM_XEN_HVM_CONFIG_PVCLOCK_TSC_UNSTABLE = 1 << 7,
        KVM_XEN_HVM_CONFIG_SHARED_INFO_HVA = 1 << 8;

    public const ulong KVM_XEN_INVALID_GFN = ulong.MaxValue, KVM_XEN_INVALID_GPA = ulong.MaxValue;
    public const uint KVM_XEN_EVTCHN_DEASSIGN = 1 << 0, KVM_XEN_EVTCHN_UPDATE = 1 << 1, KVM_XEN_EVTCHN_RESET = 1 << 2;

    public const ushort KVM_XEN_ATTR_TYPE_LONG_MODE = 0, KVM_XEN_ATTR_TYPE_SHARED_INFO = 1, KVM_XEN_ATTR_TYPE_UPCALL_VECTOR = 2, KVM_XEN_ATTR_TYPE_EVTCHN = 3;
    public const ushort KVM_XEN_ATTR_TYPE_XEN_VERSION = 4, KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG = 5, KVM_XEN_ATTR_TYPE_SHARED_INFO_HVA = 6;

    public const ushort KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO = 0, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO = 1, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR = 2,
        KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT = 3;
    public const ushort KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA = 4, KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADJUST = 5, KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID = 6,
        KVM_XEN_VCPU_ATTR_TYPE_TIMER = 7;
    public const ushort KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR = 8, KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO_HVA = 9;

    /// <summary>Ring3's extension, not in Linux: VM attribute; u.fifo turns FIFO event channels on and gives a page of the event array. See
    /// docs/xen.md.</summary>
    public const ushort RING3_XEN_ATTR_TYPE_FIFO = 0x8000;
    /// <summary>Ring3's extension, not in Linux: VM attribute; u.pirq says which event channel the messages (MSI) that name a PIRQ arrive on. See
    /// docs/xen.md.</summary>
    public const ushort RING3_XEN_ATTR_TYPE_PIRQ = 0x8001;
    /// <summary>Ring3's extension, not in Linux: vCPU attribute; u.gpa is the FIFO control block, KVM_XEN_INVALID_GPA none.</summary>
    public const ushort RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL = 0x8000;
    /// <summary>Ring3's extension, not in Linux: vCPU attribute; u.fifo_tails is the last port of each FIFO queue, 0 none.</summary>
    public const ushort RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS = 0x8001;
    /// <summary>u.fifo.command: forget everything and return to two levels; turn on without pages; add the next page of the event array.</summary>
    public const uint RING3_XEN_FIFO_OFF = 0, RING3_XEN_FIFO_ON = 1, RING3_XEN_FIFO_EXPAND = 2;
}

/// <summary>KVM_XEN_HVM_CONFIG.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct kvm_xen_hvm_config
{
    public uint flags, msr;
    public ulong blob_addr_32, blob_addr_64;
    public byte blob_size_32, blob_size_64;
    public unsafe fixed byte pad2[30];
}

/// <summary>KVM_XEN_HVM_GET_ATTR and KVM_XEN_HVM_SET_ATTR.</summary>
[StructLayout(LayoutKind.Explicit, Size = 72)]
public struct kvm_xen_hvm_attr
{
    [FieldOffset(0)] public ushort type;
    [FieldOffset(8)] public byte long_mode;
    [FieldOffset(8)] public byte vector;
    [FieldOffset(8)] public byte runstate_update_flag;
    [FieldOffset(8)] public ulong gfn;
    [FieldOffset(8)] public ulong hva;
    [FieldOffset(8)] public evtchn_t evtchn;
    [FieldOffset(8)] public uint xen_version;
    [FieldOffset(8)] public fifo_t fifo;
    [FieldOffset(8)] public pirq_t pirq;

    /// <summary>Where an event that the guest sends goes: port, vcpu and priority, or (with port 0) an eventfd in the place of vcpu.</summary>
    public struct evtchn_t { public uint send_port, type, flags, port, vcpu, priority; }
    /// <summary>Ring3's extension: RING3_XEN_FIFO_*, and the page frame for EXPAND. Reading gives the number of pages in <see cref="pages"/>.</summary>
    public struct fifo_t { public uint command, pages; public ulong gfn; }
    /// <summary>Ring3's extension: a PIRQ and its target; port 0: none.</summary>
    public struct pirq_t { public uint pirq, port, vcpu, priority; }
}

/// <summary>KVM_XEN_VCPU_GET_ATTR and KVM_XEN_VCPU_SET_ATTR.</summary>
[StructLayout(LayoutKind.Explicit, Size = 72)]
public struct kvm_xen_vcpu_attr
{
    [FieldOffset(0)] public ushort type;
    [FieldOffset(8)] public ulong gpa;
    [FieldOffset(8)] public ulong hva;
    [FieldOffset(8)] public runstate_t runstate;
    [FieldOffset(8)] public uint vcpu_id;
    [FieldOffset(8)] public timer_t timer;
    [FieldOffset(8)] public byte vector;
    [FieldOffset(8)] public fifo_tails_t fifo_tails;

    public struct runstate_t { public ulong state, state_entry_time, time_running, time_runnable, time_blocked, time_offline; }
    public struct timer_t { public uint port, priority; public ulong expires_ns; }
    /// <summary>Ring3's extension: a port for each priority.</summary>
    [InlineArray((int)XenAbi.Fifo.Queues)]
    public struct fifo_tails_t { private uint _first; }
}

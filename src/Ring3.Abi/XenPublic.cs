namespace Ring3.Abi;

/// <summary>
/// Numbers and layouts of Xen's guest interface on x86. SPEC: Xen public headers (xen.h, event_channel.h, sched.h, vcpu.h, version.h, memory.h,
/// arch-x86/cpuid.h, hvm/*.h).
/// Results of hypercalls are negated Xen errnos, which agree with Linux's for the ones used here.
/// </summary>
public static class XenAbi
{
    // Hypercalls.
    public const uint memory_op = 12, set_timer_op = 15, xen_version = 17, console_io = 18, grant_table_op = 20, vcpu_op = 24, sched_op = 29,
        event_channel_op = 32, physdev_op = 33, hvm_op = 34;

    // event_channel_op.
    public const uint EVTCHNOP_bind_interdomain = 0, EVTCHNOP_bind_virq = 1, EVTCHNOP_bind_pirq = 2, EVTCHNOP_close = 3, EVTCHNOP_send = 4, EVTCHNOP_status = 5,
        EVTCHNOP_alloc_unbound = 6, EVTCHNOP_bind_ipi = 7;
    public const uint EVTCHNOP_bind_vcpu = 8, EVTCHNOP_unmask = 9, EVTCHNOP_reset = 10, EVTCHNOP_init_control = 11, EVTCHNOP_expand_array = 12,
        EVTCHNOP_set_priority = 13;
    public const uint EVTCHNSTAT_closed = 0, EVTCHNSTAT_unbound = 1, EVTCHNSTAT_interdomain = 2, EVTCHNSTAT_pirq = 3, EVTCHNSTAT_virq = 4, EVTCHNSTAT_ipi = 5;

    // sched_op.
    public const uint SCHEDOP_yield = 0, SCHEDOP_block = 1, SCHEDOP_shutdown = 2, SCHEDOP_poll = 3, SCHEDOP_pin_override = 7;
    public const uint SHUTDOWN_poweroff = 0, SHUTDOWN_reboot = 1, SHUTDOWN_suspend = 2, SHUTDOWN_crash = 3, SHUTDOWN_watchdog = 4, SHUTDOWN_soft_reset = 5;
    /// <summary>Ports that one SCHEDOP_poll may name.</summary>
    public const uint MaxPollPorts = 128;

    // vcpu_op.
    public const uint VCPUOP_initialise = 0, VCPUOP_up = 1, VCPUOP_down = 2, VCPUOP_is_up = 3, VCPUOP_get_runstate_info = 4,
        VCPUOP_register_runstate_memory_area = 5, VCPUOP_set_periodic_timer = 6;
    public const uint VCPUOP_stop_periodic_timer = 7, VCPUOP_set_singleshot_timer = 8, VCPUOP_stop_singleshot_timer = 9, VCPUOP_register_vcpu_info = 10,
        VCPUOP_register_vcpu_time_memory_area = 13;

    // xen_version.
    public const uint XENVER_version = 0, XENVER_extraversion = 1, XENVER_compile_info = 2, XENVER_capabilities = 3, XENVER_changeset = 4,
        XENVER_platform_parameters = 5, XENVER_get_features = 6, XENVER_pagesize = 7;
    public const uint XENVER_guest_handle = 8, XENVER_commandline = 9, XENVER_build_id = 10;

    // Run states.
    public const int RUNSTATE_running = 0, RUNSTATE_runnable = 1, RUNSTATE_blocked = 2, RUNSTATE_offline = 3;
    /// <summary>Bit of state_entry_time that says "being written".</summary>
    public const ulong XEN_RUNSTATE_UPDATE = 1UL << 63;

    /// <summary>Event channels of the two-level ABI: bits in 64 words of 64, or 32 of 32.</summary>
    public const uint TwoLevelPorts64 = 4096, TwoLevelPorts32 = 1024;

    /// <summary>struct shared_info: offsets of its 64-bit and 32-bit forms. The first 32 vcpu_info of 64 bytes are at 0 in both.</summary>
    public static class SharedInfo
    {
        public const int Pending = 0x800, Mask64 = 0xa00, Mask32 = 0x880;
        public const int WallClock64 = 0xc00, WallClock32 = 0x900, WallClockSecHi64 = 0xc0c, WallClockSecHi32 = 0x924;
    }

    /// <summary>struct vcpu_info, 64 bytes. The selector is 32 bits wide at 4 for 32-bit guests, 64 bits wide at 8 for 64-bit ones.</summary>
    public static class VcpuInfo
    {
        public const int Size = 64, UpcallPending = 0, UpcallMask = 1, PendingSel32 = 4, PendingSel64 = 8, Time = 32;
    }

    /// <summary>struct vcpu_runstate_info: state, (padding,) state_entry_time, time[4].</summary>
    public static class RunstateInfo
    {
        public const int Size64 = 0x30, Size32 = 0x2c, EntryTime64 = 8, EntryTime32 = 4, Times = 4;
    }

    /// <summary>FIFO event channels. SPEC: event_channel.h, "FIFO ABI".</summary>
    public static class Fifo
    {
        public const uint Ports = 131_072, PortsPerPage = 1024, MaxPages = Ports / PortsPerPage, Queues = 16, DefaultPriority = 7;
        public const int PendingBit = 31, MaskedBit = 30, LinkedBit = 29, BusyBit = 28;
        public const uint LinkMask = (1u << 17) - 1;
        /// <summary>Control block: ready bits, padding, heads of the 16 queues.</summary>
        public const int ControlReady = 0, ControlHead = 8, ControlSize = 8 + 16 * 4;
    }
}

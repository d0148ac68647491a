using static Ring3.Kvm.StatDescriptor<Ring3.Kvm.Vcpu>;

namespace Ring3.Kvm;

/// <summary>Counters of one vCPU, with KVM's names (see Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD).
/// Written by the vCPU's thread; a reader may see them one update late.</summary>
public sealed class VcpuStats
{
    internal VcpuStats() { }

    internal ulong exits, io_exits, mmio_exits, signal_exits, irq_window_exits, nmi_window_exits, halt_exits, request_irq_exits, irq_exits, irq_injections,
        nmi_injections, hypercalls, insn_emulation, insn_emulation_fail;
    internal ulong halt_successful_poll, halt_attempted_poll, halt_poll_invalid, halt_wakeup, halt_poll_success_ns, halt_poll_fail_ns, halt_wait_ns;
    internal ulong tlb_flush, invlpg, req_event, directed_yield_attempted, directed_yield_successful, preemption_reported, guest_mode, notify_window_exits;
    /// <summary>Flushes of a few ranges (not in tlb_flush); of tlb_flush, those because a root was loaded,
    /// and those that another vCPU of the guest asked for (KVM_VCPU_FLUSH_TLB).</summary>
    internal ulong tlb_flush_range, tlb_flush_root, tlb_flush_paravirt;
    /// <summary>Exits that KVM does not count apart.</summary>
    internal ulong cpuid_exits, msr_exits, user_exits, request_exits, pause_exits;
    internal readonly LogHistogram halt_poll_success_hist = new(), halt_poll_fail_hist = new(), halt_wait_hist = new();

    /// <summary>KVM's statistics of a vCPU, in KVM's order.
    /// Zero for what a software processor has not: shadow paging, nested guests, host state to reload.</summary>
    public static IReadOnlyList<StatDescriptor<Vcpu>> Descriptors { get; } =
    [
        Counter("halt_successful_poll", v => v.Stats.halt_successful_poll), Counter("halt_attempted_poll", v => v.Stats.halt_attempted_poll),
        Counter("halt_poll_invalid", v => v.Stats.halt_poll_invalid), Counter("halt_wakeup", v => v.Stats.halt_wakeup),
        Nanoseconds("halt_poll_success_ns", v => v.Stats.halt_poll_success_ns), Nanoseconds("halt_poll_fail_ns", v => v.Stats.halt_poll_fail_ns),
        Nanoseconds("halt_wait_ns", v => v.Stats.halt_wait_ns), LogHistogram("halt_poll_success_hist", v => v.Stats.halt_poll_success_hist),
        LogHistogram("halt_poll_fail_hist", v => v.Stats.halt_poll_fail_hist), LogHistogram("halt_wait_hist", v => v.Stats.halt_wait_hist),
        Boolean("blocking", v => v.Requests.IsBlocked), Counter("pf_taken", v => v.MmuStats.PfTaken), Counter("pf_fixed", v => v.MmuStats.PfFixed),
        Counter("pf_emulate", v => v.MmuStats.PfEmulate), Counter("pf_spurious", v => v.MmuStats.PfSpurious), Counter("pf_fast", v => v.MmuStats.PfFast),
        Counter("pf_mmio_spte_created", v => v.MmuStats.PfMmioSpteCreated), Counter("pf_guest", _ => 0), Counter("tlb_flush", v => v.Stats.tlb_flush),
        Counter("invlpg", v => v.Stats.invlpg), Counter("exits", v => v.Stats.exits), Counter("io_exits", v => v.Stats.io_exits),
        Counter("mmio_exits", v => v.Stats.mmio_exits), Counter("signal_exits", v => v.Stats.signal_exits),
        Counter("irq_window_exits", v => v.Stats.irq_window_exits), Counter("nmi_window_exits", v => v.Stats.nmi_window_exits), Counter("l1d_flush", _ => 0),
        Counter("halt_exits", v => v.Stats.halt_exits), Counter("request_irq_exits", v => v.Stats.request_irq_exits),
        Counter("irq_exits", v => v.Stats.irq_exits), Counter("host_state_reload", _ => 0), Counter("fpu_reload", _ => 0),
        Counter("insn_emulation", v => v.Stats.insn_emulation), Counter("insn_emulation_fail", v => v.Stats.insn_emulation_fail),
        Counter("hypercalls", v => v.Stats.hypercalls), Counter("irq_injections", v => v.Stats.irq_injections),
        Counter("nmi_injections", v => v.Stats.nmi_injections), Counter("req_event", v => v.Stats.req_event), Counter("nested_run", _ => 0),
        Counter("directed_yield_attempted", v => v.Stats.directed_yield_attempted),
        Counter("directed_yield_successful", v => v.Stats.directed_yield_successful), Counter("preemption_reported", v => v.Stats.preemption_reported),
        Counter("preemption_other", _ => 0), Boolean("guest_mode", v => v.Stats.guest_mode != 0),
        Counter("notify_window_exits", v => v.Stats.notify_window_exits),
        .. RequestStats<Vcpu>(v => v.Requests.Counters),
    ];

    /// <summary>The counters of requests, which KVM has not: behind its own on every statistics descriptor.
    /// Clients take a name for one statistic, so those of the VM have a prefix.</summary>
    internal static IEnumerable<StatDescriptor<T>> RequestStats<T>(Func<T, RequestCounters> read, string prefix = "") =>
    [
        StatDescriptor<T>.Counter(prefix + "requests", o => (ulong)read(o).Requests), StatDescriptor<T>.Counter(prefix + "kicks", o => (ulong)read(o).Kicks),
        StatDescriptor<T>.Counter(prefix + "kicks_elided", o => (ulong)read(o).KicksElided),
        StatDescriptor<T>.Counter(prefix + "request_waits", o => (ulong)read(o).Waits),
        StatDescriptor<T>.Counter(prefix + "request_sleeps", o => (ulong)read(o).Sleeps),
        StatDescriptor<T>.Counter(prefix + "wakeups", o => (ulong)read(o).Wakeups),
    ];

    /// <summary>Counters of Ring3 beyond KVM's.</summary>
    internal static IReadOnlyList<StatDescriptor<Vcpu>> Own { get; } =
    [
        Counter("tlb_flush_range", v => v.Stats.tlb_flush_range), Counter("tlb_flush_root", v => v.Stats.tlb_flush_root),
        Counter("tlb_flush_paravirt", v => v.Stats.tlb_flush_paravirt), Counter("cpuid_exits", v => v.Stats.cpuid_exits),
        Counter("msr_exits", v => v.Stats.msr_exits), Counter("user_exits", v => v.Stats.user_exits), Counter("request_exits", v => v.Stats.request_exits),
        Counter("pause_exits", v => v.Stats.pause_exits), Counter("instructions", v => v.InstructionsRetired),
    ];

    /// <summary>Every counter by name.</summary>
    public static IEnumerable<(string Name, ulong Value)> All(Vcpu vcpu) =>
        Descriptors.Concat(Own).Where(d => d.Size == 1).Select(d => (d.Name, d.Read(vcpu, 0)));
}

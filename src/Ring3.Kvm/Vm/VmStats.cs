namespace Ring3.Kvm;

/// <summary>Counters of one vCPU, with KVM's names (see Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD). Written by the vCPU's thread; a reader may see them one update late.</summary>
public sealed class VcpuStats
{
    public ulong exits, io_exits, mmio_exits, signal_exits, irq_window_exits, nmi_window_exits, halt_exits, request_irq_exits, irq_exits, irq_injections, nmi_injections, hypercalls, insn_emulation, insn_emulation_fail;
    public ulong halt_successful_poll, halt_attempted_poll, halt_poll_invalid, halt_wakeup, halt_poll_success_ns, halt_poll_fail_ns, halt_wait_ns;
    public ulong pf_taken, pf_fixed, pf_mmio_spte_created, tlb_flush, invlpg, req_event, directed_yield_attempted, directed_yield_successful, preemption_reported, guest_mode, notify_window_exits;
    /// <summary>Exits that KVM does not count apart.</summary>
    public ulong cpuid_exits, msr_exits, user_exits, request_exits, pause_exits;

    /// <summary>Every counter by name.</summary>
    public IEnumerable<(string Name, ulong Value)> All()
    {
        foreach (var f in typeof(VcpuStats).GetFields())
            yield return (f.Name, (ulong)f.GetValue(this)!);
    }
}

/// <summary>Counters of a VM, with KVM's names; those of <see cref="VcpuRequests"/> and the page gauges are filled when they are asked for.</summary>
public sealed class VmStats
{
    /// <summary>Flushes of all vCPUs' translations asked for, and those that met a running vCPU.</summary>
    public long remote_tlb_flush_requests, remote_tlb_flush;
    /// <summary>Requests that set a bit, kicks sent, kicks that an earlier one made unnecessary, waits for an acknowledgement that had to sleep, wake-ups of halted vCPUs.</summary>
    public long requests, kicks, kicks_coalesced, request_waits, wakeups;
    /// <summary>Mapped pages by size; table pages in use; roots zapped; mappings split.</summary>
    public long pages_4k, pages_2m, pages_1g, mmu_table_pages, mmu_roots_zapped, nx_lpage_splits;
}

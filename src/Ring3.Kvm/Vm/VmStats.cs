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

/// <summary>Counters of a VM, with KVM's names. Updated with interlocked operations.</summary>
public sealed class VmStats
{
    public long remote_tlb_flush, remote_tlb_flush_requests, mmu_shadow_zapped, nx_lpage_splits, pages_4k, pages_2m, pages_1g, max_mmu_page_hash_collisions;
}

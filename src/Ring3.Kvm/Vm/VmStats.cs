using Ring3.Mmu;
using Ring3.Reclaim;
using Ring3.Sync;
using static Ring3.Kvm.StatDescriptor<Ring3.Kvm.Vm>;

namespace Ring3.Kvm;

/// <summary>Counters of a VM, with KVM's names; those of <see cref="VcpuRequests"/> and the page gauges are filled when they are asked for.</summary>
public sealed class VmStats
{
    internal VmStats() { }

    /// <summary>Flushes of all vCPUs' translations asked for, and those that met a running vCPU.</summary>
    internal long remote_tlb_flush_requests, remote_tlb_flush;
    /// <summary>Of the flushes asked for: those of a few ranges; those that a vCPU did together with an earlier one. And flushes that were not needed: roots
    /// freed, entries removed that no processor caches.</summary>
    internal long remote_tlb_flush_ranges, tlb_flush_coalesced, tlb_flush_elided;
    /// <summary>Sums of <see cref="RequestCounters"/>: requests made, kicks sent, requests that needed neither kick nor wake-up, requests that waited, those
    /// that slept meanwhile, wake-ups.</summary>
    internal long requests, kicks, kicks_elided, request_waits, request_sleeps, wakeups;
    /// <summary>Mapped pages by size; table pages in use; roots zapped; tables that are there because huge mappings may not be executed;
    /// huge mappings split for any reason.</summary>
    internal long pages_4k, pages_2m, pages_1g, mmu_table_pages, mmu_roots_zapped, nx_lpage_splits, huge_splits;

    /// <summary>The working set when the gauges were last brought up to date; null without a resident limit.</summary>
    internal WorkingSet? WorkingSet { get; set; }

    /// <summary>What KVM_GET_STATS_FD shows: KVM's statistics, then Ring3's.</summary>
    public static IReadOnlyList<StatDescriptor<Vm>> All => s_all ??= [.. Descriptors, .. Own, .. WorkingSetStats.Descriptors];

    private static IReadOnlyList<StatDescriptor<Vm>>? s_all;

    /// <summary>Roots zapped by policy (a VM has one); the worker's share of a processor in percent, processor time that it took for bulk work, times that it
    /// rested because the share was used up, slices that ended early; holds of mmu_lock that a zap gave up because somebody waited.</summary>
    internal long roots_zapped_inline, roots_zapped_sync, roots_zapped_worker, zap_share_percent, zap_worker_ns, zap_worker_pauses, zap_worker_yields,
        zap_lock_breaks;

    /// <summary><see cref="RequestCounters"/> of all vCPUs.</summary>
    internal RequestCounters Requests { get; private set; }

    /// <summary>Brings the gauges up to date.</summary>
    internal void Update(VmCore core, TdpMmu mmu, ResidentLimit? resident)
    {
        RequestCounters c = default;
        foreach (VcpuRequests r in core.Vcpus.Requests)
            c += r.Counters;
        Requests = c;
        (requests, kicks, kicks_elided, request_waits, request_sleeps, wakeups) = (c.Requests, c.Kicks, c.KicksElided, c.Waits, c.Sleeps, c.Wakeups);
        WorkingSet = resident?.Measure();
        MmuStats m = mmu.GetStats();
        (pages_4k, pages_2m, pages_1g) = ((long)m.Pages4K, (long)m.Pages2M, (long)m.Pages1G);
        tlb_flush_elided = (long)m.TlbFlushesElided;
        (nx_lpage_splits, huge_splits) = ((long)m.NxSplits, (long)m.HugeSplits);
        (mmu_table_pages, mmu_roots_zapped) = ((long)m.TablePages, (long)m.RootsZapped);
        (roots_zapped_inline, roots_zapped_sync, roots_zapped_worker) = core.Options.ZapPolicy switch
        {
            RootZapPolicy.Inline => (mmu_roots_zapped, 0L, 0L),
            RootZapPolicy.Sync => (0L, mmu_roots_zapped, 0L),
            _ => (0L, 0L, mmu_roots_zapped),
        };
        CpuShare share = core.Work.Share;
        (zap_share_percent, zap_worker_ns, zap_worker_pauses) = (share.Percent, share.UsedNs, share.Pauses);
        (zap_worker_yields, zap_lock_breaks) = (core.Work.Yields, (long)m.ZapLockBreaks);
    }

    /// <summary>KVM's statistics of a VM, in KVM's order. Shadow paging's are zero: there is none.
    /// Read after <see cref="Vm.Stats"/> has brought the gauges up to date.</summary>
    internal static IReadOnlyList<StatDescriptor<Vm>> Descriptors { get; } =
    [
        Counter("remote_tlb_flush", v => (ulong)v.RawStats.remote_tlb_flush),
        Counter("remote_tlb_flush_requests", v => (ulong)v.RawStats.remote_tlb_flush_requests), Counter("mmu_shadow_zapped", _ => 0),
        Counter("mmu_pte_write", _ => 0), Counter("mmu_pde_zapped", _ => 0), Counter("mmu_flooded", _ => 0), Counter("mmu_recycled", _ => 0),
        Counter("mmu_cache_miss", _ => 0), Instant("mmu_unsync", _ => 0), Instant("pages_4k", v => (ulong)v.RawStats.pages_4k),
        Instant("pages_2m", v => (ulong)v.RawStats.pages_2m), Instant("pages_1g", v => (ulong)v.RawStats.pages_1g),
        Instant("nx_lpage_splits", v => (ulong)v.RawStats.nx_lpage_splits), Peak("max_mmu_rmap_size", _ => 0), Peak("max_mmu_page_hash_collisions", _ => 0),
    ];

    /// <summary>Counters of Ring3 beyond KVM's.</summary>
    internal static IReadOnlyList<StatDescriptor<Vm>> Own { get; } =
    [
        Counter("remote_tlb_flush_ranges", v => (ulong)v.RawStats.remote_tlb_flush_ranges),
        Counter("tlb_flush_coalesced", v => (ulong)v.RawStats.tlb_flush_coalesced), Counter("tlb_flush_elided", v => (ulong)v.RawStats.tlb_flush_elided),
        .. VcpuStats.RequestStats<Vm>(v => v.RawStats.Requests, "vm_"),
        Instant("mmu_table_pages", v => (ulong)v.RawStats.mmu_table_pages), Counter("roots_zapped_inline", v => (ulong)v.RawStats.roots_zapped_inline),
        Counter("roots_zapped_sync", v => (ulong)v.RawStats.roots_zapped_sync), Counter("roots_zapped_worker", v => (ulong)v.RawStats.roots_zapped_worker),
        Instant("zap_share_percent", v => (ulong)v.RawStats.zap_share_percent), Nanoseconds("zap_worker_ns", v => (ulong)v.RawStats.zap_worker_ns),
        Counter("zap_worker_pauses", v => (ulong)v.RawStats.zap_worker_pauses), Counter("zap_worker_yields", v => (ulong)v.RawStats.zap_worker_yields),
        Counter("zap_lock_breaks", v => (ulong)v.RawStats.zap_lock_breaks), Counter("mmu_roots_zapped", v => (ulong)v.RawStats.mmu_roots_zapped),
        Counter("huge_splits", v => (ulong)v.RawStats.huge_splits),
    ];
}

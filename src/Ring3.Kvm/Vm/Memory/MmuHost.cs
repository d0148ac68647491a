using Ring3.Mmu;

namespace Ring3.Kvm;

/// <summary>What the MMU asks of the vCPUs.</summary>
internal sealed class MmuHost(VcpuList vcpus, VmStats stats) : IMmuHost
{
    /// <summary>Waiting TLB flush of all vCPUs.</summary>
    public void FlushRemoteTlbs()
    {
        Interlocked.Increment(ref stats.remote_tlb_flush_requests);
        foreach (VcpuRequests r in vcpus.Requests)
            if (r.Test(VcpuRequest.TlbFlush))
                Interlocked.Increment(ref stats.tlb_flush_coalesced);
        if (vcpus.Make(VcpuRequest.TlbFlush))
            Interlocked.Increment(ref stats.remote_tlb_flush);
    }

    /// <summary>As <see cref="FlushRemoteTlbs()"/>, of what was derived from a few ranges of guest frames.</summary>
    public void FlushRemoteTlbs(ReadOnlySpan<GfnSpan> ranges)
    {
        Interlocked.Increment(ref stats.remote_tlb_flush_requests);
        Interlocked.Increment(ref stats.remote_tlb_flush_ranges);
        foreach (Vcpu v in vcpus.All)
            if (v.TlbRanges.Add(ranges))
                Interlocked.Increment(ref stats.tlb_flush_coalesced);
        if (vcpus.Make(VcpuRequest.TlbFlushRange))
            Interlocked.Increment(ref stats.remote_tlb_flush);
    }

    public void FreeObsoleteRoots() => vcpus.Make(VcpuRequest.FreeObsoleteRoots);

    public void SyncDirtyLogs() => vcpus.Make(VcpuRequest.OutsideAllModes);
}

using Ring3.Mmu;

namespace Ring3.Kvm;

// What the MMU asks of the vCPUs.
public sealed partial class Vm : IMmuHost
{
    /// <summary>Waiting TLB flush of all vCPUs.</summary>
    public void FlushRemoteTlbs()
    {
        Interlocked.Increment(ref _stats.remote_tlb_flush_requests);
        foreach (VcpuRequests r in AllRequests)
            if (r.Test(VcpuRequest.TlbFlush))
                Interlocked.Increment(ref _stats.tlb_flush_coalesced);
        if (MakeAllRequest(VcpuRequest.TlbFlush))
            Interlocked.Increment(ref _stats.remote_tlb_flush);
    }

    /// <summary>As <see cref="FlushRemoteTlbs()"/>, of what was derived from a few ranges of guest frames.</summary>
    public void FlushRemoteTlbs(ReadOnlySpan<GfnSpan> ranges)
    {
        Interlocked.Increment(ref _stats.remote_tlb_flush_requests);
        Interlocked.Increment(ref _stats.remote_tlb_flush_ranges);
        foreach (Vcpu v in Vcpus)
            if (v.TlbRanges.Add(ranges))
                Interlocked.Increment(ref _stats.tlb_flush_coalesced);
        if (MakeAllRequest(VcpuRequest.TlbFlushRange))
            Interlocked.Increment(ref _stats.remote_tlb_flush);
    }

    void IMmuHost.FreeObsoleteRoots() => MakeAllRequest(VcpuRequest.FreeObsoleteRoots);

    void IMmuHost.SyncDirtyLogs() => MakeAllRequest(VcpuRequest.OutsideAllModes);
}

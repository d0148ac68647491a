using Ring3.Mmu;

namespace Ring3.Kvm;

// What the MMU asks of the vCPUs.
public sealed partial class Vm : IMmuHost
{
    /// <summary>Waiting TLB flush of all vCPUs.</summary>
    public void FlushRemoteTlbs()
    {
        Interlocked.Increment(ref _stats.remote_tlb_flush_requests);
        if (MakeAllRequest(VcpuRequest.TlbFlush))
            Interlocked.Increment(ref _stats.remote_tlb_flush);
    }

    void IMmuHost.FreeObsoleteRoots() => MakeAllRequest(VcpuRequest.FreeObsoleteRoots);

    void IMmuHost.SyncDirtyLogs() => MakeAllRequest(VcpuRequest.OutsideGuestMode);
}

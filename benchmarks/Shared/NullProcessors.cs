using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Bench;

/// <summary>The processors of a VM that has none: nothing to flush or to call out.</summary>
internal sealed class NullHost : IMmuHost
{
    public void FlushRemoteTlbs() { }
    public void FreeObsoleteRoots() { }
    public void SyncDirtyLogs() { }
}

/// <summary>The TLB of a vCPU that never runs: each root gets a number that was not used before.</summary>
internal sealed class NullTlb : IVcpuTlb
{
    private uint _asid;
    public uint AssignAsid(bool smm) => ++_asid;
}

namespace Ring3.Mmu;

/// <summary>What the MMU needs from the hypervisor's vCPU side.</summary>
public interface IMmuHost
{
    /// <summary>
    /// Waiting TLB-flush request to all vCPUs: on return no processor uses a translation, or is inside a table walk, that began before the call. Called with
    /// mmu_lock held in either mode, so a vCPU must be able to leave the guest without mmu_lock.
    /// </summary>
    void FlushRemoteTlbs();

    /// <summary>
    /// As <see cref="FlushRemoteTlbs()"/> for translations derived from a few ranges of guest frames, in every address space. The default flushes everything.
    /// </summary>
    void FlushRemoteTlbs(ReadOnlySpan<GfnSpan> ranges) => FlushRemoteTlbs();

    /// <summary>
    /// Request FreeObsoleteRoots to all vCPUs, waiting: on return no vCPU runs guest code with a root that was invalid at the call, and none enters before it
    /// has called
    /// <see cref="VcpuMmu.FreeObsoleteRoots"/>. Called with mmu_lock held for write.
    /// </summary>
    void FreeObsoleteRoots();

    /// <summary>
    /// Waiting: on return each vCPU has been outside the guest since the call, and what its processor had logged until then has been given to
    /// <see cref="TdpMmu.MarkLogged"/>. Called with the slots lock held and without mmu_lock.
    /// </summary>
    void SyncDirtyLogs();
}

/// <summary>What <see cref="VcpuMmu"/> needs from its vCPU. Called by the vCPU's own thread, outside guest mode.</summary>
public interface IVcpuTlb
{
    /// <summary>
    /// A root is being loaded. Returns an ASID under which the processor has no translation and no cached table entry: a fresh one, or one it has just flushed.
    /// Freed roots are never flushed, so this is where stale translations become unreachable.
    /// </summary>
    uint AssignAsid(bool smm);
}

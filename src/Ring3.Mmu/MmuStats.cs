namespace Ring3.Mmu;

/// <summary>Counters of one vCPU's MMU, written by its own thread only; KVM's names.</summary>
public struct VcpuMmuStats
{
    /// <summary>Nested faults taken; what is mapped ahead of the guest is none and counts nowhere.</summary>
    public ulong PfTaken;
    /// <summary>Faults that installed or changed a mapping.</summary>
    public ulong PfFixed;
    /// <summary>Of the fixed and the spurious ones, those that did not need mmu_lock.</summary>
    public ulong PfFast;
    /// <summary>Writes that the processor has logged (page-modification log).</summary>
    public ulong PagesLogged;
    /// <summary>Faults whose mapping was already there.</summary>
    public ulong PfSpurious;
    /// <summary>Faults without a slot (MMIO entry installed).</summary>
    public ulong PfMmioSpteCreated;
    /// <summary>Faults that had to be retried.</summary>
    public ulong PfRetry;
    /// <summary>Faults on a missing slot or read-only slot that leave to the client.</summary>
    public ulong PfEmulate;
}

/// <summary>Counters of a VM's MMU.</summary>
public struct MmuStats
{
    /// <summary>Mapped pages by size, in reachable tables.</summary>
    public ulong Pages4K, Pages2M, Pages1G;
    /// <summary>Table pages in use, including roots and those waiting to be freed.</summary>
    public ulong TablePages;
    /// <summary>Bytes of host memory reserved for table pages.</summary>
    public ulong TableBytesReserved;
    /// <summary>Valid and invalid roots.</summary>
    public int Roots, InvalidRoots;
    /// <summary>Roots zapped since the VM was created, and table pages freed with them.</summary>
    public ulong RootsZapped, TablePagesFreed;
    /// <summary>Holds of mmu_lock that a zap gave up because somebody waited for the lock.</summary>
    public ulong ZapLockBreaks;
    /// <summary>Flushes that the MMU asked for.</summary>
    public ulong RemoteTlbFlushRequests;
    /// <summary>Flushes that were not needed: roots freed, and removals of entries that no processor caches.</summary>
    public ulong TlbFlushesElided;
    public ulong HugeSplits, HugeRecoveries, WriteProtected;
    /// <summary>Tables that are there because huge mappings may not be executed.</summary>
    public ulong NxSplits;
}

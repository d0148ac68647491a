namespace Ring3.Mmu;

/// <summary>What <see cref="TdpMmu.Fault"/> did, and what the caller must do.</summary>
public enum MmuResult
{
    /// <summary>Something changed meanwhile (slots, roots, host memory, another vCPU): check requests, then enter the guest again.</summary>
    Retry,
    /// <summary>The mapping is there, or was there already: enter the guest again.</summary>
    Fixed,
    /// <summary>No slot. An MMIO entry is installed: enter again, the processor leaves with an MMIO exit. If it just did, complete that exit as device
    /// access.</summary>
    Mmio,
    /// <summary>Write to a read-only slot: a device access for the client. The page is mapped read-only.</summary>
    ReadOnlyWrite,
    /// <summary>The gpa is beyond what the tables can map, so no MMIO entry can be installed.</summary>
    NoSlot,
    /// <summary>The slot's host memory cannot be used: KVM_RUN fails with EFAULT.</summary>
    MemoryFault,
    /// <summary>No host memory for a table: KVM_RUN fails with ENOMEM.</summary>
    NoMemory,
    /// <summary>The frame is private and has no private memory: KVM_EXIT_MEMORY_FAULT with KVM_MEMORY_EXIT_FLAG_PRIVATE.</summary>
    PrivateMemoryFault,
}

/// <summary>How invalidated roots are zapped.</summary>
public enum RootZapPolicy
{
    /// <summary>By the thread that drops the last reference or invalidates, under the lock, without yielding.</summary>
    Inline,
    /// <summary>By the invalidating thread under mmu_lock-read, yielding; last puts go to the worker.</summary>
    Sync,
    /// <summary>By the VM's worker, yielding. No vCPU ever zaps.</summary>
    Worker,
}

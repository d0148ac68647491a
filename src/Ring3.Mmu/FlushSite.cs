namespace Ring3.Mmu;

/// <summary>The places that owe a TLB flush. See docs/tlb.md.</summary>
public enum FlushSite : byte
{
    None,
    /// <summary>Dirty logging begins: what a slot maps is write-protected, or loses its Dirty bits.</summary>
    TrackSlot,
    /// <summary>KVM_GET_DIRTY_LOG protects what it reports.</summary>
    GetDirtyLog,
    /// <summary>KVM_CLEAR_DIRTY_LOG protects what it clears.</summary>
    ClearDirtyLog,
    /// <summary>KVM_RESET_DIRTY_RINGS protects what was collected.</summary>
    ResetDirtyRings,
    /// <summary>The processor's Dirty bits are taken.</summary>
    HarvestDirty,
    /// <summary>Tables of small mappings are replaced by huge leaves.</summary>
    RecoverHugePages,
    /// <summary>Tables of what was executed, where huge mappings cannot be, are zapped to give huge mappings another chance.</summary>
    RecoverNxSplits,
    /// <summary>A range of gfns is unmapped: slot deletion without zap-all, or a slot that appears over what was mapped.</summary>
    ZapRange,
    /// <summary>The host's memory changes (MMU notifier).</summary>
    Notifier,
    /// <summary>All roots are obsolete: slot deletion or move.</summary>
    ObsoleteRoots,
    /// <summary>A vCPU loads a root.</summary>
    RootLoad,
    /// <summary>Another vCPU of the guest asked for it while this one was preempted (KVM_VCPU_FLUSH_TLB).</summary>
    ParavirtFlush,
    /// <summary>A vCPU moves to another host thread.</summary>
    ThreadMove,
    /// <summary>Aging by permissions, where the processor sets no Accessed bits.</summary>
    AgeByPermission,
    /// <summary>The client writes the control registers (KVM_SET_SREGS): whatever they say, nothing of before is used.</summary>
    ClientState,
    Count,
}

/// <summary>What a change takes from those who have the old entry cached.</summary>
internal enum SpteLoss : byte
{
    /// <summary>Nothing may be done through it.</summary>
    Mapping,
    /// <summary>It may be read, not written.</summary>
    Write,
}

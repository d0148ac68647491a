namespace Ring3.Mmu;

/// <summary>How young pages are found and made old, where the tables allow a choice. See <see cref="TdpMmu.CanAgeLockless"/>.</summary>
public enum AgingPolicy
{
    /// <summary>Under RCU alone, by compare-exchange.</summary>
    Lockless,
    /// <summary>With mmu_lock held for write, entry by entry. For comparison.</summary>
    Locked,
}

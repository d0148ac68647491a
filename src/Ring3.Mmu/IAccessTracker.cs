namespace Ring3.Mmu;

/// <summary>Somebody outside the tables who counts accesses to pages, such as the generations of page reclaim: a leaf that is removed takes its Accessed bit
/// there first.</summary>
/// <remarks>Called with mmu_lock held in either mode, inside an RCU section, on any thread: no waiting, no locks that are held across calls into the
/// MMU.</remarks>
public interface IAccessTracker
{
    /// <summary>Whether accesses to any page of [start, end) are counted. While the answer is no, tables are dropped without a look at their leaves.</summary>
    bool TracksAccesses(ulong start, ulong end, int asId);

    /// <summary>Pages had been accessed when their mappings were removed. Bit n of <paramref name="bits"/> stands for page <paramref name="firstGfn"/> +
    /// n.</summary>
    void MarkAccessed(ulong firstGfn, ulong bits, int asId);
}

namespace Ring3.Memory;

/// <summary>What a <see cref="MemorySlots.SetRegion(uint, uint, ulong, ulong, ulong)"/> did to a slot.</summary>
public enum MemslotChange { Create, Delete, Move, FlagsOnly }

/// <summary>Told about slot changes by <see cref="MemorySlots"/>, under the slots lock and outside every other lock. The MMU is one.</summary>
public interface IMemslotListener
{
    /// <summary>
    /// The slot has been published as invalid and all earlier readers are gone. When this returns no vCPU may reach its memory any more.
    /// </summary>
    void FlushMemslot(Memslot old);

    /// <summary>The change has been published and a grace period has passed. <paramref name="added"/> is null for Delete, <paramref name="old"/> for
    /// Create.</summary>
    void CommitMemslot(Memslot? old, Memslot? added, MemslotChange change);
}

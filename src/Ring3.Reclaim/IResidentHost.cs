using Ring3.Memory;

namespace Ring3.Reclaim;

/// <summary>What a resident limit needs of the VM whose memory it keeps small. Any thread.</summary>
public interface IResidentHost
{
    /// <summary>The slots, whose notifier is told of what goes away.</summary>
    MemorySlots Slots { get; }

    /// <summary>Processors that may need memory at a time.</summary>
    int Processors { get; }

    /// <summary>
    /// Clears what says that pages of [<paramref name="startGfn"/>, <paramref name="endGfn"/>) were used, and sets the bit of each that was. May take mmu_lock;
    /// not in an RCU section.
    /// </summary>
    void HarvestYoung(ulong startGfn, ulong endGfn, Span<ulong> bitmap, int asId);

    /// <summary>On return no processor uses a translation from before the call.</summary>
    void FlushTlbs();

    /// <summary>Faults ask this limit from now on (<see cref="MemorySlots.Residency"/>). False: there is another.</summary>
    bool TryAttach(ResidentLimit limit);

    /// <summary>Takes <see cref="TryAttach"/> back.</summary>
    void Detach(ResidentLimit limit);
}

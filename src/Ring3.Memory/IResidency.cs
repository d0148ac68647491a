namespace Ring3.Memory;

/// <summary>Keeps a VM's memory inside a limit: told of every page that is about to be used or was used. See <see cref="MemorySlots.Residency"/>.</summary>
public interface IResidency
{
    /// <summary>A page will be mapped for the guest: waits until there is room. Caller holds no lock, is in no RCU section, and its vCPU is outside guest
    /// mode.</summary>
    void BeforeFault();

    /// <summary>The host pages of [hva, hva + bytes) are in memory and were used just now. Does not wait; any thread.</summary>
    void Touched(ulong hva, ulong bytes);

    /// <summary>Gives host pages back, between the notifier's start and end. False: not memory that is limited here.</summary>
    bool TryDiscard(ulong hva, ulong bytes);
}

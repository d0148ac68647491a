using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>KVM_RESET_DIRTY_RINGS: pages that the client has collected are tracked anew.</summary>
/// <remarks>SAFETY: slots and offsets come from memory that the client can write, and are checked here.</remarks>
public sealed unsafe partial class TdpMmu
{
    /// <summary>Takes collected entries back from rings and tracks their pages, so that the next write to each is pushed again.</summary>
    /// <returns>Number of entries taken.</returns>
    public int ResetDirtyRings(ReadOnlySpan<DirtyRing> rings)
    {
        int taken = 0;
        using var _ = Slots.SlotsLock.Enter();
        var batch = new FlushBatch(FlushSite.ResetDirtyRings);
        Lock.EnterRead();
        Rcu.Enter();
        foreach (DirtyRing ring in rings)
        {
            // Neighbours in the ring are often neighbours in memory: one walk for up to 64 pages.
            uint slot = 0;
            ulong word = 0, mask = 0;
            while (ring.TryTakeCollected(out uint nextSlot, out ulong offset))
            {
                taken++;
                if (mask != 0 && (nextSlot != slot || offset / 64 != word))
                {
                    TrackCollected(slot, word, mask, ref batch);
                    mask = 0;
                    BreakIfNeeded(ref batch, 15);
                }
                (slot, word) = (nextSlot, offset / 64);
                mask |= 1UL << (int)(offset % 64);
            }
            if (mask != 0)
                TrackCollected(slot, word, mask, ref batch);
        }
        Rcu.Exit();
        // A page whose entry was taken must not be writable unseen through a TLB when the call returns.
        Finish(ref batch);
        Lock.ExitRead();
        return taken;
    }

    private void TrackCollected(uint slotAndAs, ulong word, ulong mask, ref FlushBatch batch)
    {
        int asId = (int)(slotAndAs >> 16);
        if (asId >= MemorySlots.AddressSpaces || Slots.Set(asId).ById((ushort)slotAndAs) is not { } slot || word > slot.NPages / 64)
            return;
        ulong inside = slot.NPages - word * 64;
        if (inside < 64)
            mask &= (1UL << (int)inside) - 1;
        if (mask != 0)
            TrackMasked(slot, word, mask, ref batch);
    }
}

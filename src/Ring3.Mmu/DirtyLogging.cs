using System.Numerics;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Dirty logging, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG, and the harvest of the processor's Dirty bits.</summary>
/// <remarks>
/// A logged slot is tracked in one of three ways (<see cref="DirtyTracking"/>). By write protection: the first write to a page faults, and the fault marks the
/// page. By log: the processor sets D in the leaf and appends the page to its log, which its vCPU empties into the bitmap or the ring at each exit. By scan:
/// the processor sets D in the leaf, and the call looks at all leaves.
/// INVARIANT: in a slot tracked by log, a leaf with D set is marked already, or its page is in the log of a processor that is in the guest, or its mark has
/// been taken by a call that clears D and flushes before it returns. So removing a leaf loses nothing, and nobody who zaps has to look at D. In a slot tracked
/// by scan D may be all there is: see <see cref="LeafHarvest"/>.
/// SAFETY: (whole file) entries are reached through iterators, inside RCU sections; client memory is reached through UserCopy only, never with mmu_lock
/// held.</remarks>
internal sealed class DirtyLogging(TdpMmu mmu)
{
    private bool ManualProtect => (mmu.Slots.ManualDirtyLogProtect & KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0;
    private bool InitiallySet => (mmu.Slots.ManualDirtyLogProtect & KvmApi.KVM_DIRTY_LOG_INITIALLY_SET) != 0;

    public void CommitFlags(Memslot old, Memslot added)
    {
        if (added.IsDirtyLogged && !old.IsDirtyLogged)
        {
            // With all bits set initially, the first clear of each bit protects its page: nothing to do now.
            if (InitiallySet && added.DirtyBitmap is not null)
                return;
            TrackSlot(added);
            if (mmu.EagerSplit)
                mmu.SplitHugePages(added.BaseGfn, added.EndGfn, added.AsId, added);
        }
        else if (!added.IsDirtyLogged && old.IsDirtyLogged)
            mmu.RecoverHugePages(added);
    }

    /// <summary>
    /// Begins to track everything a slot maps. mmu_lock for write: a fault that still knew the slot without logging has installed its entry before, or will
    /// find itself stale.
    /// </summary>
    private void TrackSlot(Memslot slot)
    {
        var batch = new FlushBatch(FlushSite.TrackSlot);
        mmu.Lock.EnterWrite();
        foreach (TdpRoot root in mmu.Roots)
        {
            if (root.Role.AsId != slot.AsId || !root.TryGet())
                continue;
            Rcu.Enter();
            var it = new TdpIterator(root, slot.BaseGfn, slot.EndGfn);
            while (it.MoveNext())
            {
                Track(ref it, slot, ref batch);
                mmu.YieldWrite(ref it, ref batch);
            }
            Rcu.Exit();
            mmu.PutRootLocked(root);
        }
        mmu.Finish(ref batch);
        mmu.Lock.ExitWrite();
        mmu.RunInlineZaps();
    }

    /// <summary>Makes the next write to what a present leaf maps visible, see <see cref="Spte.MakeTracked"/>, and owes a flush if a processor could write
    /// unseen through what it has cached.</summary>
    private void Track(ref TdpIterator it, Memslot slot, ref FlushBatch batch)
    {
        while (it.IsPresentLeaf)
        {
            ulong old = it.OldSpte, tracked = Spte.MakeTracked(old, it.Level, slot.Tracking);
            if (tracked == old)
                return;
            if (!mmu.TrySetSpteAtomic(ref it, tracked))
                continue;
            if (Spte.MayBeWrittenUnseen(old, tracked))
                mmu.Owe(ref batch, it.Gfn, it.EndGfn, slot.AsId, SpteLoss.Write);
            if ((old & ~tracked & Spte.W) != 0)
                batch.WriteProtected++;
            return;
        }
    }

    /// <summary>
    /// Tracks anew the pages of a slot whose bits are set in a word of its bitmap. mmu_lock for read is enough: a racing fault (or processor) changes the entry
    /// first and marks the page dirty afterwards, in the bitmap that this slot already has, so the mark is in the next log.
    /// </summary>
    private void TrackMasked(Memslot slot, ulong word, ulong mask, ref FlushBatch batch)
    {
        mmu.Lock.AssertHeldRead();
        ulong basePage = slot.BaseGfn + word * 64;
        ulong start = basePage + (ulong)BitOperations.TrailingZeroCount(mask), end = basePage + 64 - (ulong)BitOperations.LeadingZeroCount(mask);
        foreach (TdpRoot root in mmu.Roots)
        {
            // What is left in an invalid root nobody writes any more, but its D bits count until the zapper takes them.
            if (root.Role.AsId != slot.AsId || root.Invalid && !slot.TracksDirtyBits)
                continue;
            var it = new TdpIterator(root, start, end);
            while (it.MoveNext())
            {
                bool wanted = it.Level > PgLevel.Level4K || (mask >> (int)(it.Gfn - basePage) & 1) != 0;
                if (wanted)
                    Track(ref it, slot, ref batch);
            }
        }
    }

    /// <summary>KVM_GET_DIRTY_LOG. Copies a slot's bitmap; without manual protection also clears it and protects the pages again, so that every write after the
    /// call is in the next log.</summary>
    /// <param name="slotAndAs">Bits 0-15 slot, 16-31 address space.</param>
    /// <param name="bitmap">Client address of one bit a page, rounded up to 64-bit words.</param>
    /// <returns>0, -EINVAL for a bad number, -ENOENT without slot or without logging, -ENXIO with dirty rings, -EFAULT.</returns>
    public unsafe int GetDirtyLog(uint slotAndAs, ulong bitmap)
    {
        int error = FindLogged(slotAndAs, out uint id, out int asId);
        if (error != 0)
            return error;
        using var _ = mmu.Slots.SlotsLock.Enter();
        if (mmu.Slots.Set(asId).ById((int)id) is not { DirtyBitmap: { } dirty } slot)
            return -Errno.ENOENT;
        if (slot.TracksDirtyBits)
            ScanDirtyBits(slot);
        else if (slot.Tracking == DirtyTracking.DirtyLog)
            mmu.Host.SyncDirtyLogs();
        if (ManualProtect)
            return dirty.CopyOut(bitmap) ? 0 : -Errno.EFAULT;
        ulong* taken = dirty.Scratch;
        var batch = new FlushBatch(FlushSite.GetDirtyLog);
        mmu.Lock.EnterRead();
        Rcu.Enter();
        for (ulong i = 0; i < dirty.WordCount; i++)
        {
            ulong mask = dirty.Take(i);
            taken[i] = mask;
            if (mask != 0)
                TrackMasked(slot, i, mask, ref batch);
            BreakIfNeeded(ref batch, i);
        }
        Rcu.Exit();
        mmu.Finish(ref batch);
        mmu.Lock.ExitRead();
        return UserCopy.TryWrite(bitmap, taken, (nuint)(dirty.WordCount * 8)) ? 0 : -Errno.EFAULT;
    }

    /// <summary>KVM_CLEAR_DIRTY_LOG: clears the given bits of [firstPage, firstPage + numPages) and protects those pages again.</summary>
    /// <param name="bitmap">Client address.</param>
    /// <returns>0, -EINVAL (numbers, alignment to 64 pages, range), -ENOENT, -ENXIO with dirty rings, -EFAULT.</returns>
    public unsafe int ClearDirtyLog(uint slotAndAs, ulong firstPage, uint numPages, ulong bitmap)
    {
        int error = FindLogged(slotAndAs, out uint id, out int asId);
        if (error != 0)
            return error;
        if ((firstPage & 63) != 0)
            return -Errno.EINVAL;
        using var _ = mmu.Slots.SlotsLock.Enter();
        if (mmu.Slots.Set(asId).ById((int)id) is not { DirtyBitmap: { } dirty } slot)
            return -Errno.ENOENT;
        if (firstPage > slot.NPages || numPages > slot.NPages - firstPage || numPages < slot.NPages - firstPage && (numPages & 63) != 0)
            return -Errno.EINVAL;
        ulong words = ((ulong)numPages + 63) / 64;
        ulong* wanted = dirty.Scratch;
        if (!UserCopy.TryRead(bitmap, wanted, (nuint)(words * 8)))
            return -Errno.EFAULT;
        if (ManualProtect && InitiallySet && mmu.EagerSplit)
            SplitCleared(slot, firstPage, wanted, words);
        var batch = new FlushBatch(FlushSite.ClearDirtyLog);
        mmu.Lock.EnterRead();
        Rcu.Enter();
        for (ulong i = 0; i < words; i++)
        {
            ulong word = firstPage / 64 + i;
            ulong mask = dirty.Clear(word, wanted[i]);
            if (mask != 0)
                TrackMasked(slot, word, mask, ref batch);
            BreakIfNeeded(ref batch, i);
        }
        Rcu.Exit();
        mmu.Finish(ref batch);
        mmu.Lock.ExitRead();
        return 0;
    }

    /// <summary>With all bits set initially nothing was split when logging began: it is done piece by piece, where bits are cleared, in units of 2
    /// MiB.</summary>
    private unsafe void SplitCleared(Memslot slot, ulong firstPage, ulong* wanted, ulong words)
    {
        const ulong WordsPerStep = 8;
        for (ulong i = 0; i < words; i += WordsPerStep)
        {
            ulong n = Math.Min(WordsPerStep, words - i);
            if (!new ReadOnlySpan<ulong>(wanted + i, (int)n).ContainsAnyExcept(0UL))
                continue;
            ulong start = slot.BaseGfn + firstPage + i * 64;
            mmu.SplitHugePages(start, Math.Min(start + n * 64, slot.EndGfn), slot.AsId, slot);
        }
    }

    /// <summary>
    /// Marks what a processor has logged. The vCPU's own thread, after the processor has left the guest and before the vCPU says so (see
    /// <see cref="IMmuHost.SyncDirtyLogs"/>).
    /// </summary>
    /// <param name="gpas">Guest-physical addresses of pages, bytes, in the vCPU's current address space.</param>
    public void MarkLogged(VcpuMmu vcpu, ReadOnlySpan<ulong> gpas)
    {
        Rcu.Enter();
        foreach (ulong gpa in gpas)
            mmu.Slots.Find(gpa >> Page.Shift, vcpu.AsId, ref vcpu.SlotCache)?.MarkDirty(gpa >> Page.Shift);
        Rcu.Exit();
        vcpu.Stats.PagesLogged += (ulong)gpas.Length;
    }

    /// <summary>Marks every page of a slot whose leaf has D, in all roots. D stays set until the mark is taken. Tables first, bitmap second: a zap harvests a
    /// table before it unlinks it.</summary>
    private void ScanDirtyBits(Memslot slot)
    {
        mmu.Lock.EnterRead();
        Rcu.Enter();
        foreach (TdpRoot root in mmu.Roots)
        {
            if (root.Role.AsId != slot.AsId || !root.TryGet())
                continue;
            var it = new TdpIterator(root, slot.BaseGfn, slot.EndGfn);
            while (it.MoveNext())
            {
                if (it.IsPresentLeaf && Spte.IsDirty(it.OldSpte))
                    mmu.Leaves.TakeLeaf(it.OldSpte, it.Gfn, it.Level, slot.AsId, LeafState.Dirty);
                if (!it.MayYield || !mmu.Lock.NeedsBreak)
                    continue;
                Rcu.Exit();
                mmu.Lock.BreakRead();
                Rcu.Enter();
                it.Restart();
            }
            mmu.PutRootLocked(root);
        }
        Rcu.Exit();
        mmu.Lock.ExitRead();
        mmu.RunInlineZaps();
    }

    private void BreakIfNeeded(ref FlushBatch batch, ulong step)
    {
        if ((step & 15) != 15 || !mmu.Lock.NeedsBreak)
            return;
        Rcu.Exit();
        mmu.Finish(ref batch);
        mmu.Lock.BreakRead();
        Rcu.Enter();
    }

    private int FindLogged(uint slotAndAs, out uint id, out int asId)
    {
        id = (ushort)slotAndAs;
        asId = (int)(slotAndAs >> 16);
        if (mmu.Slots.UseDirtyRings)
            return -Errno.ENXIO;
        return asId >= mmu.Slots.UsableAddressSpaces || id >= MemorySlots.UserSlots ? -Errno.EINVAL : 0;
    }

    /// <summary>
    /// Takes the processor's Dirty bits of [start, end): clears them, sets bit gfn - start in <paramref name="bitmap"/>, and flushes, so that a write after the
    /// return sets them again. A huge mapping reports all its pages.
    /// </summary>
    /// <returns>Number of dirty pages found.</returns>
    public ulong HarvestDirty(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        ulong found = 0;
        var batch = new FlushBatch(FlushSite.HarvestDirty);
        mmu.Lock.EnterRead();
        Rcu.Enter();
        foreach (TdpRoot root in mmu.Roots)
        {
            if (root.Role.AsId != asId || root.Invalid)
                continue;
            var it = new TdpIterator(root, start, end);
            while (it.MoveNext())
            {
                while (it.IsPresentLeaf && Spte.IsDirty(it.OldSpte))
                {
                    if (!mmu.TrySetSpteAtomic(ref it, it.OldSpte & ~Spte.D))
                        continue;
                    found += SetBits(bitmap, Math.Max(it.Gfn, start) - start, Math.Min(it.EndGfn, end) - start);
                    mmu.Owe(ref batch, it.Gfn, it.EndGfn, asId, SpteLoss.Write);
                    break;
                }
            }
        }
        Rcu.Exit();
        mmu.Finish(ref batch);
        mmu.Lock.ExitRead();
        return found;
    }

    private static ulong SetBits(Span<ulong> bitmap, ulong first, ulong end)
    {
        for (ulong i = first; i < end; i++)
            bitmap[(int)(i >> 6)] |= 1UL << (int)(i & 63);
        return end - first;
    }

    // ---- Rings ----

    /// <summary>Takes collected entries back from rings and tracks their pages, so that the next write to each is pushed again.</summary>
    /// <returns>Number of entries taken.</returns>
    public int ResetDirtyRings(ReadOnlySpan<DirtyRing> rings)
    {
        int taken = 0;
        using var _ = mmu.Slots.SlotsLock.Enter();
        var batch = new FlushBatch(FlushSite.ResetDirtyRings);
        mmu.Lock.EnterRead();
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
        mmu.Finish(ref batch);
        mmu.Lock.ExitRead();
        return taken;
    }

    private void TrackCollected(uint slotAndAs, ulong word, ulong mask, ref FlushBatch batch)
    {
        int asId = (int)(slotAndAs >> 16);
        if (asId >= MemorySlots.AddressSpaces || mmu.Slots.Set(asId).ById((ushort)slotAndAs) is not { } slot || word > slot.NPages / 64)
            return;
        ulong inside = slot.NPages - word * 64;
        if (inside < 64)
            mask &= (1UL << (int)inside) - 1;
        if (mask != 0)
            TrackMasked(slot, word, mask, ref batch);
    }
}

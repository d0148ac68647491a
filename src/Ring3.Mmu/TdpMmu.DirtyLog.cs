using System.Numerics;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Dirty logging by write protection, KVM_GET_DIRTY_LOG and KVM_CLEAR_DIRTY_LOG, and the harvest of the processor's Dirty bits.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections; bitmap pointers are the caller's and cover the slot.</remarks>
public sealed unsafe partial class TdpMmu
{
    private bool ManualProtect => (Slots.ManualDirtyLogProtect & KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE) != 0;
    private bool InitiallySet => (Slots.ManualDirtyLogProtect & KvmApi.KVM_DIRTY_LOG_INITIALLY_SET) != 0;

    private void CommitFlags(Memslot old, Memslot added)
    {
        if (added.IsDirtyLogged && !old.IsDirtyLogged)
        {
            // With all bits set initially, the first clear of each bit protects its page: nothing to do now.
            if (InitiallySet)
                return;
            WriteProtectSlot(added);
            if (EagerSplit)
                SplitHugePages(added.BaseGfn, added.EndGfn, added.AsId);
        }
        else if (!added.IsDirtyLogged && old.IsDirtyLogged)
            RecoverHugePages(added);
    }

    /// <summary>
    /// Write-protects everything a slot maps. mmu_lock for write: a fault that still knew the slot without logging has installed its writable entry before, or will find itself stale.
    /// </summary>
    private void WriteProtectSlot(Memslot slot)
    {
        FlushBatch batch = default;
        Lock.EnterWrite();
        foreach (TdpRoot root in _roots)
        {
            if (root.Role.AsId != slot.AsId || !root.TryGet())
                continue;
            Rcu.Enter();
            var it = new TdpIterator(root, slot.BaseGfn, slot.EndGfn);
            while (it.MoveNext())
            {
                if (TryWriteProtect(ref it))
                    batch.Needed = true;
                if (!it.MayYield || !Lock.NeedsBreak)
                    continue;
                Finish(ref batch);
                Rcu.Exit();
                Lock.BreakWrite();
                Rcu.Enter();
                it.Restart();
            }
            Rcu.Exit();
            PutRootLocked(root);
        }
        Finish(ref batch);
        Lock.ExitWrite();
        RunInlineZaps();
    }

    /// <summary>Takes W from a present leaf. True if it was writable, so that a flush is owed.</summary>
    private bool TryWriteProtect(ref TdpIterator it)
    {
        while (it.IsPresentLeaf && Spte.IsWritable(it.OldSpte))
        {
            if (!TrySetSpteAtomic(ref it, it.OldSpte & ~Spte.W))
                continue;
            Interlocked.Increment(ref _writeProtected);
            return true;
        }
        return false;
    }

    /// <summary>
    /// Write-protects the pages of a slot whose bits are set in a word of its bitmap. mmu_lock for read is enough: a racing fault makes its entry writable first and marks the page dirty afterwards, in the bitmap
    /// that this slot already has, so the mark is in the next log.
    /// </summary>
    private void WriteProtectMasked(Memslot slot, ulong word, ulong mask, ref FlushBatch batch)
    {
        Lock.AssertHeldRead();
        ulong basePage = slot.BaseGfn + word * 64;
        ulong start = basePage + (ulong)BitOperations.TrailingZeroCount(mask), end = basePage + 64 - (ulong)BitOperations.LeadingZeroCount(mask);
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != slot.AsId || root.Invalid)
                continue;
            var it = new TdpIterator(root, start, end);
            while (it.MoveNext())
            {
                bool wanted = it.Level > PgLevel.Level4K || (mask >> (int)(it.Gfn - basePage) & 1) != 0;
                if (wanted && TryWriteProtect(ref it))
                    batch.Needed = true;
            }
        }
    }

    /// <summary>KVM_GET_DIRTY_LOG. Copies a slot's bitmap; without manual protection also clears it and protects the pages again, so that every write after the call is in the next log.</summary>
    /// <param name="slotAndAs">Bits 0-15 slot, 16-31 address space.</param>
    /// <param name="bitmap">One bit a page, rounded up to 64-bit words.</param>
    /// <returns>0, -EINVAL for a bad number, -ENOENT without slot or without logging.</returns>
    public int GetDirtyLog(uint slotAndAs, ulong* bitmap)
    {
        int error = FindLogged(slotAndAs, out uint id, out int asId);
        if (error != 0)
            return error;
        using var _ = Slots.SlotsLock.Enter();
        if (Slots.Set(asId).ById((int)id) is not { DirtyBitmap: { } dirty } slot)
            return -Errno.ENOENT;
        if (ManualProtect)
        {
            for (ulong i = 0; i < dirty.WordCount; i++)
                bitmap[i] = dirty.Word(i);
            return 0;
        }
        FlushBatch batch = default;
        Lock.EnterRead();
        Rcu.Enter();
        for (ulong i = 0; i < dirty.WordCount; i++)
        {
            ulong mask = dirty.Take(i);
            bitmap[i] = mask;
            if (mask != 0)
                WriteProtectMasked(slot, i, mask, ref batch);
            BreakIfNeeded(ref batch, i);
        }
        Rcu.Exit();
        Finish(ref batch);
        Lock.ExitRead();
        return 0;
    }

    /// <summary>KVM_CLEAR_DIRTY_LOG: clears the given bits of [firstPage, firstPage + numPages) and protects those pages again.</summary>
    /// <returns>0, -EINVAL (numbers, alignment to 64 pages, range), -ENOENT.</returns>
    public int ClearDirtyLog(uint slotAndAs, ulong firstPage, uint numPages, ulong* bitmap)
    {
        if ((firstPage & 63) != 0)
            return -Errno.EINVAL;
        int error = FindLogged(slotAndAs, out uint id, out int asId);
        if (error != 0)
            return error;
        using var _ = Slots.SlotsLock.Enter();
        if (Slots.Set(asId).ById((int)id) is not { DirtyBitmap: { } dirty } slot)
            return -Errno.ENOENT;
        if (firstPage > slot.NPages || numPages > slot.NPages - firstPage || numPages < slot.NPages - firstPage && (numPages & 63) != 0)
            return -Errno.EINVAL;
        FlushBatch batch = default;
        Lock.EnterRead();
        Rcu.Enter();
        for (ulong i = 0; i < ((ulong)numPages + 63) / 64; i++)
        {
            ulong word = firstPage / 64 + i;
            ulong mask = dirty.Clear(word, bitmap[i]);
            if (mask != 0)
                WriteProtectMasked(slot, word, mask, ref batch);
            BreakIfNeeded(ref batch, i);
        }
        Rcu.Exit();
        Finish(ref batch);
        Lock.ExitRead();
        return 0;
    }

    private void BreakIfNeeded(ref FlushBatch batch, ulong step)
    {
        if ((step & 15) != 15 || !Lock.NeedsBreak)
            return;
        Rcu.Exit();
        Finish(ref batch);
        Lock.BreakRead();
        Rcu.Enter();
    }

    private static int FindLogged(uint slotAndAs, out uint id, out int asId)
    {
        id = (ushort)slotAndAs;
        asId = (int)(slotAndAs >> 16);
        return asId >= MemorySlots.AddressSpaces || id >= MemorySlots.UserSlots ? -Errno.EINVAL : 0;
    }

    /// <summary>
    /// Takes the processor's Dirty bits of [start, end): clears them, sets bit gfn - start in <paramref name="bitmap"/>, and flushes, so that a write after the return sets them again. A huge mapping reports all its pages.
    /// </summary>
    /// <returns>Number of dirty pages found.</returns>
    public ulong HarvestDirty(ulong start, ulong end, Span<ulong> bitmap, int asId = 0)
    {
        ulong found = 0;
        FlushBatch batch = default;
        Lock.EnterRead();
        Rcu.Enter();
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != asId || root.Invalid)
                continue;
            var it = new TdpIterator(root, start, end);
            while (it.MoveNext())
            {
                while (it.IsPresentLeaf && Spte.IsDirty(it.OldSpte))
                {
                    if (!TrySetSpteAtomic(ref it, it.OldSpte & ~Spte.D))
                        continue;
                    found += SetBits(bitmap, Math.Max(it.Gfn, start) - start, Math.Min(it.EndGfn, end) - start);
                    batch.Needed = true;
                    break;
                }
            }
        }
        Rcu.Exit();
        Finish(ref batch);
        Lock.ExitRead();
        return found;
    }

    private static ulong SetBits(Span<ulong> bitmap, ulong first, ulong end)
    {
        for (ulong i = first; i < end; i++)
            bitmap[(int)(i >> 6)] |= 1UL << (int)(i & 63);
        return end - first;
    }
}

using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Mmu.Power;

/// <summary>
/// Second dimension of a VM on a Power ISA v3.0 processor: a radix tree, or a hashed table that the guest fills; the VM may change between the two. The same
/// iterator and the same aging as for Ring3's own processor, over another format.
/// </summary>
/// <remarks>
/// Publication. Readers without a lock (aging) take <see cref="PartitionEntry"/> as one word, in an RCU section, and use the table it names. A switch makes the
/// new table ready, publishes the word with release under mmu_lock-write, makes every processor leave the old table (flush), waits for a grace period, and
/// frees it. So a reader that has seen the radix word has a tree that stays, and one that has seen the hash word touches no table at all.
/// Faults, zaps and harvests hold mmu_lock and look at the word under it. No flush or grace period is waited for by aging.
/// SAFETY: (whole type) tables are reached in RCU sections or under mmu_lock, and freed after a flush and a grace period.
/// </remarks>
internal sealed class PowerMmu : IDisposable
{
    private readonly Action _flush;
    private readonly ulong _pages;
    private readonly ulong[] _dirty;
    private readonly FutexMutex _setup = new(LockRank.PowerSetup);
    /// <summary>The hashed table, when there is one. mmu_lock.</summary>
    private HashTable? _hash;
    private ulong _entry;

    public readonly MmuLock Lock = new(LockRank.PowerMmuLock);
    public readonly RadixTables Tables;

    /// <param name="pages">Guest pages of 64 KiB.</param>
    /// <param name="flush">On return no processor uses a translation, or is inside a walk, that began before the call. mmu_lock may be held.</param>
    /// <param name="tables">For checks: where radix tables come from.</param>
    public PowerMmu(ulong pages, Action flush, RadixTables? tables = null)
    {
        Tables = tables ?? new RadixTables();
        (_pages, _flush, _dirty) = (pages, flush, new ulong[(pages + 63) / 64]);
        _entry = PartitionEntry.Radix(Tables.Allocate(RadixFormat.RootLevel)).Value;
    }

    /// <summary>What the processor's partition table says.</summary>
    public PartitionEntry Entry => new(Volatile.Read(ref _entry));

    /// <summary>A fault of a radix guest: maps a gfn at a level, writable when it is written to. False when the VM has a hashed table.</summary>
    /// <param name="hva">Host address of the page, or of the first page that an entry of the level covers.</param>
    public unsafe bool Fault(ulong gfn, ulong hva, bool write, int level = 1)
    {
        using var rcu = Rcu.Read();
        using var read = Lock.Read();
        PartitionEntry entry = Entry;
        if (!entry.IsRadix)
            return false;
        var it = new TdpIterator<RadixFormat>(entry.Table, RadixFormat.RootLevel, gfn, gfn + 1);
        while (it.MoveNext())
        {
            while (!it.IsTable)
            {
                bool leaf = it.IsPresentLeaf;
                if (leaf && (!write || RadixFormat.IsWritable(it.OldSpte)))
                    return true;
                if (!leaf && it.Level > level)
                {
                    Link(ref it);
                    continue;
                }
                ulong wanted = leaf ? RadixFormat.MakeWritten(it.OldSpte) : RadixFormat.MakeLeaf(hva, write);
                if (Interlocked.CompareExchange(ref *it.Sptep, wanted, it.OldSpte) == it.OldSpte)
                    return true;
                it.Refresh();
            }
        }
        return true;
    }

    private unsafe void Link(ref TdpIterator<RadixFormat> it)
    {
        ulong table = Tables.Allocate(it.Level - 1);
        if (Interlocked.CompareExchange(ref *it.Sptep, RadixFormat.MakeTable(table, it.Level), it.OldSpte) != it.OldSpte)
            Tables.Free(table, it.Level - 1);
        it.Refresh();
    }

    /// <summary>H_ENTER of a hash guest. False: the group is full, or the VM has a radix tree.</summary>
    public bool Enter(ulong va, bool secondary, ulong gfn, ulong hva, bool writable)
    {
        using var write = Lock.Write();
        return _hash is not null && _hash.Enter(va, secondary, gfn, hva, writable);
    }

    /// <summary>Removes the mappings of [start, end). Changed pages are in the next <see cref="HarvestDirty"/>. No lock held.</summary>
    public void ZapRange(ulong start, ulong end)
    {
        List<(ulong Table, int Level, ulong Gfn)> unlinked = [];
        using (Lock.Write())
        {
            if (_hash is null)
                ZapRadix(start, end, unlinked);
            else
                ZapHash(start, end);
        }
        if (unlinked.Count == 0)
            return;
        // Processors have left with the flush; lockless aging may still be inside.
        Rcu.Synchronize();
        foreach (var (table, level, _) in unlinked)
            Tables.FreeTree(table, level);
    }

    private unsafe void ZapRadix(ulong start, ulong end, List<(ulong Table, int Level, ulong Gfn)> unlinked)
    {
        using var rcu = Rcu.Read();
        bool removed = false;
        var it = new TdpIterator<RadixFormat>(Entry.Table, RadixFormat.RootLevel, start, end);
        while (it.MoveNext())
        {
            bool whole = it.Gfn >= start && it.EndGfn <= end;
            if (it.OldSpte == 0 || it.IsTable && !whole)
                continue;
            bool table = it.IsTable;
            ulong old = Interlocked.Exchange(ref *it.Sptep, 0);
            it.SkipChildren();
            removed = true;
            if (table)
                unlinked.Add((RadixFormat.TableAddress(old), it.Level - 1, it.Gfn));
            else if (RadixFormat.IsDirty(old))
                MarkDirty(it.Gfn, it.EndGfn);
        }
        if (!removed)
            return;
        _flush();
        // Only now is C final in tables that a processor may have been walking when they were unlinked.
        foreach (var (table, level, gfn) in unlinked)
            CollectDirty(table, level, gfn);
    }

    private void ZapHash(ulong start, ulong end)
    {
        bool removed = false;
        for (ulong gfn = start; gfn < end; gfn++)
            removed |= _hash!.Invalidate(gfn);
        if (!removed)
            return;
        _flush();
        for (ulong gfn = start; gfn < end; gfn++)
            if (_hash!.Release(gfn))
                MarkDirty(gfn, gfn + 1);
    }

    /// <summary>
    /// Makes [start, end) old and sets bit gfn - start in <paramref name="bitmap"/> for each page that was young. Under RCU alone.
    /// </summary>
    /// <returns>False: not handled. A hashed table finds the entries of a page through lists that need mmu_lock: <see cref="TestClearYoungLocked"/>.</returns>
    public bool TestClearYoung(ulong start, ulong end, Span<ulong> bitmap)
    {
        using var _ = Rcu.Read();
        // PAIRS-WITH: Publish. One word: mode and table belong together.
        PartitionEntry entry = Entry;
        if (!entry.IsRadix)
            return false;
        YoungScan<RadixFormat>.TestClear(entry.Table, RadixFormat.RootLevel, start, end, start, bitmap);
        return true;
    }

    /// <summary>As <see cref="TestClearYoung"/>, for both kinds of table, with mmu_lock held for write.</summary>
    public void TestClearYoungLocked(ulong start, ulong end, Span<ulong> bitmap)
    {
        using var write = Lock.Write();
        if (TestClearYoung(start, end, bitmap))
            return;
        for (ulong gfn = start; gfn < end; gfn++)
            if (_hash!.TestClearYoung(gfn))
                PageBitmap.Or(bitmap, gfn - start, 1);
    }

    /// <summary>Takes the pages that have been written since the last call: C bits, and those of mappings that are gone. Flushes, so that a write after the
    /// return sets C again.</summary>
    /// <param name="bitmap">One bit for each page of the VM.</param>
    public unsafe void HarvestDirty(Span<ulong> bitmap)
    {
        using var write = Lock.Write();
        if (_hash is null)
        {
            using var rcu = Rcu.Read();
            var it = new TdpIterator<RadixFormat>(Entry.Table, RadixFormat.RootLevel, 0, _pages);
            while (it.MoveNext())
                if (it.IsPresentLeaf && RadixFormat.IsDirty(it.OldSpte))
                {
                    Interlocked.And(ref *it.Sptep, ~RadixFormat.Dirty);
                    MarkDirty(it.Gfn, it.EndGfn);
                }
        }
        else
            for (ulong gfn = 0; gfn < _pages; gfn++)
                if (_hash.TestClearDirty(gfn))
                    MarkDirty(gfn, gfn + 1);
        _flush();
        for (int i = 0; i < _dirty.Length; i++)
            bitmap[i] |= _dirty[i];
        Array.Clear(_dirty);
    }

    /// <summary>The VM's table becomes a hashed table of 2^<paramref name="order"/> bytes. The tree is gone on return; what the guest has written is in the
    /// next harvest.</summary>
    public void SwitchToHash(int order = PartitionEntry.MinHashOrder)
    {
        using var setup = _setup.Enter();
        PartitionEntry old = Entry;
        if (!old.IsRadix)
            return;
        var hash = new HashTable(order, _pages);
        using (Lock.Write())
        {
            _hash = hash;
            Publish(hash.Entry);
            CollectDirty(old.Table, RadixFormat.RootLevel, 0);
        }
        // For aging that has seen the radix word.
        Rcu.Synchronize();
        Tables.FreeTree(old.Table, RadixFormat.RootLevel);
    }

    /// <summary>The VM's table becomes an empty radix tree. The hashed table is gone on return: no grace period, for it is reached under mmu_lock
    /// only.</summary>
    public void SwitchToRadix()
    {
        using var setup = _setup.Enter();
        if (_hash is not { } old)
            return;
        PartitionEntry radix = PartitionEntry.Radix(Tables.Allocate(RadixFormat.RootLevel));
        using (Lock.Write())
        {
            ZapHash(0, _pages);
            _hash = null;
            Publish(radix);
        }
        old.Dispose();
    }

    /// <summary>The new table is ready; on return no processor is in the old one. mmu_lock keeps faults, zaps and harvests out.</summary>
    private void Publish(PartitionEntry entry)
    {
        Lock.AssertHeldWrite();
        // PAIRS-WITH: TestClearYoung (one word). Release: after the new table's contents.
        Volatile.Write(ref _entry, entry.Value);
        _flush();
    }

    private unsafe void CollectDirty(ulong table, int level, ulong gfn)
    {
        for (ulong i = 0; i < 1UL << RadixFormat.IndexBits(level); i++)
        {
            ulong entry = Volatile.Read(ref ((ulong*)table)[i]), first = gfn + (i << RadixFormat.PagesShift(level));
            if (!RadixFormat.IsPresent(entry))
                continue;
            if (!RadixFormat.IsLeaf(entry, level))
                CollectDirty(RadixFormat.TableAddress(entry), level - 1, first);
            else if (RadixFormat.IsDirty(entry))
                MarkDirty(first, first + (1UL << RadixFormat.PagesShift(level)));
        }
    }

    /// <summary>mmu_lock in write mode.</summary>
    private void MarkDirty(ulong start, ulong end)
    {
        Lock.AssertHeldWrite();
        PageBitmap.SetRange(_dirty, start, Math.Min(end, _pages));
    }

    public void Dispose()
    {
        _hash?.Dispose();
        if (Entry.IsRadix)
            Tables.FreeTree(Entry.Table, RadixFormat.RootLevel);
    }
}

using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Splitting and re-forming of huge mappings.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections; pages come from the allocator.</remarks>
public sealed partial class TdpMmu
{
    private const int RecoverBatch = 64;

    /// <summary>
    /// Replaces a huge leaf by a table of 512 leaves with the same rights and state. No flush: translations stay what they were, and a later change of a child
    /// flushes.
    /// The page is returned to the cache (or freed) when the entry has changed.
    /// </summary>
    /// <param name="logged">The leaf's slot if it is dirty-logged.</param>
    private unsafe bool TrySplit(ref TdpIterator it, TablePage* page, VcpuMmu? vcpu, Memslot? logged)
    {
        ulong huge = it.OldSpte;
        ulong* table = TablePage.TableOf(page);
        for (int i = 0; i < 512; i++)
            table[i] = Spte.MakeSplitChild(huge, it.Level, i, logged);
        page->Level = it.Level - 1;
        page->BaseGfn = it.Gfn;
        page->AsId = it.Page->AsId;
        page->Leaves = 512;
        page->State = TablePageState.Live;
        ulong spte = Spte.MakeTable((ulong)table);
        if (TrySetSpteAtomic(ref it, spte))
        {
            it.OldSpte = spte;
            Interlocked.Increment(ref _hugeSplits);
            return true;
        }
        new Span<ulong>(table, 512).Clear();
        page->Leaves = 0;
        page->State = TablePageState.Cached;
        if (vcpu is not null)
            vcpu.Return(page);
        else
            Allocator.Free(page, isZero: true);
        return false;
    }

    /// <summary>
    /// Splits every huge mapping of [start, end) down to 4 KiB. Best effort: stops without error when the host has no memory; the faults then split what is
    /// left.
    /// </summary>
    /// <param name="logged">The range's slot if it is dirty-logged.</param>
    public void SplitHugePages(ulong start, ulong end, int asId = 0, Memslot? logged = null)
    {
        Lock.EnterRead();
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != asId || root.Invalid || !root.TryGet())
                continue;
            SplitHugePages(root, start, end, logged);
            PutRootLocked(root);
        }
        Lock.ExitRead();
        RunInlineZaps();
    }

    private unsafe void SplitHugePages(TdpRoot root, ulong start, ulong end, Memslot? logged)
    {
        Rcu.Enter();
        var it = new TdpIterator(root, start, end, PgLevel.Level2M);
        while (it.MoveNext())
        {
            while (it.IsPresentLeaf)
            {
                TablePage* page = Allocator.Allocate();
                if (page == null)
                {
                    Rcu.Exit();
                    return;
                }
                if (TrySplit(ref it, page, null, logged))
                    break;
            }
            if (!it.MayYield || !Lock.NeedsBreak)
                continue;
            Rcu.Exit();
            Lock.BreakRead();
            Rcu.Enter();
            // A root that has become invalid may be being zapped by another holder of mmu_lock-read: no table may be added to it any more.
            if (root.Invalid)
                break;
            it.Restart();
        }
        Rcu.Exit();
    }

    /// <summary>
    /// Replaces tables of small mappings by huge leaves where the slot allows it again, while vCPUs run. In batches, each in three steps: freeze and unlink,
    /// flush once, install. The flush comes before the huge leaf appears, so that no processor ever has translations of both sizes.
    /// </summary>
    /// <returns>Number of huge mappings made.</returns>
    public int RecoverHugePages(Memslot slot)
    {
        Slots.SlotsLock.AssertHeld();
        int recovered = 0;
        Lock.EnterRead();
        foreach (TdpRoot root in Volatile.Read(ref _roots))
        {
            if (root.Role.AsId != slot.AsId || root.Invalid || !root.TryGet())
                continue;
            ulong next = slot.BaseGfn;
            while (next < slot.EndGfn && !root.Invalid)
            {
                recovered += RecoverOneBatch(root, slot, ref next);
                Lock.BreakRead();
            }
            PutRootLocked(root);
        }
        Lock.ExitRead();
        RunInlineZaps();
        Interlocked.Add(ref _hugeRecoveries, recovered);
        return recovered;
    }

    private unsafe int RecoverOneBatch(TdpRoot root, Memslot slot, ref ulong next)
    {
        ulong** frozen = stackalloc ulong*[RecoverBatch];
        ulong* leaves = stackalloc ulong[RecoverBatch];
        int n = 0;
        var batch = new FlushBatch(FlushSite.RecoverHugePages);
        using var _ = Rcu.Read();
        // A slot that was logged has no private memory, and the caller's slots lock keeps the attributes.
        var backing = new Backing(slot, Slots.Attributes, false);
        var it = new TdpIterator(root, next, slot.EndGfn, PgLevel.Level2M);
        while (n < RecoverBatch && it.MoveNext())
        {
            next = it.EndGfn;
            if (!it.IsTable || it.Level > GoalLevel(backing, Math.Max(it.Gfn, slot.BaseGfn)))
                continue;
            TablePage* child = TablePage.FromSpte(it.OldSpte);
            if (child->Leaves == 0 && child->Tables == 0 || Slots.Notifier.InProgress != 0)
                continue;
            if (!TryFreezeTable(ref it))
                continue;
            ulong table = it.OldSpte;
            ulong leaf = WithoutHugeX(Spte.MakeLeaf(slot.HvaOf(it.Gfn), it.Level, !slot.IsReadOnly, writable: true, dirty: true), it.Level);
            Account(it.Page, it.Level, table, leaf);
            UnlinkTablesShared(table, ref batch);
            Owe(ref batch, it.Gfn, it.EndGfn, slot.AsId, SpteLoss.Mapping);
            frozen[n] = it.Sptep;
            leaves[n++] = leaf;
        }
        if (n < RecoverBatch)
            next = slot.EndGfn;
        // PAIRS-WITH: TrySetSpteAtomic (a frozen entry is changed by nobody else).
        Finish(ref batch);
        for (int i = 0; i < n; i++)
            Volatile.Write(ref *frozen[i], leaves[i]);
        return n;
    }

    /// <summary>Freezes the iterator's entry while it points to the table that was looked at; walks and aging change its A bit. False if somebody else has
    /// changed it.</summary>
    private static unsafe bool TryFreezeTable(ref TdpIterator it)
    {
        ulong table = Spte.Address(it.OldSpte);
        while (it.IsTable && Spte.Address(it.OldSpte) == table)
        {
            ulong seen = Interlocked.CompareExchange(ref *it.Sptep, Spte.Frozen, it.OldSpte);
            if (seen == it.OldSpte)
                return true;
            it.OldSpte = seen;
        }
        return false;
    }
}

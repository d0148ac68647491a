using System.Diagnostics;
using System.Runtime.CompilerServices;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>The only places that write entries under mmu_lock, with the bookkeeping each change needs.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>Exchanges the iterator's entry for <paramref name="newSpte"/> if nobody, the processor included, has changed it. Caller holds mmu_lock in
    /// either mode and owes any flush.</summary>
    /// <returns>False if it had changed, or is frozen by another thread: <see cref="TdpIterator.OldSpte"/> has been read again.</returns>
    internal unsafe bool TrySetSpteAtomic(ref TdpIterator it, ulong newSpte)
    {
        Lock.AssertHeld();
        Debug.Assert(!Spte.IsFrozen(it.OldSpte) && Spte.IsWellFormed(newSpte, it.Level));
        ulong seen = Interlocked.CompareExchange(ref *it.Sptep, newSpte, it.OldSpte);
        if (seen != it.OldSpte)
        {
            it.OldSpte = seen;
            return false;
        }
        Account(it.Page, it.Level, seen, newSpte);
        return true;
    }

    /// <summary>Replaces the iterator's entry whatever the processor does to its A and D bits. Caller holds mmu_lock for write, or the root is invalid and only
    /// the caller changes it.</summary>
    /// <returns>The last value of the old entry.</returns>
    private unsafe ulong ExchangeSpte(ref TdpIterator it, ulong newSpte)
    {
        ulong seen = Interlocked.Exchange(ref *it.Sptep, newSpte);
        Debug.Assert(!Spte.IsFrozen(seen));
        Account(it.Page, it.Level, seen, newSpte);
        it.OldSpte = newSpte;
        return seen;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static unsafe void Account(TablePage* page, int level, ulong oldSpte, ulong newSpte)
    {
        int leaves = (Spte.IsPresentLeaf(newSpte, level) ? 1 : 0) - (Spte.IsPresentLeaf(oldSpte, level) ? 1 : 0);
        if (leaves != 0)
            Interlocked.Add(ref page->Leaves, leaves);
        int tables = (Spte.IsTable(newSpte, level) ? 1 : 0) - (Spte.IsTable(oldSpte, level) ? 1 : 0);
        if (tables != 0)
            Interlocked.Add(ref page->Tables, tables);
    }

    /// <summary>
    /// Unlinks the tables below an entry that no longer points to them. Leaves are not visited: nothing tracks them outside the table. No fault can install
    /// into these tables, because the caller holds mmu_lock for write or their root is invalid; lockless walkers may still change A and W bits in them, which
    /// has no effect.
    /// </summary>
    private static unsafe void UnlinkTables(ulong tableSpte, ref FlushBatch batch)
    {
        TablePage* page = TablePage.FromSpte(tableSpte);
        Debug.Assert(page->State == TablePageState.Live);
        if (page->Level > PgLevel.Level4K && page->Tables != 0)
        {
            ulong* table = TablePage.TableOf(page);
            for (int i = 0; i < 512; i++)
            {
                ulong spte = Volatile.Read(ref table[i]);
                if (Spte.IsTable(spte, page->Level))
                    UnlinkTables(spte, ref batch);
            }
        }
        batch.AddUnlinked(page);
    }

    /// <summary>
    /// Unlinks the tables below an entry that the caller has frozen, while others fault. Every entry is frozen, so that a fault that has reached the table
    /// installs nothing into it.
    /// </summary>
    private static unsafe void UnlinkTablesShared(ulong tableSpte, ref FlushBatch batch)
    {
        TablePage* page = TablePage.FromSpte(tableSpte);
        ulong* table = TablePage.TableOf(page);
        for (int i = 0; i < 512; i++)
        {
            ulong spte = FreezeEntry(ref table[i]);
            if (Spte.IsTable(spte, page->Level))
                UnlinkTablesShared(spte, ref batch);
        }
        batch.AddUnlinked(page);
    }

    /// <summary>Freezes an entry; if another thread has frozen it, waits for that thread's few steps.</summary>
    private static ulong FreezeEntry(ref ulong spte)
    {
        var backoff = new Backoff();
        while (true)
        {
            ulong old = Interlocked.Exchange(ref spte, Spte.Frozen);
            if (!Spte.IsFrozen(old))
                return old;
            backoff.Pause();
        }
    }
}

using System.Diagnostics;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Zapping of invalidated roots: the worker, the two other policies, "zap all fast", and teardown.</summary>
/// <remarks>SAFETY: an invalid root's tables are freed by this walk alone, so what its iterator shows is there.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>The one work item of the MMU: zaps every scheduled root, in slices.</summary>
    private sealed class RootZapper(TdpMmu mmu) : BulkWorkItem
    {
        private ZapCursor _cursor;

        protected override bool RunSlice()
        {
            while (_cursor.Root is not null || mmu.TakeScheduledRoot(out _cursor))
            {
                if (mmu.ZapHold(ref _cursor, mayYield: true))
                    _cursor = default;
                if (mmu._queue.ShouldYield)
                    return _cursor.Root is null && !mmu.HasScheduledRoot;
            }
            return true;
        }
    }

    /// <summary>How far the zap of one root has come. The holder owns one reference to the root.</summary>
    private struct ZapCursor
    {
        public TdpRoot? Root;
        /// <summary>First by 1 GiB entries, so that every step is short; then what is left above them.</summary>
        public int Level;
        public ulong NextGfn;
    }

    /// <summary>Subtrees of one entry at this level are unlinked in one step: at most 513 tables.</summary>
    private const int ZapStepLevel = PgLevel.Level1G;
    /// <summary>Steps in one hold of mmu_lock before the zapper lets others in.</summary>
    private const int ZapStepsPerHold = 8;

    private readonly WaitQueue _rootZapped = new();
    private long _zapLockBreaks;

    /// <summary>For tests: called by whoever zaps, before each hold of mmu_lock.</summary>
    internal Action? BeforeZapHold { get; set; }

    /// <summary>
    /// Zaps all scheduled roots on the calling thread, and drops the reference that each zap owns. Several threads may do this at the same time: each root is
    /// taken by one.
    /// </summary>
    private void ZapScheduledRoots(bool mayYield)
    {
        while (TakeScheduledRoot(out ZapCursor cursor))
            while (!ZapHold(ref cursor, mayYield))
                Thread.Yield();
    }

    private bool HasScheduledRoot => Array.Exists(Volatile.Read(ref _roots), static r => Volatile.Read(ref r.ScheduledToZap));

    /// <summary>Every root that is invalid has been zapped, or somebody will: true whenever mmu_lock can be taken.</summary>
    internal static bool HasItsZap(TdpRoot root) => !root.Invalid || root.Zapped || Volatile.Read(ref root.ScheduledToZap) || Volatile.Read(ref root.Zapping);

    /// <summary>Whether every invalid root has its zap already. For a holder of mmu_lock.</summary>
    internal bool ZapsAreScheduled => Array.TrueForAll(_roots, HasItsZap);

    private bool TakeScheduledRoot(out ZapCursor cursor)
    {
        _rootsLock.Enter();
        TdpRoot? found = Array.Find(_roots, static r => r.ScheduledToZap);
        if (found is not null)
        {
            // In this order: CheckInvariants sees a root that is scheduled, or one that is being zapped.
            Volatile.Write(ref found.Zapping, true);
            Volatile.Write(ref found.ScheduledToZap, false);
        }
        _rootsLock.Exit();
        cursor = new ZapCursor { Root = found, Level = ZapStepLevel };
        return found is not null;
    }

    /// <summary>
    /// Zaps a root in one hold of mmu_lock-read: to its end, or until somebody waits for the lock or for the worker. At the end drops the zapper's reference.
    /// </summary>
    /// <returns>True at the end.</returns>
    private bool ZapHold(ref ZapCursor cursor, bool mayYield)
    {
        BeforeZapHold?.Invoke();
        TdpRoot root = cursor.Root!;
        Lock.EnterRead();
        bool done = ZapSome(ref cursor, mayYield);
        if (done && !root.Zapped)
        {
            Interlocked.Increment(ref _rootsZapped);
            Interlocked.Increment(ref _flushesElided);
            Volatile.Write(ref root.Zapped, true);
            // After the zap: until here the root has to stay reachable for notifiers.
            PutRootLocked(root);
            _rootZapped.WakeAll();
        }
        if (done)
            Volatile.Write(ref root.Zapping, false);
        Lock.ExitRead();
        return done;
    }

    /// <summary>
    /// Empties an invalid root. No flush: the FreeObsoleteRoots request has made every vCPU leave it before mmu_lock was released by the invalidator (or no
    /// vCPU had it), and no ASID that has seen it is used again without a flush. Whole subtrees are unlinked; tables are freed after a grace period for the
    /// lockless walkers.
    /// </summary>
    /// <returns>True when nothing is left; false when the caller should let go of mmu_lock and call again.</returns>
    private bool ZapSome(ref ZapCursor cursor, bool mayYield)
    {
        Lock.AssertHeldRead();
        TdpRoot root = cursor.Root!;
        Debug.Assert(root.Invalid);
        var batch = new FlushBatch(FlushSite.None);
        bool done = true;
        Rcu.Enter();
        for (int steps = 0; done && cursor.Level <= root.Role.Level; cursor.Level += done ? root.Role.Level - ZapStepLevel : 0)
        {
            var it = new TdpIterator(root, cursor.NextGfn, MaxGfn, cursor.Level);
            while (done && it.MoveNext())
            {
                if (it.OldSpte == 0 || it.Level > cursor.Level)
                    continue;
                ZapEntry(ref it, root, ref batch);
                cursor.NextGfn = it.EndGfn;
                if (mayYield && (++steps == ZapStepsPerHold || Lock.NeedsBreak))
                    done = false;
            }
            if (done)
                cursor.NextGfn = 0;
        }
        Rcu.Exit();
        _pageReclaimer.Defer(batch);
        if (!done && Lock.NeedsBreak)
            Interlocked.Increment(ref _zapLockBreaks);
        return done;
    }

    private void ZapEntry(ref TdpIterator it, TdpRoot root, ref FlushBatch batch)
    {
        // No processor is left: the state is final, and is taken while the table can still be found.
        if (Leaves.Tracks(it.Gfn, it.EndGfn, root.Role.AsId) is var wanted and not LeafState.None)
            Leaves.TakeEntry(ref it, wanted);
        ulong old = ExchangeSpte(ref it, 0);
        it.SkipChildren();
        if (Spte.IsTable(old, it.Level))
            UnlinkTables(old, ref batch);
    }

    /// <summary>
    /// Makes every mapping obsolete at once. On return no vCPU can reach memory through a root that existed at the call, and every root that was invalid at or
    /// before the call has been zapped, also those that this call has skipped because somebody else had scheduled them. Caller holds the slots lock.
    /// </summary>
    public void ZapAllFast()
    {
        Slots.SlotsLock.AssertHeld();
        Lock.EnterWrite();
        InvalidateAllRoots();
        // Under mmu_lock: when it is released, obsolete tables can be unlinked without a flush.
        Host.FreeObsoleteRoots();
        if (Journal is not null)
            foreach (TdpRoot root in _roots)
                if (root.Invalid)
                    Journal.RootRetired(root.Hva);
        TdpRoot[] obsolete = _roots;
        Lock.ExitWrite();
        if (ZapPolicy != RootZapPolicy.Worker)
            ZapScheduledRoots(mayYield: ZapPolicy == RootZapPolicy.Sync);
        // Under mmu_lock-write every root was made invalid, so these are all that have to be waited for: others' zaps too, whichever thread does them.
        foreach (TdpRoot root in obsolete)
            WaitUntilZapped(root);
    }

    private void WaitUntilZapped(TdpRoot root)
    {
        while (true)
        {
            int ticket = _rootZapped.Ticket;
            // A worker that has failed zaps nothing any more; its VM is dead.
            if (Volatile.Read(ref root.Zapped) || _queue.IsFaulted)
                return;
            _rootZapped.Wait(ticket);
        }
    }

    /// <summary>With the Inline and Sync policies the thread that has dropped a last reference zaps, once it holds no lock.</summary>
    internal void RunInlineZaps()
    {
        if (ZapPolicy != RootZapPolicy.Worker)
            ZapScheduledRoots(mayYield: ZapPolicy == RootZapPolicy.Sync);
    }

    /// <summary>
    /// Tears down. All vCPUs have been disposed. Flushes the queue first, so that no zap is missed by the checks that follow.
    /// </summary>
    /// <exception cref="InvalidOperationException">A vCPU still holds a root, or a table page has leaked.</exception>
    public void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        using (Slots.SlotsLock.Enter())
            ZapAllFast();
        _queue.Drain();
        if (_roots.Length != 0)
            throw new InvalidOperationException($"{_roots.Length} root(s) left at teardown: {_roots[0]}");
        if (Allocator.Allocated != 0)
            throw new InvalidOperationException($"{Allocator.Allocated} table page(s) leaked");
        Allocator.Dispose();
    }

    /// <summary>Gives back the tables, also those of which <see cref="Dispose"/> has lost count. After the end of the work queue, which may still have
    /// some.</summary>
    public void FreeTables() => Allocator.Dispose();
}

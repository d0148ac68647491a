using System.Diagnostics;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Zapping of invalidated roots: the worker, the two other policies, "zap all fast", and teardown.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections.</remarks>
public sealed unsafe partial class TdpMmu
{
    /// <summary>The one work item of the MMU: zaps every scheduled root.</summary>
    private sealed class RootZapper(TdpMmu mmu) : WorkItem
    {
        protected override void Run() => mmu.ZapScheduledRoots(mayYield: true);
    }

    /// <summary>Subtrees of one entry at this level are unlinked in one step: at most 513 tables.</summary>
    private const int ZapStepLevel = PgLevel.Level1G;
    /// <summary>Tables unlinked in one hold of mmu_lock before the worker lets others in.</summary>
    private const int ZapStepsPerHold = 8;

    /// <summary>
    /// Zaps all scheduled roots and drops the reference that each zap owns. Several threads may do this at the same time: each root is taken by one.
    /// </summary>
    private void ZapScheduledRoots(bool mayYield)
    {
        while (TakeScheduledRoot() is { } root)
        {
            Lock.EnterRead();
            ZapRoot(root, mayYield);
            root.Zapped = true;
            Interlocked.Increment(ref _rootsZapped);
            Interlocked.Increment(ref _flushesElided);
            // After the zap: until here the root has to stay reachable for notifiers.
            PutRootLocked(root);
            Lock.ExitRead();
        }
    }

    private TdpRoot? TakeScheduledRoot()
    {
        _rootsLock.Enter();
        TdpRoot? found = Array.Find(_roots, static r => r.ScheduledToZap);
        if (found is not null)
            found.ScheduledToZap = false;
        _rootsLock.Exit();
        return found;
    }

    /// <summary>
    /// Empties an invalid root. No flush: the FreeObsoleteRoots request has made every vCPU leave it before mmu_lock was released by the invalidator (or no vCPU had it), and no ASID
    /// that has seen it is used again without a flush. Whole subtrees are unlinked without visiting leaves; tables are freed after a grace period for the lockless walkers.
    /// </summary>
    private void ZapRoot(TdpRoot root, bool mayYield)
    {
        Lock.AssertHeldRead();
        Debug.Assert(root.Invalid);
        // First by 1 GiB entries, so that every step is short; then what is left above them.
        ZapRootAtLevel(root, ZapStepLevel, mayYield);
        ZapRootAtLevel(root, root.Role.Level, mayYield);
    }

    private void ZapRootAtLevel(TdpRoot root, int level, bool mayYield)
    {
        FlushBatch batch = new(FlushSite.None);
        int steps = 0;
        Rcu.Enter();
        var it = new TdpIterator(root, 0, MaxGfn, level);
        while (it.MoveNext())
        {
            if (it.OldSpte == 0 || it.Level > level)
                continue;
            if (Tracks(it.Gfn, it.EndGfn, root.Role.AsId) is var wanted and not LeafState.None)
                HarvestEntry(ref it, wanted);
            ulong old = ExchangeSpte(ref it, 0);
            it.SkipChildren();
            if (Spte.IsTable(old, it.Level))
                UnlinkTables(old, ref batch);
            if (!mayYield || !it.MayYield || (++steps < ZapStepsPerHold && !Lock.NeedsBreak))
                continue;
            steps = 0;
            _pageReclaimer.Defer(batch.Unlinked);
            batch = new(FlushSite.None);
            Rcu.Exit();
            Lock.BreakRead();
            Rcu.Enter();
            it.Restart();
        }
        Rcu.Exit();
        _pageReclaimer.Defer(batch.Unlinked);
    }

    /// <summary>
    /// Makes every mapping obsolete at once. On return no vCPU can reach memory through a root that existed at the call, and every root that was invalid at or before the call has been zapped,
    /// also those that this call has skipped because somebody else had queued them. Caller holds the slots lock.
    /// </summary>
    public void ZapAllFast()
    {
        Slots.SlotsLock.AssertHeld();
        Lock.EnterWrite();
        InvalidateAllRoots();
        // Under mmu_lock: when it is released, obsolete tables can be unlinked without a flush.
        if (Journal is null || !Journal.Suppresses(FlushSite.ObsoleteRoots))
            _host.FreeObsoleteRoots();
        if (Journal is not null)
            foreach (TdpRoot root in _roots)
                if (root.Invalid)
                    Journal.RootRetired(root.Hva);
        Lock.ExitWrite();
        if (ZapPolicy != RootZapPolicy.Worker)
            ZapScheduledRoots(mayYield: ZapPolicy == RootZapPolicy.Sync);
        _queue.Flush();
    }

    private void RunInlineZaps()
    {
        if (ZapPolicy == RootZapPolicy.Inline)
            ZapScheduledRoots(mayYield: false);
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
}

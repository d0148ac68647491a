using System.Diagnostics;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Roots: sharing, references, invalidation. Zapping is in TdpMmu.ZapRoots.cs.</summary>
/// <remarks>SAFETY: (whole file) pages are handled by their owner: the allocator, then the root.</remarks>
public sealed partial class TdpMmu
{
    private TinyLock _rootsLock = new(LockRank.MmuRoots);

    /// <summary>
    /// All roots that have not been freed, invalid ones included. Readers: RCU alone (lockless aging), or RCU and mmu_lock (everything else). Replaced under
    /// <c>_rootsLock</c>; adding needs mmu_lock-read too, so that a holder of mmu_lock-write sees a list to which nothing is added.
    /// </summary>
    private TdpRoot[] _roots = [];

    /// <summary>The list, for walks of other classes.</summary>
    internal TdpRoot[] Roots => Volatile.Read(ref _roots);

    /// <summary>A referenced, valid root with the role: an existing one, or a new one. Null without memory. No lock held, no RCU section.</summary>
    internal unsafe TdpRoot? GetRoot(TdpRole role)
    {
        TablePage* page = null;
        while (true)
        {
            Lock.EnterRead();
            TdpRoot? root = FindOrAddRoot(role, ref page);
            Lock.ExitRead();
            if (root is not null)
            {
                if (page != null)
                    Allocator.Free(page, isZero: true);
                return root;
            }
            page = Allocator.Allocate();
            if (page == null)
                return null;
        }
    }

    /// <summary>Finds, or adds if <paramref name="page"/> is given, which it then takes.</summary>
    private unsafe TdpRoot? FindOrAddRoot(TdpRole role, ref TablePage* page)
    {
        Lock.AssertHeldRead();
        _rootsLock.Enter();
        try
        {
            foreach (TdpRoot root in _roots)
                if (root.Role == role && !root.Invalid && root.TryGet())
                    return root;
            if (page == null)
                return null;
            page->Level = role.Level;
            page->AsId = role.AsId;
            page->State = TablePageState.Live;
            var added = new TdpRoot(role, page, Allocator);
            page = null;
            Volatile.Write(ref _roots, [.. _roots, added]);
            return added;
        }
        finally { _rootsLock.Exit(); }
    }

    /// <summary>
    /// Drops a reference, on any thread, without locks. Never zaps in place (unless the policy says so): the last reference of a root that still maps something
    /// turns it invalid and queues its zap, with a new reference that the zapper drops. No flush: a processor runs with the root's ASID again only after
    /// <see cref="VcpuMmu.LoadRoot"/> has cleaned it.
    /// </summary>
    internal void PutRoot(TdpRoot root)
    {
        Lock.EnterRead();
        PutRootLocked(root);
        Lock.ExitRead();
        RunInlineZaps();
    }

    internal void PutRootLocked(TdpRoot root)
    {
        Lock.AssertHeld();
        if (Interlocked.Decrement(ref root.References) != 0)
            return;
        if (root.Zapped)
        {
            RemoveRoot(root);
            return;
        }
        // The MMU's own reference was dropped before (TrimRoots). Nobody can find the root any more: TryGet fails at zero.
        Volatile.Write(ref root.References, 1);
        root.Invalid = true;
        ScheduleZap(root);
    }

    private unsafe void RemoveRoot(TdpRoot root)
    {
        Debug.Assert(root.Invalid && root.Zapped && root.References == 0);
        _rootsLock.Enter();
        Volatile.Write(ref _roots, Array.FindAll(_roots, r => r != root));
        _rootsLock.Exit();
        root.Page->State = TablePageState.Unlinked;
        _rootReclaimer.Defer(root);
    }

    /// <summary>
    /// Makes every valid root obsolete and queues its zap before mmu_lock is released. An already invalid root is skipped: whoever made it invalid has queued
    /// it, and a second queueing would lose a reference.
    /// The zapper inherits the MMU's own reference.
    /// </summary>
    private void InvalidateAllRoots()
    {
        Lock.AssertHeldWrite();
        foreach (TdpRoot root in _roots)
        {
            if (root.Invalid)
                continue;
            if (!root.HasMmuReference)
            {
                bool got = root.TryGet();
                Debug.Assert(got, "a valid root without references");
            }
            root.HasMmuReference = false;
            root.Invalid = true;
            ScheduleZap(root);
        }
    }

    /// <summary>Caller has just made the root invalid, holds mmu_lock, and gives one reference to the zapper.</summary>
    private void ScheduleZap(TdpRoot root)
    {
        Lock.AssertHeld();
        Debug.Assert(root.Invalid && !root.ScheduledToZap && !root.Zapped);
        Volatile.Write(ref root.ScheduledToZap, true);
        if (ZapPolicy == RootZapPolicy.Worker)
            _queue.Queue(_zapper);
    }

    /// <summary>
    /// Drops the MMU's own reference of roots, so that a root which no vCPU uses is zapped and freed instead of waiting for its next user (memory pressure, an
    /// SMM root after boot).
    /// </summary>
    public void TrimRoots()
    {
        Lock.EnterWrite();
        foreach (TdpRoot root in _roots)
        {
            if (!root.HasMmuReference)
                continue;
            root.HasMmuReference = false;
            PutRootLocked(root);
        }
        Lock.ExitWrite();
        RunInlineZaps();
    }
}

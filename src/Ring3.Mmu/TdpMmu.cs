using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// The two-dimensional-paging MMU of one VM: nested page tables that map guest frames to host memory, shared between vCPUs.
/// </summary>
/// <remarks>
/// Locks: mmu_lock (<see cref="MemorySlots.MmuLock"/>) for read plus compare-exchange to add mappings or take rights away, for write to invalidate roots and to
/// remove ranges; walks are in RCU sections.
/// Never wait for a grace period with mmu_lock held. Flushes are owed in a <see cref="FlushBatch"/> and paid before the lock is released (docs/tlb.md). See
/// docs/tdp-mmu.md.
/// SAFETY: table memory is reached in RCU sections only and freed after a flush (or unreachable) and a grace period.
/// </remarks>
public sealed partial class TdpMmu : IMemslotListener, IMmuNotifierHandler, IDisposable
{
    /// <summary>gfns at and above this cannot be mapped by 4-level tables.</summary>
    public const ulong MaxGfn = 1UL << (48 - 12);

    internal readonly IMmuHost Host;
    private readonly WorkQueue _queue;
    private readonly RcuReclaimer _rootReclaimer;
    private readonly TablePageReclaimer _pageReclaimer;
    private readonly RootZapper _zapper;
    private readonly List<VcpuMmu> _vcpus = [];
    private TinyLock _vcpusLock = new(LockRank.MmuVcpus);
    private long _flushRequests, _flushesElided, _rootsZapped, _hugeSplits, _hugeRecoveries, _writeProtected;
    private int _mmioInstalled;
    private bool _disposed;

    internal readonly TablePageAllocator Allocator = new();

    /// <param name="slots">The VM's memory.</param>
    /// <param name="host">Flushes and requests.</param>
    /// <param name="queue">The VM's worker. Must outlive the MMU.</param>
    public TdpMmu(MemorySlots slots, IMmuHost host, WorkQueue queue)
    {
        Slots = slots;
        Host = host;
        _queue = queue;
        Leaves = new LeafHarvest(slots);
        _dirtyLogging = new DirtyLogging(this);
        _aging = new PageAging(this);
        _rootReclaimer = new RcuReclaimer(queue);
        _pageReclaimer = new TablePageReclaimer(Allocator, queue);
        _zapper = new RootZapper(this);
        slots.AddListener(this);
        slots.Notifier.AddHandler(this);
    }

    public MemorySlots Slots { get; }

    /// <summary>Who zaps invalidated roots.</summary>
    public RootZapPolicy ZapPolicy { get; init; } = RootZapPolicy.Worker;

    /// <summary>Deleting or moving a slot invalidates all roots (KVM_X86_QUIRK_SLOT_ZAP_ALL); otherwise only the slot's range is zapped.</summary>
    public bool SlotZapAll { get; set; } = true;

    /// <summary>Split huge mappings when dirty logging is enabled rather than at the first write to each.</summary>
    public bool EagerSplit { get; set; } = true;

    /// <summary>Largest mapping, a <see cref="PgLevel"/>.</summary>
    public int MaxLevel { get; set; } = PgLevel.MaxLeaf;

    /// <summary>Flush only the ranges that a batch has changed, when they are few.</summary>
    public bool RangeFlushes { get; set; } = true;

    /// <summary>Checked mode; null: off.</summary>
    public TlbJournal? Journal
    {
        get;
        init
        {
            field = value;
            if (value is not null)
                Slots.Notifier.Ended = value.HostReturned;
        }
    }

    /// <summary>Roots zapped since the VM was created. Cheap, unlike <see cref="GetStats"/>.</summary>
    public long RootsZapped => Volatile.Read(ref _rootsZapped);

    internal MmuLock Lock => Slots.MmuLock;

    /// <summary>Pays what a batch owes: the flush, while mmu_lock is held, then the unlinked tables, which go to the reclaimer. The batch is empty
    /// afterwards.</summary>
    internal unsafe void Finish(ref FlushBatch batch)
    {
        Lock.AssertHeld();
        if (batch.Needed)
        {
            Interlocked.Increment(ref _flushRequests);
            Flush(ref batch);
            Journal?.Settle(ref batch);
        }
        else if (batch.Elided)
            Interlocked.Increment(ref _flushesElided);
        if (batch.Wanted != LeafState.None)
            for (TablePage* page = batch.Unlinked; page != null; page = page->Next)
                Leaves.TakeTable(page, batch.Wanted);
        if (batch.WriteProtected != 0)
            Interlocked.Add(ref _writeProtected, batch.WriteProtected);
        _pageReclaimer.Defer(batch);
        batch = new FlushBatch(batch.Site);
    }

    /// <summary>In a walk with mmu_lock held for write, in an RCU section: if others wait for the lock, pays what is owed and lets them in. True: it did, and
    /// what was known about tables and slots may be out of date.</summary>
    internal bool YieldWrite(ref TdpIterator it, ref FlushBatch batch)
    {
        if (!it.MayYield || !Lock.NeedsBreak)
            return false;
        Finish(ref batch);
        Rcu.Exit();
        Lock.BreakWrite();
        Rcu.Enter();
        it.Restart();
        return true;
    }

    private void Flush(ref FlushBatch batch)
    {
        if (batch.Full || !RangeFlushes)
        {
            Host.FlushRemoteTlbs();
            return;
        }
        Span<GfnSpan> ranges = stackalloc GfnSpan[FlushBatch.MaxRanges];
        for (int i = 0; i < batch.Ranges; i++)
            ranges[i] = batch[i];
        Host.FlushRemoteTlbs(ranges[..batch.Ranges]);
    }

    /// <summary>A change of [start, end), already visible in the tables, takes something from processors that have the old entry cached: the batch will flush
    /// it.</summary>
    internal void Owe(ref FlushBatch batch, ulong start, ulong end, int asId, SpteLoss loss)
    {
        batch.Add(start, end);
        Journal?.Record(ref batch, start, end, asId, loss);
    }

    /// <summary>Counters. Walks the allocator's records: not for hot paths.</summary>
    public MmuStats GetStats()
    {
        Span<ulong> leaves = stackalloc ulong[PgLevel.MaxLeaf + 1];
        Allocator.CountLeaves(leaves);
        TdpRoot[] roots = Volatile.Read(ref _roots);
        return new MmuStats
        {
            Pages4K = leaves[PgLevel.Level4K], Pages2M = leaves[PgLevel.Level2M], Pages1G = leaves[PgLevel.Level1G],
            TablePages = (ulong)Allocator.Allocated, TableBytesReserved = Allocator.ReservedBytes,
            Roots = roots.Length, InvalidRoots = roots.Count(static r => r.Invalid),
            RootsZapped = (ulong)Volatile.Read(ref _rootsZapped), ZapLockBreaks = (ulong)Volatile.Read(ref _zapLockBreaks),
            TablePagesFreed = (ulong)_pageReclaimer.Freed,
            RemoteTlbFlushRequests = (ulong)Volatile.Read(ref _flushRequests), TlbFlushesElided = (ulong)Volatile.Read(ref _flushesElided),
            HugeSplits = (ulong)Volatile.Read(ref _hugeSplits), HugeRecoveries = (ulong)Volatile.Read(ref _hugeRecoveries),
            WriteProtected = (ulong)Volatile.Read(ref _writeProtected), NxSplits = (ulong)CountNxSplits(),
        };
    }

    internal void AddVcpu(VcpuMmu vcpu)
    {
        _vcpusLock.Enter();
        _vcpus.Add(vcpu);
        _vcpusLock.Exit();
    }

    /// <summary>References that vCPUs hold to a root.</summary>
    internal int CountHolders(TdpRoot root)
    {
        int n = 0;
        _vcpusLock.Enter();
        foreach (VcpuMmu vcpu in _vcpus)
            n += vcpu.Holds(root);
        _vcpusLock.Exit();
        return n;
    }

    /// <summary>Before a vCPU gets a root, so that none pays for the worker when it drops one; and not earlier, so that a VM that never runs has
    /// none.</summary>
    internal void StartWorker() => _queue.Start();

    internal void RemoveVcpu(VcpuMmu vcpu)
    {
        _vcpusLock.Enter();
        _vcpus.Remove(vcpu);
        _vcpusLock.Exit();
    }
}

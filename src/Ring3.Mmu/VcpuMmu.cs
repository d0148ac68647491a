using System.Runtime.CompilerServices;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// The MMU context of one vCPU: its current roots (normal and SMM), their ASIDs, its slot cache, and a few table pages in reserve. For the vCPU's own thread,
/// outside guest mode, except where noted.
/// </summary>
/// <remarks>SAFETY: (whole type) cached pages are in state Cached and belong to this object.</remarks>
public sealed class VcpuMmu : IDisposable
{
    private const int CacheSize = PgLevel.Root4;
    private readonly TdpMmu _mmu;
    private readonly IVcpuTlb _tlb;
    private readonly TdpRoot?[] _roots = new TdpRoot?[MemorySlots.AddressSpaces];
    private readonly uint[] _asids = new uint[MemorySlots.AddressSpaces];
    private unsafe TablePage* _cache;
    private int _cached;
    /// <summary>A kick is noticed between two waits.</summary>
    private const long LongestWaitNs = 50_000;

    private Backoff _backoff;
    private bool _retrying;
    internal MemslotCache SlotCache;

    /// <summary>After <see cref="MmuResult.MemoryFault"/> for memory that is gone: the page.</summary>
    public ulong FailedGfn { get; internal set; }
    /// <summary>As <see cref="FailedGfn"/>: its host address.</summary>
    public ulong FailedHva { get; internal set; }

    /// <summary>Counters.</summary>
    public VcpuMmuStats Stats;

    public VcpuMmu(TdpMmu mmu, IVcpuTlb tlb)
    {
        _mmu = mmu;
        _tlb = tlb;
        mmu.AddVcpu(this);
    }

    /// <summary>Address space in use: 0 normal, 1 SMM. After a change call <see cref="LoadRoot"/> before entering the guest.</summary>
    public int AsId { get; set; }

    /// <summary>The current root, or null.</summary>
    public TdpRoot? Root => _roots[AsId];

    /// <summary>Host address of the current top table; 0 without root.</summary>
    public ulong RootHva
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => _roots[AsId]?.Hva ?? 0;
    }

    /// <summary>ASID of the current root.</summary>
    public uint Asid => _asids[AsId];

    /// <summary>
    /// Makes sure that the current address space has a valid root. A newly loaded root gets an ASID without stale translations: freeing roots flushes nothing,
    /// this does.
    /// Call before every entry (cheap when nothing is to do), then use <see cref="RootHva"/> and <see cref="Asid"/>.
    /// </summary>
    /// <returns>False when the host has no memory for a root.</returns>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool LoadRoot() => _roots[AsId] is { Invalid: false } || LoadSlow();

    [MethodImpl(MethodImplOptions.NoInlining)]
    private bool LoadSlow()
    {
        FreeObsoleteRoots();
        _mmu.StartWorker();
        TdpRoot? root = _mmu.GetRoot(new TdpRole(PgLevel.Root4, AsId));
        if (root is null)
            return false;
        _roots[AsId] = root;
        _asids[AsId] = _tlb.AssignAsid(AsId != 0);
        return true;
    }

    /// <summary>Answer to the FreeObsoleteRoots request: drops roots that have been invalidated.</summary>
    public void FreeObsoleteRoots()
    {
        for (int i = 0; i < _roots.Length; i++)
            if (_roots[i] is { Invalid: true })
                FreeRoot(i);
    }

    /// <summary>Drops all roots. No flush: nothing runs under their ASIDs until <see cref="LoadRoot"/> has assigned new ones.</summary>
    public void FreeRoots()
    {
        for (int i = 0; i < _roots.Length; i++)
            FreeRoot(i);
    }

    private void FreeRoot(int asId)
    {
        if (_roots[asId] is not { } root)
            return;
        _roots[asId] = null;
        _mmu.PutRoot(root);
    }

    /// <summary>
    /// A fault has to be retried because another thread is in the middle of something. The first retries are immediate; a vCPU that keeps meeting the same
    /// obstacle lets the other thread run (it may have lost the processor to this very vCPU).
    /// </summary>
    internal void WaitBeforeRetry()
    {
        Stats.PfRetry++;
        _retrying = true;
        // After an end it is awake for a while: a client that invalidates without a rest leaves little time between.
        if (_backoff.IsSleeping && _mmu.Slots.Notifier.AwaitEnd(LongestWaitNs))
            _backoff = default;
        else
            _backoff.Pause();
    }

    internal void Progressed()
    {
        if (!_retrying)
            return;
        _retrying = false;
        _backoff = default;
    }

    /// <summary>Fills the page cache so that a fault cannot run out of pages under mmu_lock.</summary>
    internal unsafe bool TopUp()
    {
        while (_cached < CacheSize)
        {
            TablePage* page = _mmu.Allocator.Allocate();
            if (page == null)
                return false;
            Return(page);
        }
        return true;
    }

    internal unsafe TablePage* Take()
    {
        TablePage* page = _cache;
        _cache = page->Next;
        page->Next = null;
        _cached--;
        return page;
    }

    /// <summary>Takes back a page whose installation lost a race. Its table is zero again.</summary>
    internal unsafe void Return(TablePage* page)
    {
        page->Next = _cache;
        _cache = page;
        _cached++;
    }

    /// <summary>Number of references to a root that this vCPU holds. For checks.</summary>
    internal int Holds(TdpRoot root) => (_roots[0] == root ? 1 : 0) + (_roots[1] == root ? 1 : 0);

    /// <summary>Drops roots and cached pages. The vCPU never runs again.</summary>
    public unsafe void Dispose()
    {
        FreeRoots();
        while (_cache != null)
            _mmu.Allocator.Free(Take(), isZero: true);
        _mmu.RemoveVcpu(this);
    }
}

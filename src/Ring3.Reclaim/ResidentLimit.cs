using System.Diagnostics.CodeAnalysis;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Reclaim;

/// <summary>
/// Keeps a VM's memory inside a resident limit. Pages carry generations, which aging passes over the Accessed bits keep up to date; a thread evicts the oldest
/// to a file before the limit is reached, and a processor that faults at the limit makes room first. Whoever touches an evicted page, guest or host, gets it
/// back from the kernel. See docs/reclaim.md.
/// </summary>
/// <remarks>
/// Lock order: the reclaim lock is outside mmu_lock and RCU, and inside nothing: it is not taken under any lock of the VM, nor in an RCU section.
/// The limit is on resident pages of the given memory. Faults of processors are held back exactly; a copy into guest memory by a device is counted at once but
/// not held back, and the thread makes up for it.
/// </remarks>
public sealed partial class ResidentLimit : IResidency
{
    /// <summary>Smallest limit, in bytes, for a VM with so many processors: what their instructions may need at one time, with room to breathe.</summary>
    public static ulong MinBytes(int vcpus) => (4UL << 20) + ((ulong)vcpus << 18);

    /// <summary>One fault can make the kernel map so many neighbours that are in the page cache.</summary>
    private const int FaultAroundPages = 16;

    private readonly IResidentHost _host;
    private readonly ResidentOptions _options;
    private readonly PageStore? _store;
    private readonly PageMap _map;
    private readonly FutexMutex _lock = new(LockRank.ReclaimLock);
    private readonly Generations _generations = new();
    private readonly RefaultFeedback _feedback = new();
    private readonly WaitQueue _wakeups = new();
    private readonly Thread _thread;
    private PagedRange[] _ranges = [];
    private ulong _bytes;
    private long _resident, _peak, _evictions, _writes, _refaults, _recentRefaults, _direct, _passes, _failures;
    /// <summary>Watermarks in pages: processors wait at the hard one, the thread starts at the high one and evicts to the low one.</summary>
    private long _hard, _high, _low;
    private int _asked, _stop, _warned, _started;

    /// <summary>Starts to limit a VM's memory, or to watch it. The VM has no other limit.</summary>
    /// <param name="host">The VM, which may be running.</param>
    /// <param name="memory">Anonymous, page-aligned host memory behind the guest, which stays mapped until the VM is disposed of. It becomes a mapping of the
    /// store's file with the same contents.</param>
    /// <param name="bytes">The limit; <see cref="ulong.MaxValue"/>: watch only, without a store.</param>
    /// <exception cref="ArgumentOutOfRangeException">The limit is below <see cref="MinBytes"/>, or an interval is not positive.</exception>
    /// <exception cref="IOException">The store cannot be made.</exception>
    /// <exception cref="InvalidOperationException">The VM has a limit already.</exception>
    public static ResidentLimit Start(IResidentHost host, IEnumerable<HvaRange> memory, ulong bytes, ResidentOptions? options = null)
    {
        options ??= new();
        CheckBytes(host, bytes);
        ArgumentOutOfRangeException.ThrowIfLessThan(options.AgingIntervalMs, 1, nameof(options));
        PageStore? store = bytes == ulong.MaxValue ? null
            : options.Directory is null ? PageStore.CreateInDefaultDirectory()
            : PageStore.Create(options.Directory);
        var limit = new ResidentLimit(host, bytes, options, store);
        if (!host.TryAttach(limit))
        {
            store?.Dispose();
            throw new InvalidOperationException("the virtual machine has a resident limit already");
        }
        try
        {
            foreach (HvaRange range in memory)
                limit.AddMemory(range);
        }
        catch
        {
            host.Detach(limit);
            limit.Stop();
            throw;
        }
        limit._started = 1;
        limit._thread.Start();
        return limit;
    }

    private ResidentLimit(IResidentHost host, ulong bytes, ResidentOptions options, PageStore? store)
    {
        _host = host;
        _options = options;
        _store = store;
        _map = store?.Map ?? new PageMap();
        SetWatermarks(bytes);
        _thread = new Thread(Reclaim) { IsBackground = true, Name = "ring3-reclaim" };
    }

    /// <summary>The limit in bytes. It may be changed at any time; a lower one is reached after a short while, and faults wait for it.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Below <see cref="MinBytes"/>.</exception>
    /// <exception cref="InvalidOperationException">The memory is only watched: there is no store.</exception>
    public ulong Bytes
    {
        get => _bytes;
        set
        {
            CheckBytes(_host, value);
            if (_store is null && value != ulong.MaxValue)
                throw new InvalidOperationException("memory that is only watched has no store to evict to");
            SetWatermarks(value);
            Wake();
        }
    }

    /// <summary>Directory of the store; null when memory is only watched.</summary>
    public string? Directory => _store?.Directory;

    /// <summary>The store's file system keeps files in memory: the guest's resident memory shrinks, but not what the host uses.</summary>
    public bool IsStoreInMemory => _store is { IsInMemory: true };

    /// <summary>Resident bytes of the memory, as counted.</summary>
    public ulong ResidentBytes => (ulong)Math.Max(0, Volatile.Read(ref _resident)) << Page.Shift;

    private static void CheckBytes(IResidentHost host, ulong bytes)
    {
        int processors = host.Processors;
        ulong least = MinBytes(processors);
        if (bytes < least)
            throw new ArgumentOutOfRangeException(nameof(bytes),
                $"a resident limit must be at least {least >> 10} KiB for {processors} processors, not {bytes >> 10} KiB");
    }

    private void SetWatermarks(ulong bytes)
    {
        long pages = bytes == ulong.MaxValue ? long.MaxValue / 2 : (long)(bytes >> Page.Shift);
        long gap = Math.Clamp(pages / 32, 32, 4096);
        // What processors and devices can map between the test and the count.
        long hard = pages - FaultAroundPages * (_host.Processors + 2);
        Volatile.Write(ref _bytes, bytes);
        Volatile.Write(ref _hard, hard);
        Volatile.Write(ref _high, hard - gap);
        Volatile.Write(ref _low, hard - 2 * gap);
    }

    /// <summary>Adds memory to what is limited. As for <see cref="Start"/>.</summary>
    /// <exception cref="IOException">The store has no room for what the memory contains.</exception>
    public void AddMemory(HvaRange memory)
    {
        var range = new PagedRange(memory);
        MmuNotifier notifier = _host.Slots.Notifier;
        using var _ = _lock.Enter();
        // Mappings of larger pages go; from now on there are only small ones.
        bool active = notifier.InvalidateRangeStart(memory.Start, memory.End);
        try { _store?.Attach(memory.Start, memory.Bytes); }
        finally
        {
            if (active)
                notifier.InvalidateRangeEnd(memory.Start, memory.End);
        }
        Volatile.Write(ref _ranges, [.. _ranges, range]);
        Resync(range);
    }

    void IResidency.BeforeFault()
    {
        if (Volatile.Read(ref _resident) >= Volatile.Read(ref _hard))
            MakeRoom();
    }

    void IResidency.Touched(ulong hva, ulong bytes)
    {
        if (!TryFind(hva, out PagedRange? range))
            return;
        byte young = _generations.YoungestLabel;
        int first = range.PageOf(hva), last = range.PageOf(Math.Min(hva + bytes, range.Memory.End) - 1);
        for (int page = first; page <= last; page++)
        {
            ref byte label = ref range.Labels[page];
            if (Volatile.Read(ref label) == young)
                continue;
            byte old = Interlocked.Exchange(ref label, young);
            if (old == young)
                continue;
            _generations.Moved(old, young);
            if (!Generations.IsResident(old))
                BecameResident(range, page);
        }
    }

    bool IResidency.TryDiscard(ulong hva, ulong bytes)
    {
        if (_store is null || !TryFind(hva, out PagedRange? range) || hva + bytes > range.Memory.End)
            return false;
        using var _ = _lock.Enter();
        _store.Discard(hva, bytes);
        for (int page = range.PageOf(hva), end = page + (int)(bytes >> Page.Shift); page < end; page++)
        {
            byte old = Interlocked.Exchange(ref range.Labels[page], 0);
            _generations.Moved(old, 0);
            if (Generations.IsResident(old))
                Interlocked.Decrement(ref _resident);
            range.Shadows[page] = 0;
        }
        return true;
    }

    private void BecameResident(PagedRange range, int page)
    {
        Count(range, page);
        if (_store is not null)
            CountNeighbours(range, page);
        if (Volatile.Read(ref _resident) > Volatile.Read(ref _high))
            Wake();
    }

    private void Count(PagedRange range, int page)
    {
        long resident = Interlocked.Increment(ref _resident);
        if (resident > Volatile.Read(ref _peak))
            Volatile.Write(ref _peak, resident);
        (bool refault, bool recent) = _feedback.BecameResident(ref range.Shadows[page], _generations.Youngest);
        if (!refault)
            return;
        Interlocked.Increment(ref _refaults);
        if (recent)
            Interlocked.Increment(ref _recentRefaults);
    }

    /// <summary>A fault on a page that is in the page cache also maps its neighbours that are there.</summary>
    private void CountNeighbours(PagedRange range, int page)
    {
        Span<ulong> words = stackalloc ulong[FaultAroundPages];
        ulong first = range.HvaOf(page) & ~((ulong)FaultAroundPages * Page.Size - 1);
        if (!_map.Read(first, words))
            return;
        byte label = Generations.LabelOf(Math.Min(_generations.Oldest + 1, _generations.Youngest));
        for (int i = 0; i < words.Length; i++)
        {
            ulong hva = first + (ulong)i * Page.Size;
            if ((words[i] & PageMap.Present) == 0 || !range.Contains(hva))
                continue;
            int neighbour = range.PageOf(hva);
            byte old = Volatile.Read(ref range.Labels[neighbour]);
            if (!Generations.IsResident(old) && _generations.TryMove(ref range.Labels[neighbour], old, label))
                Count(range, neighbour);
        }
    }

    private bool TryFind(ulong hva, [NotNullWhen(true)] out PagedRange? range)
    {
        foreach (PagedRange r in Volatile.Read(ref _ranges))
        {
            if (!r.Contains(hva))
                continue;
            range = r;
            return true;
        }
        range = null;
        return false;
    }

    /// <summary>The working set now.</summary>
    public WorkingSet Measure()
    {
        long now = HostClock.MonotonicNs(), oldest = _generations.Oldest;
        var generations = new List<GenerationSize>();
        for (long g = _generations.Youngest; g >= oldest; g--)
            generations.Add(new GenerationSize(g, _generations.PagesOf(g), (now - _generations.BornNs(g)) / 1_000_000));
        return new WorkingSet(generations, _bytes, Volatile.Read(ref _resident), _generations.Evicted, Volatile.Read(ref _peak),
            Volatile.Read(ref _evictions), Volatile.Read(ref _writes), Volatile.Read(ref _refaults), Volatile.Read(ref _recentRefaults),
            Volatile.Read(ref _direct), Volatile.Read(ref _passes), Volatile.Read(ref _failures));
    }

    /// <summary>Stops limiting. The memory keeps its contents; what is evicted still comes back.</summary>
    public void Stop()
    {
        if (Interlocked.Exchange(ref _stop, 1) != 0)
            return;
        _wakeups.WakeAll();
        if (_started != 0)
            _thread.Join();
        using var _ = _lock.Enter();
        _store?.Dispose();
    }
}

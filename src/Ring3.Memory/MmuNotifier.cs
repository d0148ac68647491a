using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>The MMU's side of the notifier.</summary>
public interface IMmuNotifierHandler
{
    /// <summary>Removes all mappings of the frames, and flushes: on return no processor uses one, and their memory may go away. Caller holds mmu_lock for
    /// write.</summary>
    void Unmap(FrameRanges frames);

    /// <summary>Clears Accessed bits. No lock held.</summary>
    /// <returns>True if any was set.</returns>
    bool AgeGfnRange(in GfnRange range);

    /// <summary>Tests Accessed bits. No lock held.</summary>
    bool TestAgeGfnRange(in GfnRange range);
}

/// <summary>A cache of translated guest memory that the notifier invalidates before page tables (see GfnToPfnCache).</summary>
public interface IInvalidatedByHva
{
    void InvalidateHvaRange(ulong start, ulong end);
}

/// <summary>
/// Tells a VM that host memory is about to change, and lets faults in flight notice it: the host reports start, changes its mappings, reports end.
/// A fault notes <see cref="InvalidateSeq"/> before it looks at host memory and asks <see cref="NeedsRetry"/> under mmu_lock before it installs anything.
/// </summary>
public sealed class MmuNotifier
{
    private readonly MemorySlots _slots;
    private IMmuNotifierHandler[] _handlers = [];
    private IInvalidatedByHva[] _caches = [];
    private TinyLock _lock = new(LockRank.MmuNotifier);
    private ulong _seq;
    private int _inProgress;
    /// <summary>Invalidations between start and end, counted before caches are invalidated (outside mmu_lock).</summary>
    private int _active;
    private ulong _rangeStart, _rangeEnd;
    /// <summary>Ends so far, for those who sleep until the next one, and how many do.</summary>
    private readonly int[] _ends = GC.AllocateArray<int>(1, pinned: true);
    private int _sleepers;

    internal MmuNotifier(MemorySlots slots) => _slots = slots;

    internal IResidency? Residency => _slots.Residency;

    /// <summary>Number of invalidations that have ended.</summary>
    public ulong InvalidateSeq => Volatile.Read(ref _seq);

    /// <summary>Invalidations started and not ended.</summary>
    public int InProgress => Volatile.Read(ref _inProgress);

    public void AddHandler(IMmuNotifierHandler handler)
    {
        _lock.Enter();
        _handlers = [.. _handlers, handler];
        _lock.Exit();
    }

    public void AddCache(IInvalidatedByHva cache)
    {
        _lock.Enter();
        _caches = [.. _caches, cache];
        _lock.Exit();
    }

    public void RemoveCache(IInvalidatedByHva cache)
    {
        _lock.Enter();
        _caches = Array.FindAll(_caches, c => c != cache);
        _lock.Exit();
    }

    /// <summary>
    /// Host memory [start, end) is about to be unmapped, moved, or replaced. On return no vCPU, cache or accessor that follows the protocol can reach it, and
    /// none can map it again before
    /// <see cref="InvalidateRangeEnd"/>. Must not be called in an RCU section or with mmu_lock held.
    /// </summary>
    /// <returns>True if the range touches the VM; then, and only then, the caller must call <see cref="InvalidateRangeEnd"/> with the same range.</returns>
    public bool InvalidateRangeStart(ulong start, ulong end) =>
        (TouchesAnySlot(start, end) || Volatile.Read(ref _caches).Length != 0) && InvalidateRangesStart([new HvaRange(start, end)]);

    /// <summary>
    /// As <see cref="InvalidateRangeStart"/> for several ranges by ascending address, with one flush. Faults anywhere between the first and the last wait for
    /// the end.
    /// </summary>
    /// <returns>True: the caller must call <see cref="InvalidateRangesEnd"/> with the same ranges.</returns>
    public bool InvalidateRangesStart(ReadOnlySpan<HvaRange> ranges)
    {
        (ulong first, ulong last) = (ranges[0].Start, ranges[^1].End);
        // PAIRS-WITH: CacheNeedsRetry. Caches look at the count after they have translated; they are invalidated after it is visible, so none becomes valid
        // again unseen.
        Interlocked.Increment(ref _active);
        foreach (IInvalidatedByHva cache in Volatile.Read(ref _caches))
            foreach (HvaRange r in ranges)
                cache.InvalidateHvaRange(r.Start, r.End);
        _slots.MmuLock.EnterWrite();
        if (_inProgress++ == 0)
            (_rangeStart, _rangeEnd) = (first, last);
        else
            (_rangeStart, _rangeEnd) = (Math.Min(_rangeStart, first), Math.Max(_rangeEnd, last));
        foreach (IMmuNotifierHandler handler in Volatile.Read(ref _handlers))
            handler.Unmap(new FrameRanges(_slots, ranges));
        _slots.MmuLock.ExitWrite();
        return true;
    }

    /// <summary>Hears of every change that is complete, before faults may look again: what a checked VM compares translations with.</summary>
    public Action<ulong, ulong>? Ended { get; set; }

    /// <summary>The change announced by a start that returned true is complete.</summary>
    public void InvalidateRangeEnd(ulong start, ulong end) => InvalidateRangesEnd([new HvaRange(start, end)]);

    /// <summary>The changes announced by <see cref="InvalidateRangesStart"/> are complete.</summary>
    public void InvalidateRangesEnd(ReadOnlySpan<HvaRange> ranges)
    {
        _slots.MmuLock.EnterWrite();
        // Not what lies between the ranges: it has kept its translations.
        if (Ended is { } ended)
            foreach (HvaRange r in ranges)
                ended(r.Start, r.End);
        // A fault that noted the old sequence may have looked at the old memory: the new sequence makes it retry after the in-progress count has dropped.
        Volatile.Write(ref _seq, _seq + 1);
        // PAIRS-WITH: NeedsRetry (reads in-progress first, then the sequence).
        Volatile.Write(ref _inProgress, _inProgress - 1);
        Volatile.Write(ref _ends[0], _ends[0] + 1);
        _slots.MmuLock.ExitWrite();
        // PAIRS-WITH: CacheNeedsRetry (reads the count first, then the sequence), and AwaitEnd (counts itself, then looks): the locked instruction is between
        // the end and the look for sleepers.
        Interlocked.Decrement(ref _active);
        if (Volatile.Read(ref _sleepers) != 0)
            WakeSleepers();
    }

    private unsafe void WakeSleepers()
    {
        // SAFETY: the array is pinned and lives as long as the notifier.
        fixed (int* ends = _ends)
            Futex.Wake(ends);
    }

    /// <summary>
    /// Sleeps until an invalidation ends, at most <paramref name="nanoseconds"/>. For a fault that has met one: who sleeps by the clock instead can be in step
    /// with a client that invalidates again and again, and never be awake between.
    /// </summary>
    /// <returns>False, at once, when none is in progress.</returns>
    public unsafe bool AwaitEnd(long nanoseconds)
    {
        int seen = Volatile.Read(ref _ends[0]);
        if (InProgress == 0)
            return false;
        Interlocked.Increment(ref _sleepers);
        // SAFETY: the array is pinned and lives as long as the notifier.
        fixed (int* ends = _ends)
            if (InProgress != 0)
                Futex.Wait(ends, seen, nanoseconds);
        Interlocked.Decrement(ref _sleepers);
        return true;
    }

    /// <summary>True if what a cache found after it had noted <paramref name="seq"/> may be out of date. Caller holds the cache's lock for write.</summary>
    public bool CacheNeedsRetry(ulong seq) => Volatile.Read(ref _active) != 0 || Volatile.Read(ref _seq) != seq;

    /// <summary>True if what a fault found at <paramref name="hva"/> after it had noted <paramref name="seq"/> may be out of date. Caller holds mmu_lock in
    /// either mode.</summary>
    public bool NeedsRetry(ulong seq, ulong hva)
    {
        _slots.MmuLock.AssertHeld();
        if (Volatile.Read(ref _inProgress) != 0 && hva >= _rangeStart && hva < _rangeEnd)
            return true;
        return Volatile.Read(ref _seq) != seq;
    }

    /// <summary>True if host memory in [start, end) is between the start and the end of an invalidation: a mapping that reaches over it must not be made,
    /// whichever page is wanted. Caller holds mmu_lock in either mode.</summary>
    public bool IsChanging(ulong start, ulong end)
    {
        _slots.MmuLock.AssertHeld();
        return Volatile.Read(ref _inProgress) != 0 && start < _rangeEnd && _rangeStart < end;
    }

    /// <summary>Clears the Accessed bits of what maps [start, end).</summary>
    /// <returns>True if any was set.</returns>
    public bool ClearYoung(ulong start, ulong end) => Age(start, end, clear: true);

    /// <summary>True if any Accessed bit of what maps [start, end) is set.</summary>
    public bool TestYoung(ulong start, ulong end) => Age(start, end, clear: false);

    private bool Age(ulong start, ulong end, bool clear)
    {
        bool young = false;
        using var _ = Rcu.Read();
        foreach (IMmuNotifierHandler handler in Volatile.Read(ref _handlers))
            for (int asId = 0; asId < MemorySlots.AddressSpaces; asId++)
                foreach (Memslot slot in _slots.Set(asId).InHvaRange(start, end))
                    if (FrameRanges.TryClip(slot, start, end, out GfnRange range))
                        young |= clear ? handler.AgeGfnRange(range) : handler.TestAgeGfnRange(range);
        return young;
    }

    /// <summary>Whether a byte of [start, end) is memory of a slot.</summary>
    public bool TouchesAnySlot(ulong start, ulong end)
    {
        using var _ = Rcu.Read();
        for (int asId = 0; asId < MemorySlots.AddressSpaces; asId++)
            if (_slots.Set(asId).InHvaRange(start, end).MoveNext())
                return true;
        return false;
    }

    /// <summary>
    /// What the frames of [start, end) stand for changes: publishes that and removes their mappings in one hold of mmu_lock. A fault that knows the old state
    /// installs before and is removed, or finds out under mmu_lock.
    /// </summary>
    internal void UnmapGfns(ulong start, ulong end, Action publish)
    {
        _slots.MmuLock.EnterWrite();
        publish();
        foreach (IMmuNotifierHandler handler in Volatile.Read(ref _handlers))
            handler.Unmap(new FrameRanges(start, end));
        _slots.MmuLock.ExitWrite();
    }
}

using System.Runtime.InteropServices;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Reclaim;

// Eviction, and the thread that does most of it.
public sealed partial class ResidentLimit
{
    /// <summary>Aging passes in a row that find nothing to evict, after which the youngest generations are not spared any more.</summary>
    private const int PatientPasses = 3;
    /// <summary>After a failure to write, faults do not wait for so long, and the next attempt is made afterwards.</summary>
    private const long FailurePauseNs = 200_000_000;

    private int _rangeCursor, _pageCursor;
    private long _pauseUntilNs;

    /// <summary>Evicts until no more than so many bytes are resident, or nothing more can be. Any thread; not under a lock of the VM, and not on a vCPU's
    /// thread while it is in the guest.</summary>
    /// <returns>Whether it got there.</returns>
    public bool EvictTo(ulong bytes)
    {
        if (_store is null)
            return false;
        using var _ = _lock.Enter();
        return EvictTo((long)(bytes >> Page.Shift));
    }

    private void Wake()
    {
        if (Interlocked.Exchange(ref _asked, 1) == 0)
            _wakeups.WakeAll();
    }

    /// <summary>The thread: keeps room below the limit, ages at its interval, and gives the store's page cache back.</summary>
    private void Reclaim()
    {
        long next = HostClock.MonotonicNs() + _options.AgingIntervalMs * 1_000_000L;
        while (Volatile.Read(ref _stop) == 0)
        {
            int ticket = _wakeups.Ticket;
            long left = next - HostClock.MonotonicNs();
            if (left > 0 && Volatile.Read(ref _asked) == 0 && Volatile.Read(ref _stop) == 0)
                _wakeups.Wait(ticket, left);
            if (Interlocked.Exchange(ref _asked, 0) != 0)
                EvictToLow();
            if (HostClock.MonotonicNs() < next)
                continue;
            PeriodicPass();
            next = HostClock.MonotonicNs() + _options.AgingIntervalMs * 1_000_000L;
        }
    }

    /// <summary>By small steps, so that a processor at the limit gets its turn.</summary>
    private void EvictToLow()
    {
        while (Volatile.Read(ref _resident) > Volatile.Read(ref _low) && Volatile.Read(ref _stop) == 0)
        {
            using var _ = _lock.Enter();
            if (!EvictTo(Math.Max(Volatile.Read(ref _low), Volatile.Read(ref _resident) - PageStore.MaxBatch)))
                return;
        }
    }

    private void PeriodicPass()
    {
        using (_lock.Enter())
        {
            if (_stop != 0)
                return;
            AgeLocked();
            foreach (PagedRange range in _ranges)
                Resync(range);
        }
        if (Volatile.Read(ref _resident) > Volatile.Read(ref _high))
            Wake();
        // Pages that were written since the last call start their way to the disk; those that are there leave the page cache.
        _store?.DropCache();
        _options.Aged?.Invoke(this);
    }

    /// <summary>A processor is at the limit: it makes room for itself and a few more.</summary>
    private void MakeRoom()
    {
        using var _ = _lock.Enter();
        long hard = Volatile.Read(ref _hard);
        if (Volatile.Read(ref _resident) < hard || _store is null)
            return;
        Interlocked.Increment(ref _direct);
        EvictTo(hard - PageStore.MaxBatch / 2);
    }

    private bool EvictTo(long pages)
    {
        _lock.AssertHeld();
        int passes = 0;
        while (Volatile.Read(ref _resident) > pages)
        {
            if (_stop != 0 || HostClock.MonotonicNs() < _pauseUntilNs)
                return false;
            long before = Volatile.Read(ref _evictions);
            if (!_generations.CanEvict && passes < PatientPasses)
            {
                passes++;
                AgeLocked();
            }
            else if (FindOldest(out PagedRange? range, out int block))
                EvictFrom(range!, block);
            else if (_generations.Oldest < _generations.Youngest)
                _generations.RetireOldest();
            else
                return false;
            if (Volatile.Read(ref _evictions) != before)
                passes = 0;
        }
        return true;
    }

    /// <summary>The next block, round the memory, with a page of the oldest generation. Retires generations that have none.</summary>
    private bool FindOldest(out PagedRange? range, out int block)
    {
        PagedRange[] ranges = _ranges;
        byte oldest = Generations.LabelOf(_generations.Oldest);
        (range, block) = (null, 0);
        if (ranges.Length == 0)
            return false;
        if (_rangeCursor >= ranges.Length)
            (_rangeCursor, _pageCursor) = (0, 0);
        for (int i = 0; i <= ranges.Length; i++)
        {
            range = ranges[_rangeCursor];
            int found = _pageCursor < range.Pages ? range.Labels.AsSpan(_pageCursor).IndexOf(oldest) : -1;
            if (found >= 0)
            {
                block = (_pageCursor + found) / PagedRange.BlockPages;
                _pageCursor += found;
                return true;
            }
            _pageCursor = 0;
            _rangeCursor = (_rangeCursor + 1) % ranges.Length;
        }
        return false;
    }

    /// <summary>Evicts up to a batch of pages of the oldest generation from a block, those from the cursor on.</summary>
    private void EvictFrom(PagedRange range, int block)
    {
        Span<ulong> pages = stackalloc ulong[BlockWords], evicted = stackalloc ulong[BlockWords];
        // A last look: what was used since the last pass stays.
        HarvestBlock(range, block, pages, _generations.YoungestLabel);
        pages.Clear();
        int first = block * PagedRange.BlockPages, end = first + range.PagesOf(block);
        byte oldest = Generations.LabelOf(_generations.Oldest), younger = Generations.LabelOf(_generations.Oldest + 1);
        int chosen = 0, page = Math.Max(first, _pageCursor);
        for (; page < end && chosen < PageStore.MaxBatch; page++)
        {
            ref byte label = ref range.Labels[page];
            if (Volatile.Read(ref label) != oldest)
                continue;
            if (_generations.CanEvict && _feedback.Protects(range.Shadows[page]))
                _generations.TryMove(ref label, oldest, younger);
            else
            {
                pages[(page - first) >> 6] |= 1UL << (page - first);
                chosen++;
            }
        }
        _pageCursor = page;
        if (chosen != 0)
            EvictPages(range, first, pages, evicted);
    }

    /// <summary>
    /// Start of the invalidation: translations and caches are gone, processors have left. Then the pages are marked as out, before they are: whoever touches
    /// one in between, or afterwards, marks it as in again. Then they are written and dropped, while writers wait.
    /// End of the invalidation: faults that met it start again.
    /// </summary>
    private void EvictPages(PagedRange range, int first, ReadOnlySpan<ulong> pages, Span<ulong> evicted)
    {
        Span<HvaRange> runs = stackalloc HvaRange[PageStore.MaxBatch];
        runs = runs[..Runs(range.HvaOf(first), pages, runs)];
        MmuNotifier notifier = _host.Slots.Notifier;
        notifier.InvalidateRangesStart(runs);
        long youngest = _generations.Youngest;
        foreach (int i in new Bits(pages))
            MarkOut(range, first + i, youngest);
        int written = _store!.Evict(range.HvaOf(first), pages, evicted);
        int done = 0;
        foreach (int i in new Bits(pages))
        {
            if ((evicted[i >> 6] >> (i & 63) & 1) != 0)
                done++;
            else if (_generations.TryMove(ref range.Labels[first + i], Generations.Out, Generations.LabelOf(_generations.Oldest)))
                Count(range, first + i);
        }
        notifier.InvalidateRangesEnd(runs);
        Volatile.Write(ref _evictions, _evictions + done);
        Volatile.Write(ref _writes, _writes + written);
        if (done == 0)
            NoteFailure();
    }

    private void MarkOut(PagedRange range, int page, long youngest)
    {
        // Before the label: whoever marks the page as in again finds what it was evicted from.
        _feedback.Evicted(ref range.Shadows[page], youngest);
        byte old = Interlocked.Exchange(ref range.Labels[page], Generations.Out);
        _generations.Moved(old, Generations.Out);
        // Only the holder of the reclaim lock makes pages leave, and this one was in the oldest generation.
        Interlocked.Decrement(ref _resident);
    }

    private void NoteFailure()
    {
        _failures++;
        _pauseUntilNs = HostClock.MonotonicNs() + FailurePauseNs;
        if (Interlocked.Exchange(ref _warned, 1) == 0)
            _options.Warning?.Invoke($"cannot write guest memory to {_store!.Directory}: {Marshal.GetPInvokeErrorMessage(_store.LastError)};"
                + " the resident limit is exceeded");
    }

    /// <summary>The host ranges of runs of set bits.</summary>
    private static int Runs(ulong hva, ReadOnlySpan<ulong> pages, Span<HvaRange> runs)
    {
        int n = 0, last = -2;
        foreach (int i in new Bits(pages))
        {
            ulong at = hva + ((ulong)i << Page.Shift);
            if (i == last + 1)
                runs[n - 1] = runs[n - 1] with { End = at + Page.Size };
            else
                runs[n++] = new HvaRange(at, at + Page.Size);
            last = i;
        }
        return n;
    }

    /// <summary>The indexes of set bits, ascending.</summary>
    private ref struct Bits(ReadOnlySpan<ulong> mask)
    {
        private readonly ReadOnlySpan<ulong> _mask = mask;
        private ulong _rest = mask[0];
        private int _word;

        public int Current { readonly get; private set; }

        public readonly Bits GetEnumerator() => this;

        public bool MoveNext()
        {
            while (_rest == 0)
            {
                if (++_word == _mask.Length)
                    return false;
                _rest = _mask[_word];
            }
            Current = _word * 64 + System.Numerics.BitOperations.TrailingZeroCount(_rest);
            _rest &= _rest - 1;
            return true;
        }
    }
}

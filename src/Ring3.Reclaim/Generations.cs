using Ring3.Host;

namespace Ring3.Reclaim;

/// <summary>
/// The generations of a VM's resident pages, as in the multi-generational LRU: numbered upwards, the youngest has the pages that were used since the last aging
/// pass, and pages are evicted from the oldest. Members that advance or retire are for the holder of the reclaim lock.
/// </summary>
internal sealed class Generations
{
    /// <summary>Most generations that are told apart, and how many of the youngest are never evicted from.</summary>
    public const int Most = WorkingSet.MostGenerations, Protected = 2;

    /// <summary>Label of a page that is in no generation because it was evicted. A page that was never resident has 0.</summary>
    public const byte Out = Most + 1;

    private readonly long[] _pages = new long[Out];
    private readonly long[] _bornNs = new long[Most];
    private long _youngest = Protected - 1, _oldest;

    public Generations() => Array.Fill(_bornNs, HostClock.MonotonicNs());

    public long Youngest => Volatile.Read(ref _youngest);
    public long Oldest => Volatile.Read(ref _oldest);

    /// <summary>Whether pages of the oldest generation have been idle for long enough to go.</summary>
    public bool CanEvict => Oldest + Protected <= Youngest;

    /// <summary>What a page of a generation is marked with: 1 to <see cref="Most"/>.</summary>
    public static byte LabelOf(long generation) => (byte)(1 + (generation & (Most - 1)));

    public byte YoungestLabel => LabelOf(Youngest);

    /// <summary>Whether a page with this label is a member of a generation.</summary>
    public static bool IsResident(byte label) => label is not (0 or Out);

    /// <summary>Pages that are evicted. It may be off by as many as threads are between a change of a label and <see cref="Moved"/>.</summary>
    public long Evicted => Volatile.Read(ref _pages[Out - 1]);

    /// <summary>Pages of a generation.</summary>
    public long PagesOf(long generation) => Math.Max(0, Volatile.Read(ref _pages[generation & (Most - 1)]));

    /// <summary>When a generation became the youngest, CLOCK_MONOTONIC.</summary>
    public long BornNs(long generation) => Volatile.Read(ref _bornNs[generation & (Most - 1)]);

    /// <summary>A page's label has changed.</summary>
    public void Moved(byte from, byte to)
    {
        if (from != 0)
            Interlocked.Decrement(ref _pages[from - 1]);
        if (to != 0)
            Interlocked.Increment(ref _pages[to - 1]);
    }

    /// <summary>Changes a page's label if it is the expected one.</summary>
    public bool TryMove(ref byte label, byte from, byte to)
    {
        if (from == to || Interlocked.CompareExchange(ref label, to, from) != from)
            return false;
        Moved(from, to);
        return true;
    }

    /// <summary>Opens a new youngest generation. There is room for it (see <see cref="IsFull"/>).</summary>
    public void Advance()
    {
        long next = _youngest + 1;
        Volatile.Write(ref _bornNs[next & (Most - 1)], HostClock.MonotonicNs());
        Volatile.Write(ref _youngest, next);
    }

    public bool IsFull => Youngest - Oldest + 1 == Most;

    /// <summary>The oldest generation has no pages any more.</summary>
    public void RetireOldest() => Volatile.Write(ref _oldest, _oldest + 1);
}

namespace Ring3.Kvm;

/// <summary>A range of a bus and who has it: a device or a tap.</summary>
internal sealed class BusEntry
{
    /// <summary>Bit of <see cref="Order"/>: behind everything without it.</summary>
    internal const ulong Last = 1UL << 63;

    internal readonly ulong Start, End, Order;
    internal readonly IBusDevice? Device;
    internal readonly IBusTap? Tap;

    internal BusEntry(ulong start, ulong end, IBusDevice device, ulong order) => (Start, End, Device, Order) = (start, end, device, order);

    internal BusEntry(ulong start, ulong end, IBusTap tap, ulong order) => (Start, End, Tap, Order) = (start, end, tap, order);
}

/// <summary>Addresses [Start, Last] that all belong to the same entries, in the order in which they are asked.</summary>
internal readonly record struct BusSegment(ulong Start, ulong Last, BusEntry[] Entries);

/// <summary>What is on a bus at one time: disjoint segments by ascending address. Immutable.</summary>
internal sealed class BusMap
{
    internal static readonly BusMap Empty = new([]);

    private readonly BusSegment[] _segments;

    private BusMap(BusSegment[] segments) => _segments = segments;

    internal ReadOnlySpan<BusSegment> Segments => _segments;

    /// <summary>The entries that have an address.</summary>
    internal ReadOnlySpan<BusEntry> At(ulong address)
    {
        int i = IndexOf(address);
        return i < _segments.Length && _segments[i].Start <= address ? _segments[i].Entries : [];
    }

    internal IBusDevice? FindDevice(ulong address, out ulong offset)
    {
        foreach (BusEntry e in At(address))
            if (e.Device is { } device)
            {
                offset = address - e.Start;
                return device;
            }
        offset = 0;
        return null;
    }

    /// <summary>Whether a device has an address of [start, last].</summary>
    internal bool HasDevice(ulong start, ulong last)
    {
        for (int i = IndexOf(start); i < _segments.Length && _segments[i].Start <= last; i++)
            if (Array.Exists(_segments[i].Entries, static e => e.Device is not null))
                return true;
        return false;
    }

    /// <summary>Index of the first segment that ends at or behind an address.</summary>
    private int IndexOf(ulong address)
    {
        int low = 0, high = _segments.Length;
        while (low < high)
        {
            int mid = (low + high) >>> 1;
            if (_segments[mid].Last < address)
                low = mid + 1;
            else
                high = mid;
        }
        return low;
    }

    internal BusMap With(BusEntry added)
    {
        var next = new List<BusSegment>(_segments.Length + 2);
        // The first address of the new entry that has no segment yet.
        ulong at = added.Start;
        bool open = true;
        foreach (BusSegment s in _segments)
        {
            if (s.Last < added.Start)
            {
                next.Add(s);
                continue;
            }
            if (open && s.Start > at)
            {
                ulong last = Math.Min(s.Start - 1, added.End);
                next.Add(new BusSegment(at, last, [added]));
                open = last < added.End;
                at = last + 1;
            }
            if (!open || s.Start > added.End)
            {
                next.Add(s);
                continue;
            }
            if (s.Start < added.Start)
                next.Add(s with { Last = added.Start - 1 });
            ulong end = Math.Min(s.Last, added.End);
            next.Add(new BusSegment(at, end, Insert(s.Entries, added)));
            if (s.Last > end)
                next.Add(s with { Start = end + 1 });
            open = end < added.End;
            at = end + 1;
        }
        if (open)
            next.Add(new BusSegment(at, added.End, [added]));
        return new BusMap([.. next]);
    }

    private static BusEntry[] Insert(BusEntry[] entries, BusEntry added)
    {
        int i = entries.Length;
        while (i > 0 && entries[i - 1].Order > added.Order)
            i--;
        return [.. entries[..i], added, .. entries[i..]];
    }

    internal BusMap Without(Predicate<BusEntry> isGone)
    {
        var next = new List<BusSegment>(_segments.Length);
        foreach (BusSegment s in _segments)
        {
            BusEntry[] rest = Array.Exists(s.Entries, isGone) ? Array.FindAll(s.Entries, e => !isGone(e)) : s.Entries;
            if (rest.Length == 0)
                continue;
            // What only the removed entry divided is one again.
            if (next.Count != 0 && next[^1] is var before && before.Last + 1 == s.Start && before.Entries.AsSpan().SequenceEqual(rest))
                next[^1] = before with { Last = s.Last };
            else
                next.Add(s with { Entries = rest });
        }
        return new BusMap([.. next]);
    }
}

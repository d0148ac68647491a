namespace Ring3.Memory;

/// <summary>
/// Which guest frames are private (KVM_SET_MEMORY_ATTRIBUTES). An immutable snapshot; a change publishes another one, so that a fault can tell by reference
/// that nothing has changed.
/// </summary>
public sealed class MemoryAttributes
{
    /// <summary>All frames shared.</summary>
    public static readonly MemoryAttributes AllShared = new([], []);

    /// <summary>Private ranges [start, end), sorted, not touching each other.</summary>
    private readonly ulong[] _starts, _ends;

    private MemoryAttributes(ulong[] starts, ulong[] ends) => (_starts, _ends) = (starts, ends);

    /// <summary>Number of private ranges.</summary>
    public int Ranges => _starts.Length;

    /// <summary>Equal contents, another reference.</summary>
    internal MemoryAttributes Clone() => new(_starts, _ends);

    public bool IsPrivate(ulong gfn)
    {
        if (_starts.Length == 0)
            return false;
        int i = FirstEndingAbove(gfn);
        return i < _starts.Length && _starts[i] <= gfn;
    }

    /// <summary>Whether all frames of [start, end) are alike.</summary>
    public bool IsUniform(ulong start, ulong end)
    {
        if (_starts.Length == 0)
            return true;
        int i = FirstEndingAbove(start);
        if (i == _starts.Length || _starts[i] >= end)
            return true;
        return _starts[i] <= start && _ends[i] >= end;
    }

    /// <summary>Whether all frames of [start, end) are as given.</summary>
    public bool Are(ulong start, ulong end, bool isPrivate) => IsUniform(start, end) && IsPrivate(start) == isPrivate;

    /// <summary>The snapshot with [start, end) changed.</summary>
    public MemoryAttributes With(ulong start, ulong end, bool isPrivate)
    {
        // Ranges before first stay, ranges from last on stay; what is between is cut or swallowed. A range that touches a new private one is swallowed too.
        int first = FirstEndingAbove(isPrivate && start != 0 ? start - 1 : start), last = first;
        while (last < _starts.Length && (isPrivate ? _starts[last] <= end : _starts[last] < end))
            last++;
        Span<ulong> starts = stackalloc ulong[2], ends = stackalloc ulong[2];
        int n = 0;
        if (isPrivate)
        {
            starts[0] = last > first ? Math.Min(start, _starts[first]) : start;
            ends[0] = last > first ? Math.Max(end, _ends[last - 1]) : end;
            n = 1;
        }
        else if (last > first)
        {
            if (_starts[first] < start)
                (starts[n], ends[n++]) = (_starts[first], start);
            if (_ends[last - 1] > end)
                (starts[n], ends[n++]) = (end, _ends[last - 1]);
        }
        return new([.. _starts.AsSpan(0, first), .. starts[..n], .. _starts.AsSpan(last)], [.. _ends.AsSpan(0, first), .. ends[..n], .. _ends.AsSpan(last)]);
    }

    /// <summary>Index of the first range that ends above a frame.</summary>
    private int FirstEndingAbove(ulong gfn)
    {
        int lo = 0, hi = _ends.Length;
        while (lo < hi)
        {
            int mid = (int)((uint)(lo + hi) >> 1);
            if (_ends[mid] <= gfn)
                lo = mid + 1;
            else
                hi = mid;
        }
        return lo;
    }
}

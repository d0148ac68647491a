using Ring3.Host;
using Ring3.Mmu;
using Ring3.Sync;

namespace Ring3.Kvm;

/// <summary>
/// Ranges of guest frames that a vCPU has to flush before it next enters the guest. Requesters add, then make the request TlbFlushRange; the vCPU takes the
/// request, then everything that is here. So a range is flushed by the time its own request is answered, perhaps on behalf of an earlier one.
/// When it is full it stands for everything.
/// </summary>
internal sealed class TlbRangeQueue
{
    public const int Capacity = 32;

    private readonly GfnSpan[] _spans = new GfnSpan[Capacity];
    private TinyLock _lock = new(LockRank.TlbRangeQueue);
    private int _count;
    private bool _overflow;

    /// <summary>Adds ranges. True if others were waiting already: one flush will do for both.</summary>
    public bool Add(ReadOnlySpan<GfnSpan> ranges)
    {
        _lock.Enter();
        bool joined = _count != 0 || _overflow;
        if (_overflow || _count + ranges.Length > Capacity)
            _overflow = true;
        else
        {
            ranges.CopyTo(_spans.AsSpan(_count));
            _count += ranges.Length;
        }
        _lock.Exit();
        return joined;
    }

    /// <summary>Takes all ranges. -1: too many, flush everything.</summary>
    public int Take(Span<GfnSpan> ranges)
    {
        _lock.Enter();
        int n = _overflow ? -1 : _count;
        if (n > 0)
            _spans.AsSpan(0, n).CopyTo(ranges);
        _count = 0;
        _overflow = false;
        _lock.Exit();
        return n;
    }
}

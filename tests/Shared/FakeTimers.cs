using Ring3.Sync;


namespace Ring3.Tests.Shared;

/// <summary>A clock that moves only when told to, and fires what is due in order.</summary>
internal sealed class FakeTimers : ITimerService
{
    private readonly TimerQueue _queue = new();
    private readonly List<(Func<long> DeadlineNs, Action<long> Poll)> _watched = [];

    public long NowNs { get; private set; } = 1_000_000;
    public int Armed => _queue.Count + _watched.Count(w => w.DeadlineNs() != long.MaxValue);
    public void Arm(HostTimer timer, long deadlineNs) => _queue.Arm(timer, deadlineNs);
    public void Cancel(HostTimer timer) => _queue.Cancel(timer);

    /// <summary>A timer whose owner looks at the clock by itself: <see cref="Advance"/> looks for it.</summary>
    internal void Watch(Func<long> deadlineNs, Action<long> poll) => _watched.Add((deadlineNs, poll));

    internal void Advance(long ns)
    {
        long end = NowNs + ns;
        while (NextDeadlineNs() is var next && next <= end)
        {
            NowNs = Math.Max(NowNs, next);
            if (_queue.PopExpired(NowNs) is { } timer)
                timer.Fire(NowNs);
            foreach (var (_, poll) in _watched)
                poll(NowNs);
        }
        NowNs = end;
    }

    private long NextDeadlineNs()
    {
        long next = _queue.NextDeadlineNs;
        foreach (var (deadlineNs, _) in _watched)
            next = Math.Min(next, deadlineNs());
        return next;
    }

    /// <summary>Moves the clock without firing: the host was busy.</summary>
    internal void Stall(long ns) => NowNs += ns;
}

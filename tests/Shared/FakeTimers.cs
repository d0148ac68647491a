using Ring3.Irqchip.Timers;

namespace Ring3.Tests.Shared;

/// <summary>A clock that moves only when told to, and fires what is due in order.</summary>
internal sealed class FakeTimers : ITimerService
{
    private readonly TimerQueue _queue = new();

    public long NowNs { get; private set; } = 1_000_000;
    public int Armed => _queue.Count;
    public void Arm(HostTimer timer, long deadlineNs) => _queue.Arm(timer, deadlineNs);
    public void Cancel(HostTimer timer) => _queue.Cancel(timer);

    internal void Advance(long ns)
    {
        long end = NowNs + ns;
        while (_queue.NextDeadlineNs <= end)
        {
            NowNs = Math.Max(NowNs, _queue.NextDeadlineNs);
            _queue.PopExpired(NowNs)!.Fire(NowNs);
        }
        NowNs = end;
    }

    /// <summary>Moves the clock without firing: the host was busy.</summary>
    internal void Stall(long ns) => NowNs += ns;
}

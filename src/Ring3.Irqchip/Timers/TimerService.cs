using Ring3.Host;

namespace Ring3.Irqchip.Timers;

/// <summary>
/// The process's timer thread: sleeps on a timerfd until the earliest deadline of a <see cref="TimerQueue"/> and runs callbacks. An earlier deadline sets the timerfd anew, so arming
/// costs a system call at most and wakes nobody.
/// </summary>
public sealed class TimerService : ITimerService, IDisposable
{
    private static readonly Lazy<TimerService> s_shared = new(() => new TimerService());
    private readonly Lock _lock = new();
    private readonly TimerQueue _queue = new();
    private readonly TimerFd _fd = new();
    private readonly Thread _thread;

    /// <summary>What the timerfd is set to; <see cref="long.MinValue"/> while the thread is awake and will look at the queue again by itself.</summary>
    private long _sleepUntilNs = long.MinValue;
    private bool _stop;

    public TimerService()
    {
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-timer" };
        _thread.Start();
    }

    /// <summary>The one service of the process, started on first use.</summary>
    public static TimerService Shared => s_shared.Value;

    public long NowNs => HostClock.MonotonicNs();

    public void Arm(HostTimer timer, long deadlineNs)
    {
        lock (_lock)
        {
            _queue.Arm(timer, deadlineNs);
            if (deadlineNs < _sleepUntilNs)
                SleepUntil(deadlineNs);
        }
    }

    public void Cancel(HostTimer timer)
    {
        lock (_lock)
            _ = _queue.Cancel(timer);
    }

    private void SleepUntil(long deadlineNs)
    {
        _sleepUntilNs = deadlineNs;
        _fd.Set(deadlineNs);
    }

    private void Run()
    {
        while (true)
        {
            long now = NowNs;
            HostTimer? expired;
            lock (_lock)
            {
                if (_stop)
                    return;
                expired = _queue.PopExpired(now);
                if (expired is null)
                    SleepUntil(_queue.NextDeadlineNs);
                else
                    _sleepUntilNs = long.MinValue;
            }
            if (expired is not null)
                expired.Fire(now);
            else
                _fd.Wait();
        }
    }

    public void Dispose()
    {
        lock (_lock)
        {
            _stop = true;
            _fd.Set(0);
        }
        _thread.Join();
        _fd.Dispose();
    }
}

using Ring3.Host;

namespace Ring3.Irqchip.Timers;

/// <summary>The process's timer thread: sleeps until the earliest deadline of a <see cref="TimerQueue"/> and runs callbacks.</summary>
// SAFETY: the only pointer is _word, a futex word allocated for the life of the object.
public sealed unsafe class TimerService : ITimerService, IDisposable
{
    private static readonly Lazy<TimerService> s_shared = new(() => new TimerService());
    private readonly Lock _lock = new();
    private readonly TimerQueue _queue = new();
    private readonly int* _word;
    private readonly Thread _thread;
    private long _sleepUntilNs;
    private bool _stop;

    public TimerService()
    {
        _word = (int*)HostMemory.Map(4096);
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-timer" };
        _thread.Start();
    }

    /// <summary>The one service of the process, started on first use.</summary>
    public static TimerService Shared => s_shared.Value;

    public long NowNs => HostClock.MonotonicNs();

    public void Arm(HostTimer timer, long deadlineNs)
    {
        bool wake;
        lock (_lock)
        {
            _queue.Arm(timer, deadlineNs);
            wake = deadlineNs < _sleepUntilNs;
            if (wake)
                _sleepUntilNs = deadlineNs;
        }
        if (wake)
            Wake();
    }

    public void Cancel(HostTimer timer)
    {
        lock (_lock)
            _ = _queue.Cancel(timer);
    }

    private void Wake()
    {
        _ = Interlocked.Increment(ref *_word);
        _ = Futex.Wake(_word, 1);
    }

    private void Run()
    {
        HostThread.SetTimerSlack(1);
        while (!Volatile.Read(ref _stop))
        {
            int seen = Volatile.Read(ref *_word);
            long now = NowNs, until;
            HostTimer? expired;
            lock (_lock)
            {
                expired = _queue.PopExpired(now);
                // While this thread runs, nobody needs to wake it: it looks at the queue again before it sleeps.
                until = _sleepUntilNs = expired is null ? _queue.NextDeadlineNs : long.MinValue;
            }
            if (expired is not null)
                expired.Fire(now);
            else
                _ = Futex.Wait(_word, seen, until == long.MaxValue ? -1 : Math.Max(0, until - now));
        }
    }

    public void Dispose()
    {
        Volatile.Write(ref _stop, true);
        Wake();
        _thread.Join();
        HostMemory.Unmap(_word, 4096);
    }
}

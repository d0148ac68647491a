namespace Ring3.Sync;

/// <summary>One-shot timers on CLOCK_MONOTONIC nanoseconds.</summary>
public interface ITimerService
{
    /// <summary>CLOCK_MONOTONIC now, in nanoseconds.</summary>
    long NowNs { get; }

    /// <summary>
    /// Arms or re-arms <paramref name="timer"/> for the absolute time <paramref name="deadlineNs"/>; a time that has passed fires as soon as
    /// possible. Allocates nothing.
    /// </summary>
    void Arm(HostTimer timer, long deadlineNs);

    /// <summary>Disarms. A callback that has already started is not waited for: the callee must check its own state.</summary>
    void Cancel(HostTimer timer);
}

/// <summary>Receives expirations. Runs on the timer service's thread with none of its locks held; must not block.</summary>
public interface ITimerCallback
{
    /// <summary>
    /// The timer's deadline has passed. May be late, and may be spurious when it races with <see cref="ITimerService.Arm"/> or <see
    /// cref="ITimerService.Cancel"/> on another
    /// thread, so the callee compares <paramref name="nowNs"/> with its own deadline under its own lock.
    /// </summary>
    void TimerExpired(HostTimer timer, long nowNs);
}

/// <summary>A timer that its owner creates once and arms many times.</summary>
public sealed class HostTimer(ITimerCallback callback)
{
    internal long DeadlineNs;

    /// <summary>
    /// Told of an exception that escaped the callback, or of the end of the service, on the service's thread: the owner marks what the timer belongs
    /// to as broken.
    /// </summary>
    public required Action<Exception> Failed { private get; init; }

    /// <summary>Runs the callback; for timer services. Never throws: their threads serve the whole process, which may not be ours.</summary>
    public void Fire(long nowNs)
    {
        try
        {
            callback.TimerExpired(this, nowNs);
        }
        catch (Exception e)
        {
            Fail(e);
        }
    }

    /// <summary>Tells the owner that the timer is lost. Never throws: an owner that cannot be told is told nothing.</summary>
    internal void Fail(Exception e)
    {
        try
        {
            Failed(e);
        }
        catch (Exception)
        {
            // What is broken already is broken further; the others of the thread are not.
        }
    }

    /// <summary>Taken out of the heap to be fired. Protected by the service's lock.</summary>
    internal bool IsDue;

    /// <summary>Position in the service's heap, or -1. Protected by the service's lock.</summary>
    internal int HeapIndex = -1;
}

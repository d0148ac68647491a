namespace Ring3.Host;

/// <summary>A one-shot CLOCK_MONOTONIC timer, for a thread that waits for descriptors. Any thread sets it.</summary>
public sealed class TimerFd : IDisposable
{
    private const int ClockMonotonic = 1, Cloexec = 0x80000, AbsoluteTime = 1;
    private readonly int _fd;

    public TimerFd()
    {
        _fd = Libc.timerfd_create(ClockMonotonic, Cloexec);
        if (_fd < 0)
            throw new HostCallException("timerfd_create");
    }

    /// <summary>Has input from expiration until the timer is set again.</summary>
    public int Fd => _fd;

    /// <summary>Expires at <paramref name="deadlineNs"/>, at once if that has passed, never if it is <see cref="long.MaxValue"/>. Replaces what was set before,
    /// expirations included; a waiting thread follows.</summary>
    public unsafe void Set(long deadlineNs)
    {
        // SAFETY: struct itimerspec is four longs: interval, value. A zero value would disarm.
        long* spec = stackalloc long[4];
        spec[0] = spec[1] = 0;
        (spec[2], spec[3]) = deadlineNs == long.MaxValue ? (0, 0) : (Math.Max(deadlineNs, 1) / 1_000_000_000, Math.Max(deadlineNs, 1) % 1_000_000_000);
        _ = Libc.timerfd_settime(_fd, AbsoluteTime, spec, null);
    }

    public void Dispose() => _ = Libc.close(_fd);
}

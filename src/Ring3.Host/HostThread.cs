namespace Ring3.Host;

/// <summary>Scheduling attributes of the calling thread.</summary>
public static class HostThread
{
    private const nint SYS_prctl = 157, PR_SET_TIMERSLACK = 29;

    /// <summary>How late, in nanoseconds, the kernel may wake the calling thread from a timed sleep (the default is 50 us).</summary>
    public static void SetTimerSlack(long ns) => _ = Libc.syscall(SYS_prctl, PR_SET_TIMERSLACK, (nint)ns, 0, 0, 0, 0);
}

using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Host;

/// <summary>Host clocks in nanoseconds, and the host's time-stamp counter.</summary>
/// <remarks>SAFETY: the emitted routines access no memory; clock_gettime writes the two words on the stack.</remarks>
public static class HostClock
{
    private static readonly ExecutableMemory s_code = new(4096);
    private static readonly unsafe delegate* unmanaged[SuppressGCTransition]<ulong> s_rdtsc =
        (delegate* unmanaged[SuppressGCTransition]<ulong>)s_code.Add(ReadTsc(ordered: false));
    private static readonly unsafe delegate* unmanaged[SuppressGCTransition]<ulong> s_rdtscOrdered =
        (delegate* unmanaged[SuppressGCTransition]<ulong>)s_code.Add(ReadTsc(ordered: true));

    private static byte[] ReadTsc(bool ordered) => MachineCode.Assemble(a =>
    {
        if (ordered)
            a.lfence();
        a.rdtsc();
        a.shl(rdx, 32);
        a.or(rax, rdx);
        a.ret();
    });

    /// <summary>RDTSC.</summary>
    public static unsafe ulong Tsc() => s_rdtsc();

    /// <summary>LFENCE; RDTSC: not read before the loads that come first in program order, so that a value seen through memory is never ahead of it.</summary>
    public static unsafe ulong TscOrdered() => s_rdtscOrdered();

    /// <summary>CLOCK_MONOTONIC.</summary>
    public static long MonotonicNs() => Get(1);
    /// <summary>CLOCK_MONOTONIC_RAW: not slewed by NTP, as the TSC is not.</summary>
    public static long MonotonicRawNs() => Get(4);
    /// <summary>CLOCK_BOOTTIME.</summary>
    public static long BootNs() => Get(7);
    /// <summary>CLOCK_REALTIME.</summary>
    public static long RealtimeNs() => Get(0);

    /// <summary>CLOCK_THREAD_CPUTIME_ID: processor time of the calling thread.</summary>
    public static long ThreadCpuNs() => Get(3);

    /// <summary>CLOCK_BOOTTIME and the TSC of the same moment.</summary>
    public static (ulong Tsc, long Ns) BootWithTsc() => WithTsc(7);
    /// <summary>CLOCK_REALTIME and the TSC of the same moment.</summary>
    public static (ulong Tsc, long Ns) RealtimeWithTsc() => WithTsc(0);
    /// <summary>CLOCK_MONOTONIC_RAW and the TSC of the same moment.</summary>
    public static (ulong Tsc, long Ns) MonotonicRawWithTsc() => WithTsc(4);

    /// <summary>Takes the sample whose two TSC reads are closest: a thread that loses its processor in one of them is apart there by milliseconds. What is left
    /// is some 10 ns.</summary>
    private static (ulong Tsc, long Ns) WithTsc(int clock)
    {
        (ulong, long) best = default;
        ulong bestWidth = ulong.MaxValue;
        for (int i = 0; i < 16; i++)
        {
            ulong before = Tsc();
            long ns = Get(clock);
            ulong width = Tsc() - before;
            if (width < bestWidth)
                (bestWidth, best) = (width, (before + width / 2, ns));
        }
        return best;
    }

    private static unsafe long Get(int clock)
    {
        long* ts = stackalloc long[2];
        _ = Libc.clock_gettime(clock, ts);
        return ts[0] * 1_000_000_000 + ts[1];
    }
}

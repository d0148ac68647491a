using System.Runtime.InteropServices;

// SAFETY: the word is the caller's and lives while it waits; the time-out is two words on the stack.
namespace Ring3.Host;

/// <summary>Private futexes on unmanaged 32-bit words: sleep while a word has a value, wake sleepers.</summary>
public static class Futex
{
    private const nint SYS_futex = 202;
    private const int WaitPrivate = 0 | 128, WakePrivate = 1 | 128;

    /// <summary>Sleeps while <c>*word == expected</c>, at most <paramref name="timeoutNs"/> (negative: for ever). Returns also on a wake-up, a signal, or for
    /// no reason: callers loop on their condition. False when the time ran out.</summary>
    public static unsafe bool Wait(int* word, int expected, long timeoutNs = -1)
    {
        long* ts = stackalloc long[2];
        ts[0] = timeoutNs / 1_000_000_000;
        ts[1] = timeoutNs % 1_000_000_000;
        nint r = Libc.syscall(SYS_futex, (nint)word, WaitPrivate, expected, timeoutNs < 0 ? 0 : (nint)ts, 0, 0);
        return r == 0 || Marshal.GetLastPInvokeError() != Libc.ETIMEDOUT;
    }

    /// <summary>Wakes up to <paramref name="count"/> sleepers; returns how many.</summary>
    public static unsafe int Wake(int* word, int count = int.MaxValue) => (int)Libc.syscall(SYS_futex, (nint)word, WakePrivate, count, 0, 0, 0);
}

using System.Runtime.InteropServices;

// SAFETY: epoll_event is 12 bytes, packed; the array on the stack holds as many as the kernel may return.
namespace Ring3.Host;

/// <summary>An epoll instance whose events carry a 64-bit key.</summary>
public sealed class Epoll : IDisposable
{
    private const int CtlAdd = 1, CtlDel = 2, Cloexec = 0x80000;
    private readonly int _fd;

    public Epoll()
    {
        _fd = Libc.epoll_create1(Cloexec);
        if (_fd < 0)
            throw new HostCallException("epoll_create1");
    }

    /// <summary>Watches a descriptor for input, level-triggered. 0 or -errno.</summary>
    public unsafe int Add(int fd, ulong key)
    {
        // struct epoll_event is packed on x86-64: u32 events, u64 data.
        byte* ev = stackalloc byte[12];
        *(uint*)ev = 1;
        *(ulong*)(ev + 4) = key;
        return Libc.epoll_ctl(_fd, CtlAdd, fd, ev) == 0 ? 0 : -Marshal.GetLastPInvokeError();
    }

    public unsafe void Remove(int fd)
    {
        byte* ev = stackalloc byte[12];
        _ = Libc.epoll_ctl(_fd, CtlDel, fd, ev);
    }

    /// <summary>
    /// Waits up to <paramref name="timeoutNs"/> (negative: for ever) and stores the keys of ready descriptors; returns their number, 0 after a
    /// signal, or -errno.
    /// </summary>
    public unsafe int Wait(Span<ulong> keys, long timeoutNs)
    {
        int max = Math.Min(keys.Length, 64);
        byte* events = stackalloc byte[12 * 64];
        long* ts = stackalloc long[2];
        ts[0] = timeoutNs / 1_000_000_000;
        ts[1] = timeoutNs % 1_000_000_000;
        int n = (int)Libc.syscall(441 /* epoll_pwait2 */, _fd, (nint)events, max, timeoutNs < 0 ? 0 : (nint)ts, 0, 8);
        for (int i = 0; i < n; i++)
            keys[i] = *(ulong*)(events + 12 * i + 4);
        if (n >= 0)
            return n;
        int error = Marshal.GetLastPInvokeError();
        return error == Libc.EINTR ? 0 : -error;
    }

    public void Dispose() => _ = Libc.close(_fd);
}

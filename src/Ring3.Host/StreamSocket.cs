using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>A connected pair of local stream sockets, one end of which is for another program. Results are bytes or -errno.</summary>
/// <remarks>SAFETY: spans are pinned for the call; other pointers are to locals. Sending and receiving may happen at once; <see cref="Shutdown"/> ends both
/// before <see cref="Dispose"/>.</remarks>
public sealed class StreamSocket : IDisposable
{
    private const int Local = 1, Stream = 1, Cloexec = 0x80000, NoSignal = 0x4000, BothWays = 2;
    private readonly int _fd;
    private int _closed;

    private StreamSocket(int fd) => _fd = fd;

    /// <summary>Makes a pair. The other end stays open in programs that are started, until <see cref="FileDescriptor.Close"/>.</summary>
    /// <exception cref="HostCallException">No descriptors are left.</exception>
    public static unsafe StreamSocket CreatePair(out int otherEnd)
    {
        int* fds = stackalloc int[2];
        if (Libc.syscall(53 /* socketpair */, Local, Stream | Cloexec, 0, (nint)fds, 0, 0) != 0)
            throw new HostCallException("socketpair");
        FileDescriptor.KeepOnExec(fds[1]);
        Widen(fds[0]);
        Widen(fds[1]);
        otherEnd = fds[1];
        return new StreamSocket(fds[0]);
    }

    /// <summary>Asks for as much room for what an end sends as the host allows: a program that does not wait for room, such as passt, loses what finds
    /// none.</summary>
    private static unsafe void Widen(int fd)
    {
        const int SocketLevel = 1, SendBuffer = 7;
        int bytes = int.MaxValue / 2;
        _ = Libc.syscall(54 /* setsockopt */, fd, SocketLevel, SendBuffer, (nint)(&bytes), sizeof(int), 0);
    }

    /// <summary>Waits for bytes: how many; 0 when the other end is closed.</summary>
    public unsafe int Receive(Span<byte> buffer)
    {
        fixed (byte* p = buffer)
        {
            while (true)
            {
                nint n = Libc.read(_fd, p, (nuint)buffer.Length);
                if (n >= 0)
                    return (int)n;
                int error = Marshal.GetLastPInvokeError();
                if (error != Libc.EINTR)
                    return -error;
            }
        }
    }

    /// <summary>Sends everything, waiting for room: 0 or -errno.</summary>
    public unsafe int Send(ReadOnlySpan<byte> data)
    {
        fixed (byte* p = data)
        {
            for (int done = 0; done < data.Length;)
            {
                nint n = Libc.syscall(44 /* sendto */, _fd, (nint)(p + done), data.Length - done, NoSignal, 0, 0);
                if (n >= 0)
                {
                    done += (int)n;
                    continue;
                }
                int error = Marshal.GetLastPInvokeError();
                if (error != Libc.EINTR)
                    return -error;
            }
        }
        return 0;
    }

    /// <summary>Whoever sends or receives returns at once, now and later.</summary>
    public void Shutdown() => _ = Libc.syscall(48 /* shutdown */, _fd, BothWays, 0, 0, 0, 0);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _closed, 1) == 0)
            _ = Libc.close(_fd);
    }
}

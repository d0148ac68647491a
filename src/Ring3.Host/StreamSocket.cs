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

    /// <summary>Takes the end that another program has left open for this one.</summary>
    public static StreamSocket Adopt(int fd) => new(fd);

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

    private const int HeaderBytes = 56, VectorPlace = 16, ControlPlace = 32, ControlBytes = 24, RightsBytes = 20;

    /// <summary>Lays out struct msghdr, iovec and cmsghdr for one byte, and room for one descriptor.</summary>
    private static unsafe void Header(byte* header, nint* vector, byte* data, byte* control)
    {
        new Span<byte>(header, HeaderBytes).Clear();
        new Span<byte>(control, ControlBytes).Clear();
        (vector[0], vector[1]) = ((nint)data, 1);
        *(nint**)(header + VectorPlace) = vector;
        *(nint*)(header + VectorPlace + 8) = 1;
        *(byte**)(header + ControlPlace) = control;
        *(nint*)(header + ControlPlace + 8) = ControlBytes;
    }

    /// <summary>Sends a byte and with it a descriptor: 0 or -errno.</summary>
    public unsafe int SendDescriptor(byte data, int descriptor)
    {
        const int SolSocket = 1, Rights = 1;
        byte* header = stackalloc byte[HeaderBytes], control = stackalloc byte[ControlBytes];
        nint* vector = stackalloc nint[2];
        Header(header, vector, &data, control);
        (*(nint*)control, *(int*)(control + 8), *(int*)(control + 12), *(int*)(control + 16)) = (RightsBytes, SolSocket, Rights, descriptor);
        while (Libc.syscall(46 /* sendmsg */, _fd, (nint)header, NoSignal, 0, 0, 0) < 0)
        {
            if (Marshal.GetLastPInvokeError() is var error and not Libc.EINTR)
                return -error;
        }
        return 0;
    }

    /// <summary>Waits for a byte, for so long: 1, and the descriptor that came with it, or -1; 0 when the other end is closed; -errno.</summary>
    public unsafe int ReceiveDescriptor(out byte data, out int descriptor, int timeoutMs)
    {
        const int CloseOnExec = 0x40000000;
        const short PollIn = 1;
        byte* header = stackalloc byte[HeaderBytes], control = stackalloc byte[ControlBytes];
        nint* vector = stackalloc nint[2];
        byte received = 0;
        (data, descriptor) = (0, -1);
        Header(header, vector, &received, control);
        // struct pollfd { int fd; short events; short revents; }
        long polled = (uint)_fd | (long)PollIn << 32;
        int ready = Libc.poll(&polled, 1, timeoutMs);
        if (ready <= 0)
            return ready == 0 ? -Libc.ETIMEDOUT : -Marshal.GetLastPInvokeError();
        nint n = Libc.syscall(47 /* recvmsg */, _fd, (nint)header, CloseOnExec, 0, 0, 0);
        if (n < 0)
            return -Marshal.GetLastPInvokeError();
        data = received;
        if (*(nint*)(header + ControlPlace + 8) >= RightsBytes)
            descriptor = *(int*)(control + 16);
        return (int)n;
    }

    /// <summary>Whoever sends or receives returns at once, now and later.</summary>
    public void Shutdown() => _ = Libc.syscall(48 /* shutdown */, _fd, BothWays, 0, 0, 0, 0);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _closed, 1) == 0)
            _ = Libc.close(_fd);
    }
}

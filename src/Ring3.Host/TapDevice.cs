using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>A TAP interface of the host: whole Ethernet frames. SPEC: Linux, "Universal TUN/TAP device driver".</summary>
/// <remarks>SAFETY: pointers passed to the C library are to locals of the right size, or to pinned spans.</remarks>
public sealed class TapDevice : IDisposable
{
    private readonly int _fd, _stop;
    private int _closed;

    private TapDevice(int fd) => (_fd, _stop) = (fd, EventFd.Create());

    /// <summary>Opens an interface, or makes it where that is allowed. 0 or -errno.</summary>
    public static unsafe int TryOpen(string name, out TapDevice? tap)
    {
        const int ReadWrite = 2, NonBlock = 0x800, Cloexec = 0x80000, EINVAL = 22;
        const int NameBytes = 16, RequestBytes = 40;
        const short Tap = 2, NoPacketInformation = 0x1000;
        const nuint SetInterface = 0x400454ca;
        tap = null;
        if (name.Length is 0 or >= NameBytes || !Ascii.IsValid(name))
            return -EINVAL;
        int fd;
        fixed (byte* p = "/dev/net/tun\0"u8)
            fd = (int)Libc.syscall(257 /* openat */, -100, (nint)p, ReadWrite | NonBlock | Cloexec, 0, 0, 0);
        if (fd < 0)
            return -Marshal.GetLastPInvokeError();
        byte* request = stackalloc byte[RequestBytes];
        new Span<byte>(request, RequestBytes).Clear();
        _ = Encoding.ASCII.GetBytes(name, new Span<byte>(request, NameBytes - 1));
        *(short*)(request + NameBytes) = Tap | NoPacketInformation;
        if (Libc.ioctl(fd, SetInterface, request) != 0)
        {
            int error = Marshal.GetLastPInvokeError();
            _ = Libc.close(fd);
            return -error;
        }
        tap = new TapDevice(fd);
        return 0;
    }

    /// <summary>Waits for a frame: its length; 0 after <see cref="Shutdown"/>; -errno.</summary>
    public unsafe int Receive(Span<byte> buffer)
    {
        const short PollIn = 1;
        long* polled = stackalloc long[2];
        while (true)
        {
            // struct pollfd { int fd; short events; short revents; }
            polled[0] = (uint)_fd | (long)PollIn << 32;
            polled[1] = (uint)_stop | (long)PollIn << 32;
            if (Libc.poll(polled, 2, -1) < 0 && Marshal.GetLastPInvokeError() is var error and not Libc.EINTR)
                return -error;
            if (polled[1] >> 48 != 0)
                return 0;
            fixed (byte* p = buffer)
            {
                nint n = Libc.read(_fd, p, (nuint)buffer.Length);
                if (n > 0)
                    return (int)n;
                if (n < 0 && Marshal.GetLastPInvokeError() is var failed and not (Libc.EAGAIN or Libc.EINTR))
                    return -failed;
            }
        }
    }

    /// <summary>Sends a frame, or drops it when the interface has no room.</summary>
    public unsafe void Send(ReadOnlySpan<byte> frame)
    {
        fixed (byte* p = frame)
            _ = Libc.write(_fd, p, (nuint)frame.Length);
    }

    /// <summary>Whoever waits for a frame returns.</summary>
    public void Shutdown() => _ = EventFd.Signal(_stop);

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _closed, 1) != 0)
            return;
        _ = Libc.close(_fd);
        EventFd.Close(_stop);
    }
}

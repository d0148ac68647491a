using System.Net.Sockets;
using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>
/// A local stream socket to a program that we start and that listens on a descriptor which it inherits. We are its first client before it runs, and the
/// socket has no name any more by then: nobody else can be. Results are bytes or -errno.
/// </summary>
/// <remarks>SAFETY: spans are pinned for the call; other pointers are to locals.</remarks>
public sealed class HelperSocket : IDisposable
{
    private readonly Socket _socket;
    private readonly int _fd;

    private HelperSocket(Socket socket) => (_socket, _fd) = (socket, (int)socket.SafeHandle.DangerousGetHandle());

    /// <summary>For <see cref="Epoll"/>: has input when the other end has sent something, or is closed.</summary>
    public int Descriptor => _fd;

    /// <summary>Makes a listener, which stays open in programs that are started until <see cref="FileDescriptor.Close"/>, and connects to it.</summary>
    /// <exception cref="IOException">There is no place for a socket.</exception>
    /// <exception cref="SocketException">No descriptors are left.</exception>
    public static HelperSocket Create(out int listener)
    {
        string directory;
        try { directory = Directory.CreateTempSubdirectory("ring3-").FullName; }
        catch (UnauthorizedAccessException e) { throw new IOException($"cannot write to {Path.GetTempPath()}; set TMPDIR", e); }
        try
        {
            var place = new UnixDomainSocketEndPoint(Path.Combine(directory, "s"));
            using var listening = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            listening.Bind(place);
            listening.Listen(1);
            var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
            socket.Connect(place);
            listener = Libc.fcntl((int)listening.SafeHandle.DangerousGetHandle(), 0 /* F_DUPFD */, 0);
            return listener >= 0 ? new HelperSocket(socket) : throw new HostCallException("fcntl");
        }
        finally
        {
            Directory.Delete(directory, recursive: true);
        }
    }

    /// <summary>Takes a socket that another process of ours has connected. It belongs to the result.</summary>
    /// <exception cref="SocketException">It is none; it is closed then.</exception>
    public static HelperSocket Adopt(SafeSocketHandle handle)
    {
        try { return new HelperSocket(new Socket(handle)); }
        catch
        {
            handle.Dispose();
            throw;
        }
    }

    /// <summary>Sends everything, and descriptors with the first byte: 0 or -errno.</summary>
    public int Send(ReadOnlySpan<byte> data, params ReadOnlySpan<int> descriptors) => DescriptorMessage.Send(_fd, data, descriptors);

    /// <summary>Waits until the buffer is full, <paramref name="timeoutMs"/> at most for each piece: 0, or -errno; -EPIPE (32) when the other end is
    /// closed.</summary>
    public unsafe int Receive(Span<byte> buffer, int timeoutMs)
    {
        const short PollIn = 1;
        const int EPIPE = 32;
        fixed (byte* p = buffer)
        {
            for (int done = 0; done < buffer.Length;)
            {
                // struct pollfd { int fd; short events; short revents; }
                long polled = (uint)_fd | (long)PollIn << 32;
                int ready = Libc.poll(&polled, 1, timeoutMs);
                if (ready == 0)
                    return -Libc.ETIMEDOUT;
                nint n = ready < 0 ? -1 : Libc.read(_fd, p + done, (nuint)(buffer.Length - done));
                if (n == 0)
                    return -EPIPE;
                if (n > 0)
                    done += (int)n;
                else if (Marshal.GetLastPInvokeError() is var error and not Libc.EINTR)
                    return -error;
            }
        }
        return 0;
    }

    public void Dispose() => _socket.Dispose();
}

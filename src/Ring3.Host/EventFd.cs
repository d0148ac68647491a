using System.Runtime.InteropServices;

// SAFETY: the C library reads or writes the eight bytes of a local.
namespace Ring3.Host;

/// <summary>Operations on eventfd descriptors, owned here or by a client.</summary>
public static class EventFd
{
    private const int Cloexec = 0x80000, Nonblock = 0x800;

    /// <summary>Creates a non-blocking eventfd; throws <see cref="HostCallException"/>.</summary>
    public static int Create()
    {
        int fd = Libc.eventfd(0, Cloexec | Nonblock);
        return fd >= 0 ? fd : throw new HostCallException("eventfd");
    }

    /// <summary>Adds <paramref name="value"/> to the counter. False when the counter would overflow or the descriptor is bad.</summary>
    public static unsafe bool Signal(int fd, ulong value = 1) => Libc.write(fd, &value, 8) == 8;

    /// <summary>Whether <see cref="Signal"/> could wait for a reader: the descriptor, or another one of the same eventfd, was not made non-blocking.</summary>
    public static bool MayBlock(int fd) => (Libc.fcntl(fd, 3 /* F_GETFL */, 0) & Nonblock) == 0;

    /// <summary><see cref="Signal"/> for descriptors that <see cref="MayBlock"/>: a counter that is full stays as it is, as with the kernel's own
    /// signals.</summary>
    public static unsafe bool SignalUnlessFull(int fd)
    {
        const short PollOut = 4;
        // SAFETY: one struct pollfd { int fd; short events; short revents; } on the stack.
        long entry = (uint)fd | (long)PollOut << 32;
        // A host that refuses the question gets the signal all the same.
        return Libc.poll(&entry, 1, 0) != 0 && Signal(fd);
    }

    /// <summary>Takes the counter's value and resets it; 0 when nothing was signalled.</summary>
    public static unsafe ulong Drain(int fd)
    {
        ulong value = 0;
        return Libc.read(fd, &value, 8) == 8 ? value : 0;
    }

    /// <summary>Whether the descriptor is open and is an eventfd (a zero-length write tells nothing, so the link in /proc is read).</summary>
    public static bool IsEventFd(int fd)
    {
        try { return new FileInfo($"/proc/self/fd/{fd}").LinkTarget is { } t && t.Contains("[eventfd]", StringComparison.Ordinal); }
        catch (IOException) { return false; }
    }

    /// <summary>0 when the descriptor is an eventfd; -EBADF when it is closed, -EINVAL when it is something else.</summary>
    public static int Check(int fd) => FileDescriptor.LinkTarget(fd) is not { } target ? -9 : target.Contains("[eventfd]", StringComparison.Ordinal) ? 0 : -22;

    /// <summary>
    /// Whether two descriptors are the same eventfd. A client may name it by another number than before, and a number may stand for another eventfd than
    /// before.
    /// Where the kernel does not say (no kcmp), descriptors are compared by <paramref name="knownAs"/>, the client's number at registration.
    /// </summary>
    /// <param name="own">Our duplicate.</param>
    public static bool IsSame(int own, int knownAs, int fd)
    {
        const nint Kcmp = 312, KcmpFile = 0;
        nint pid = Environment.ProcessId;
        nint r = Libc.syscall(Kcmp, pid, pid, KcmpFile, own, fd, 0);
        return r == 0 || r < 0 && Marshal.GetLastPInvokeError() != 9 && knownAs == fd;
    }

    /// <summary>Whether two descriptors are the same open file. False, too, where the kernel does not say. Any error is false.</summary>
    /// <param name="own">Our duplicate, which is open.</param>
    public static bool IsSameFile(int own, int fd)
    {
        const int DupfdQuery = 1027; // F_DUPFD_QUERY, Linux 6.10
        const nint Kcmp = 312, KcmpFile = 0;
        int r = Libc.fcntl(own, DupfdQuery, fd);
        if (r >= 0 || Marshal.GetLastPInvokeError() != Libc.EINVAL)
            return r == 1;
        nint pid = Environment.ProcessId;
        return Libc.syscall(Kcmp, pid, pid, KcmpFile, own, fd, 0) == 0;
    }

    /// <summary>Second descriptor for the same eventfd, so that the client may close its own; -1 on failure.</summary>
    public static int Duplicate(int fd) => Libc.fcntl(fd, 1030 /* F_DUPFD_CLOEXEC */, 0);

    public static void Close(int fd) => _ = Libc.close(fd);
}

using System.Runtime.InteropServices;

// SAFETY: pointers passed to the C library are to locals of the right size.
namespace Ring3.Host;

/// <summary>Operations on eventfd descriptors, owned here or by a client.</summary>
public static unsafe class EventFd
{
    private const int Cloexec = 0x80000, Nonblock = 0x800;

    /// <summary>Creates a non-blocking eventfd; throws <see cref="IOException"/>.</summary>
    public static int Create()
    {
        int fd = Libc.eventfd(0, Cloexec | Nonblock);
        return fd >= 0 ? fd : throw new IOException($"eventfd: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
    }

    /// <summary>Adds <paramref name="value"/> to the counter. False when the counter would overflow or the descriptor is bad.</summary>
    public static bool Signal(int fd, ulong value = 1) => Libc.write(fd, &value, 8) == 8;

    /// <summary>Takes the counter's value and resets it; 0 when nothing was signalled.</summary>
    public static ulong Drain(int fd)
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

    /// <summary>Second descriptor for the same eventfd, so that the client may close its own; -1 on failure.</summary>
    public static int Duplicate(int fd) => Libc.fcntl(fd, 1030 /* F_DUPFD_CLOEXEC */, 0);

    public static void Close(int fd) => _ = Libc.close(fd);
}

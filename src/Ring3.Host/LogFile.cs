using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>Where traces go: standard error, or a file to which several processes append. Each write is one system call, so lines of threads and processes do
/// not mix, and a killed process loses none.</summary>
/// <remarks>SAFETY: buffers are pinned for the call, the path is a NUL-terminated copy.</remarks>
public sealed class LogFile
{
    private const int WriteOnly = 1, Create = 0x40, Append = 0x400, Cloexec = 0x80000;
    /// <summary>Out of the way of the numbers that clients expect for their own files.</summary>
    private const int FirstDescriptor = 200;
    private readonly int _fd;

    private LogFile(int fd) => _fd = fd;

    /// <summary>Standard error as it is now, under a number of its own; null when there is none.</summary>
    public static LogFile? StandardError() => DuplicateHigh(2) is >= 0 and var fd ? new LogFile(fd) : null;

    /// <summary>The limit on descriptors may be lower than the numbers that are wanted.</summary>
    private static int DuplicateHigh(int fd) =>
        Libc.fcntl(fd, 1030 /* F_DUPFD_CLOEXEC */, FirstDescriptor) is >= 0 and var high ? high : Libc.fcntl(fd, 1030, 3);

    /// <summary>A file, made if need be; null when it cannot be opened.</summary>
    public static unsafe LogFile? Open(string path)
    {
        fixed (byte* p = Encoding.UTF8.GetBytes(path + "\0"))
        {
            int fd = (int)Libc.syscall(257 /* openat */, -100, (nint)p, WriteOnly | Create | Append | Cloexec, 0x1a4 /* rw-r--r-- */, 0, 0);
            if (fd < 0)
                return null;
            int high = DuplicateHigh(fd);
            if (high < 0)
                return new LogFile(fd);
            _ = Libc.close(fd);
            return new LogFile(high);
        }
    }

    public unsafe void Write(string text)
    {
        byte[] bytes = Encoding.UTF8.GetBytes(text);
        fixed (byte* p = bytes)
            _ = Libc.write(_fd, p, (nuint)bytes.Length);
    }

    /// <summary>The host's id of the calling thread.</summary>
    public static int ThreadId => (int)Libc.syscall(186 /* gettid */, 0, 0, 0, 0, 0, 0);
}

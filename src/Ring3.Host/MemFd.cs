using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>Anonymous files in memory, which stand for kernel objects among a process's descriptors.</summary>
/// <remarks>SAFETY: the name is a local, NUL-terminated copy.</remarks>
public static unsafe class MemFd
{
    private const uint Cloexec = 1;

    /// <summary>A close-on-exec descriptor of a zeroed file of <paramref name="bytes"/> bytes, or -errno.</summary>
    public static int Create(string name, ulong bytes)
    {
        byte* c = stackalloc byte[64];
        int n = Encoding.ASCII.GetBytes(name.AsSpan(0, Math.Min(name.Length, 63)), new Span<byte>(c, 63));
        c[n] = 0;
        int fd = Libc.memfd_create(c, Cloexec);
        if (fd < 0)
            return -Marshal.GetLastPInvokeError();
        if (bytes == 0 || Libc.ftruncate(fd, (long)bytes) == 0)
            return fd;
        int e = Marshal.GetLastPInvokeError();
        _ = Libc.close(fd);
        return -e;
    }

    /// <summary>Maps the first <paramref name="bytes"/> bytes of a file, shared and writable. Null on failure.</summary>
    public static byte* Map(int fd, nuint bytes)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_SHARED, fd, 0);
        return p == (void*)-1 ? null : (byte*)p;
    }

    public static void Close(int fd) => _ = Libc.close(fd);
}

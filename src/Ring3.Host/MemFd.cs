using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>Anonymous files in memory, which stand for kernel objects among a process's descriptors.</summary>
/// <remarks>SAFETY: the name is a local, NUL-terminated copy.</remarks>
public static class MemFd
{
    private const uint Cloexec = 1, AllowSealing = 2;
    private const int F_ADD_SEALS = 1033;
    private const nint SealSeal = 1, SealShrink = 2, SealGrow = 4;

    /// <summary>A close-on-exec descriptor of a zeroed file of <paramref name="bytes"/> bytes, or -errno. Nobody can change the size afterwards: what we have
    /// mapped of it stays.</summary>
    public static unsafe int Create(string name, ulong bytes)
    {
        byte* c = stackalloc byte[64];
        int n = Encoding.ASCII.GetBytes(name.AsSpan(0, Math.Min(name.Length, 63)), new Span<byte>(c, 63));
        c[n] = 0;
        int fd = Libc.memfd_create(c, Cloexec | AllowSealing);
        if (fd < 0)
            return -Marshal.GetLastPInvokeError();
        if ((bytes == 0 || Libc.ftruncate(fd, (long)bytes) == 0) && Libc.fcntl(fd, F_ADD_SEALS, SealShrink | SealGrow | SealSeal) == 0)
            return fd;
        int e = Marshal.GetLastPInvokeError();
        _ = Libc.close(fd);
        return -e;
    }

    /// <summary>Maps the first <paramref name="bytes"/> bytes of a file, shared and writable. Null on failure.</summary>
    public static unsafe byte* Map(int fd, nuint bytes)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_SHARED, fd, 0);
        return p == (void*)-1 ? null : (byte*)p;
    }

    public static void Close(int fd) => _ = Libc.close(fd);
}

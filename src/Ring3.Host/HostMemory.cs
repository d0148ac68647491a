using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>Anonymous and shared host memory. Failures are <see cref="OutOfMemoryException"/> or <see cref="IOException"/> with the errno's text.</summary>
/// <remarks>SAFETY: hands out whole mappings of its own; the caller keeps accesses inside the length it asked for.</remarks>
public static unsafe class HostMemory
{
    /// <summary>Maps zeroed, private, lazily backed memory of <paramref name="bytes"/> bytes (page-rounded by the kernel).</summary>
    public static byte* Map(nuint bytes, bool huge = false)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_PRIVATE | Libc.MAP_ANONYMOUS | Libc.MAP_NORESERVE, -1, 0);
        if (p == (void*)-1)
            throw new OutOfMemoryException($"cannot map {bytes} bytes: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
        Libc.madvise(p, bytes, huge ? Libc.MADV_HUGEPAGE : Libc.MADV_NOHUGEPAGE);
        return (byte*)p;
    }

    /// <summary>Maps <paramref name="bytes"/> bytes of a file descriptor, shared and writable.</summary>
    public static byte* MapShared(int fd, nuint bytes, long offset = 0)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_SHARED, fd, offset);
        if (p == (void*)-1)
            throw new IOException($"cannot map fd {fd}: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
        return (byte*)p;
    }

    /// <summary>As <see cref="Map"/>, at an address that is a multiple of <paramref name="alignment"/> (a power of two, at least a page). <paramref name="bytes"/> is a multiple of the page size.</summary>
    public static byte* MapAligned(nuint bytes, nuint alignment, bool huge = false)
    {
        byte* p = Map(bytes + alignment, huge);
        byte* start = (byte*)(((nuint)p + alignment - 1) & ~(alignment - 1));
        if (start != p)
            Unmap(p, (nuint)(start - p));
        nuint tail = (nuint)(p + alignment - start);
        if (tail != 0)
            Unmap(start + bytes, tail);
        return start;
    }

    public static void Unmap(void* p, nuint bytes) => _ = Libc.munmap(p, bytes);

    /// <summary>Gives the pages back to the host; the next access reads zero (private mappings).</summary>
    public static void Discard(void* p, nuint bytes) => _ = Libc.madvise(p, bytes, Libc.MADV_DONTNEED);
}

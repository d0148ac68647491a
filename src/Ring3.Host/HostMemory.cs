using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>Anonymous and shared host memory. Failures are <see cref="OutOfMemoryException"/> or <see cref="IOException"/> with the errno's text.</summary>
/// <remarks>SAFETY: hands out whole mappings of its own; the caller keeps accesses inside the length it asked for.</remarks>
public static class HostMemory
{
    /// <summary>Maps zeroed, private, lazily backed memory of <paramref name="bytes"/> bytes (page-rounded by the kernel).</summary>
    public static unsafe byte* Map(nuint bytes, bool huge = false)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_PRIVATE | Libc.MAP_ANONYMOUS | Libc.MAP_NORESERVE, -1, 0);
        if (p == (void*)-1)
            throw new OutOfMemoryException($"cannot map {bytes} bytes: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
        Libc.madvise(p, bytes, huge ? Libc.MADV_HUGEPAGE : Libc.MADV_NOHUGEPAGE);
        return (byte*)p;
    }

    /// <summary>Maps <paramref name="bytes"/> bytes of a file descriptor, shared and writable.</summary>
    public static unsafe byte* MapShared(int fd, nuint bytes, long offset = 0)
    {
        void* p = Libc.mmap(null, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_SHARED, fd, offset);
        if (p == (void*)-1)
            throw new IOException($"cannot map fd {fd}: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
        return (byte*)p;
    }

    /// <summary>
    /// Maps <paramref name="bytes"/> bytes of a file, shared, writable, without reserving swap, at a multiple of <paramref name="alignment"/> (a power of two,
    /// at least a page). Null on failure.
    /// </summary>
    public static unsafe byte* TryMapSharedAligned(int fd, nuint bytes, nuint alignment)
    {
        void* p = Libc.mmap(null, bytes + alignment, Libc.PROT_NONE, Libc.MAP_PRIVATE | Libc.MAP_ANONYMOUS | Libc.MAP_NORESERVE, -1, 0);
        if (p == (void*)-1)
            return null;
        byte* start = (byte*)(((nuint)p + alignment - 1) & ~(alignment - 1));
        // SAFETY: replaces part of the reservation made above.
        void* file = Libc.mmap(start, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_SHARED | Libc.MAP_FIXED | Libc.MAP_NORESERVE, fd, 0);
        if (start != p)
            Unmap(p, (nuint)(start - (byte*)p));
        nuint tail = (nuint)((byte*)p + alignment - start);
        if (tail != 0)
            Unmap(start + bytes, tail);
        if (file != (void*)-1)
            return start;
        Unmap(start, bytes);
        return null;
    }

    /// <summary>Puts a private copy of a file's bytes in the place of part of a mapping: pages are the file's until they are written. 0 or -errno.</summary>
    public static unsafe int MapCopyOver(void* at, nuint bytes, int fd, long offset)
    {
        // SAFETY: the caller has mapped [at, at + bytes) and gives it up.
        void* p = Libc.mmap(at, bytes, Libc.PROT_READ | Libc.PROT_WRITE, Libc.MAP_PRIVATE | Libc.MAP_FIXED | Libc.MAP_NORESERVE, fd, offset);
        return p == at ? 0 : -Marshal.GetLastPInvokeError();
    }

    /// <summary>As <see cref="Map"/>, at an address that is a multiple of <paramref name="alignment"/> (a power of two, at least a page).
    /// <paramref name="bytes"/> is a multiple of the page size.</summary>
    public static unsafe byte* MapAligned(nuint bytes, nuint alignment, bool huge = false)
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

    /// <summary>Changes what accesses to whole pages are allowed. Without reading there is no writing.</summary>
    public static unsafe void Protect(void* p, nuint bytes, bool read, bool write)
    {
        if (Libc.mprotect(p, bytes, (read ? Libc.PROT_READ : Libc.PROT_NONE) | (write ? Libc.PROT_WRITE : 0)) != 0)
            throw new IOException($"mprotect: {Marshal.GetPInvokeErrorMessage(Marshal.GetLastPInvokeError())}");
    }

    public static unsafe void Unmap(void* p, nuint bytes) => _ = Libc.munmap(p, bytes);

    /// <summary>Gives the pages back to the host; the next access reads zero (private mappings).</summary>
    public static unsafe void Discard(void* p, nuint bytes) => _ = Libc.madvise(p, bytes, Libc.MADV_DONTNEED);

    /// <summary>Makes every page of a range readable without a fault, as reading them would. False: some page cannot be read, a signal came, or the kernel
    /// (before 5.14) cannot do it.</summary>
    public static unsafe bool TryPopulateRead(ulong address, nuint bytes) => Libc.madvise((void*)address, bytes, Libc.MADV_POPULATE_READ) == 0;

    /// <summary>Makes the pages of a range present, as writing to them would, without their faults; where the kernel cannot (before 5.14) nothing
    /// changes.</summary>
    public static unsafe void Populate(void* p, nuint bytes) => _ = Libc.madvise(p, bytes, Libc.MADV_POPULATE_WRITE);

    /// <summary>Frees the pages of a shared file mapping, in the file too; the next access reads zero.</summary>
    public static unsafe void RemoveShared(void* p, nuint bytes) => _ = Libc.madvise(p, bytes, Libc.MADV_REMOVE);

    /// <summary>fallocate(2) on a file: 0 or -errno.</summary>
    public static int Allocate(int fd, int mode, long offset, long length) =>
        Libc.fallocate(fd, mode, offset, length) == 0 ? 0 : -Marshal.GetLastPInvokeError();
}

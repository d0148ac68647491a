using System.Numerics;
using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>
/// A file without a name that holds pages which were taken out of memory. Memory is attached as a private mapping of the file: what is written to it are the
/// process's own pages, which the kernel never writes back by itself, and a page that was evicted is read from the file by whatever touches it next, the kernel
/// included.
/// </summary>
/// <remarks>
/// A page is evicted in a window: the pages are made read-only, those that differ from the file are written to it, all are dropped, and writing is allowed
/// again. Threads that write meanwhile wait (FaultGuard's paged memory).
/// A system call that stores into attached memory inside a window fails with EFAULT; reading is always possible. One thread at a time calls the members.
/// SAFETY: attached memory is a mapping of the caller's that he keeps until after Dispose; ranges are checked against it.
/// </remarks>
public sealed class PageStore : IDisposable
{
    /// <summary>Most pages of one <see cref="Evict"/>.</summary>
    public const int MaxBatch = 128;
    /// <summary>Pages of a block: the unit of <see cref="Evict"/>.</summary>
    public const int BlockPages = 512;

    private const int Page = 4096, ChunkPages = 256, PunchHole = 3, FadviseDontNeed = 4, MadviseRandom = 1;

    private readonly FileStream _file;
    private readonly int _fd;
    private readonly List<Attached> _ranges = [];
    private readonly SystemCallList _calls = new(ChunkPages * 3 + 8);
    private readonly unsafe ulong* _words = (ulong*)NativeMemory.AllocZeroed(BlockPages * sizeof(ulong));
    private ulong _size;
    private bool _disposed;

    private readonly record struct Attached(ulong Begin, ulong End, ulong Offset, nint Ticket);

    private PageStore(FileStream file, string directory, bool inMemory)
    {
        _file = file;
        _fd = (int)file.SafeFileHandle.DangerousGetHandle();
        Directory = directory;
        IsInMemory = inMemory;
    }

    /// <summary>Where the file is.</summary>
    public string Directory { get; }

    /// <summary>The directory's file system keeps files in memory: evicting shrinks the process, not what the host uses.</summary>
    public bool IsInMemory { get; }

    /// <summary>What the kernel says about pages.</summary>
    public PageMap Map { get; } = new();

    /// <summary>errno of the last write that failed; 0 when none has.</summary>
    public int LastError { get; private set; }

    /// <summary>Creates the file in a directory. It disappears with the process.</summary>
    /// <exception cref="IOException">It cannot be created there.</exception>
    public static PageStore Create(string directory)
    {
        if (!System.IO.Directory.Exists(directory))
            throw new IOException($"{directory}: no such directory");
        try { return CreateIn(directory); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { throw new IOException($"{directory}: no file can be made there", e); }
    }

    private static PageStore CreateIn(string directory)
    {
        string path = Path.Combine(directory, $".ring3-pages-{Environment.ProcessId}-{Guid.NewGuid():N}");
#pragma warning disable CA1416 // Linux only, as the whole project.
        var file = new FileStream(path, new FileStreamOptions
        {
            Mode = FileMode.CreateNew, Access = FileAccess.ReadWrite, Share = FileShare.ReadWrite | FileShare.Delete, BufferSize = 0,
            UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
        });
#pragma warning restore CA1416
        File.Delete(path);
        return new PageStore(file, directory, FormatOf(directory) is "tmpfs" or "ramfs");
    }

    /// <summary>/var/tmp, the directory for temporary files, or the current one: the first in which a file can be made and that is not kept in memory; else the
    /// first in which a file can be made.</summary>
    /// <exception cref="IOException">None takes a file.</exception>
    public static PageStore CreateInDefaultDirectory()
    {
        PageStore? inMemory = null;
        foreach (string directory in (string[])["/var/tmp", Path.GetTempPath(), Environment.CurrentDirectory])
        {
            PageStore store;
            try { store = Create(directory); }
            catch (IOException) { continue; }
            if (!store.IsInMemory)
            {
                inMemory?.Dispose();
                return store;
            }
            if (inMemory is null)
                inMemory = store;
            else
                store.Dispose();
        }
        return inMemory ?? throw new IOException("no directory for temporary files takes a file");
    }

    private static string FormatOf(string directory)
    {
        try { return new DriveInfo(Path.GetFullPath(directory)).DriveFormat; }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException) { return ""; }
    }

    /// <summary>Turns anonymous memory of the process into attached memory with the same contents. Both ends are page-aligned. Threads that write meanwhile
    /// wait.</summary>
    /// <exception cref="IOException">The file cannot take so much; the memory is usable, and cannot be evicted from.</exception>
    public unsafe void Attach(ulong begin, ulong bytes)
    {
        ulong offset = _size, room = (bytes + (BlockPages * Page - 1)) & ~(ulong)(BlockPages * Page - 1);
        Reserve(offset, room);
        _size += room;
        nint ticket = FaultGuard.AddPagedMemory(begin, begin + bytes);
        try
        {
            for (ulong done = 0; done < bytes; done += ChunkPages * Page)
                AttachChunk(begin + done, offset + done, (int)(Math.Min(ChunkPages * Page, bytes - done) / Page));
        }
        catch (IOException)
        {
            FaultGuard.RemovePagedMemory(ticket);
            throw;
        }
        _ = Libc.madvise((void*)begin, (nuint)bytes, MadviseRandom);
        _ranges.Add(new Attached(begin, begin + bytes, offset, ticket));
    }

    /// <summary>
    /// Takes the room for a range's pages now: a page that is touched for the first time, where the file system keeps files in memory, or evicted, on a disk,
    /// finds it. File systems that cannot reserve are tried as they are.
    /// </summary>
    private void Reserve(ulong offset, ulong bytes)
    {
        const int Interrupted = 4, TooBig = 27, NoSpace = 28, Quota = 122;
        // Asked first: a reservation that fails half-way would have filled the disk meanwhile.
        int r = FreeBytes(Directory) < bytes ? -NoSpace : -Interrupted;
        if (r == -Interrupted)
            _file.SetLength((long)(offset + bytes));
        while (r == -Interrupted)
            r = HostMemory.Allocate(_fd, 0, (long)offset, (long)bytes);
        if (r is not (-TooBig or -NoSpace or -Quota))
            return;
        LastError = -r;
        throw new IOException($"no room for {bytes >> 20} MiB in {Directory}: {Marshal.GetPInvokeErrorMessage(-r)}");
    }

    private static ulong FreeBytes(string directory)
    {
        try { return (ulong)new DriveInfo(Path.GetFullPath(directory)).AvailableFreeSpace; }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException) { return ulong.MaxValue; }
    }

    private unsafe void AttachChunk(ulong begin, ulong offset, int pages)
    {
        long length = (long)pages * Page;
        BeginWindow(begin, pages, PageMap.Present);
        for (int i = 0; i < pages; i++)
        {
            // Pages that were never touched are holes of the file already.
            _calls.Add(SystemCallList.Mask, (long)(_words + i), unchecked((long)(PageMap.Present | PageMap.Swapped)), 0, skip: 1);
            _calls.Add(SystemCallList.Mask, (long)(_words + i), 0, 0, expected: 1, skip: 1);
            _calls.Add(SystemCallList.Pwrite, _fd, (long)begin + i * Page, Page, (long)offset + i * Page, expected: Page, skip: (pages - 1 - i) * 3 + 1);
        }
        const int Private = Libc.MAP_PRIVATE | Libc.MAP_FIXED | Libc.MAP_NORESERVE;
        int map = _calls.Add(SystemCallList.Mmap, (long)begin, length, Libc.PROT_READ | Libc.PROT_WRITE, Private, _fd, (long)offset, expected: (long)begin);
        EndWindow(begin, pages);
        if (_calls.Succeeded(map))
            return;
        LastError = ErrorOf(2, map + 1);
        throw new IOException($"cannot write guest memory to {Directory}: {Marshal.GetPInvokeErrorMessage(LastError)}");
    }

    /// <summary>
    /// Takes pages out of memory. The caller has seen to it that nobody has them mapped through tables of his own.
    /// </summary>
    /// <param name="block">Address of bit 0 of the masks; the block lies within one attached range, except for pages whose bits are clear.</param>
    /// <param name="pages">The pages, at most <see cref="MaxBatch"/>.</param>
    /// <param name="evicted">Receives those that have been dropped. The others are as they were; see <see cref="LastError"/>.</param>
    /// <returns>Number of pages that were written to the file; the others had not changed since they were read from it.</returns>
    public unsafe int Evict(ulong block, ReadOnlySpan<ulong> pages, Span<ulong> evicted)
    {
        evicted.Clear();
        int first = NextBit(pages, 0, true), end = LastBit(pages) + 1;
        if (first >= end)
            return 0;
        ulong begin = block + (ulong)first * Page;
        ulong offset = OffsetOf(begin, block + (ulong)end * Page);
        BeginWindow(begin, end - first, 0);
        for (int run = first; run < end;)
        {
            int runEnd = NextBit(pages, run, false);
            for (int i = run; i < runEnd; i++)
            {
                long at = (long)(i - first) * Page;
                _calls.Add(SystemCallList.Mask, (long)(_words + i - first), unchecked((long)PageMap.OfFile), 0, skip: 1);
                _calls.Add(SystemCallList.Pwrite, _fd, (long)begin + at, Page, (long)offset + at, expected: Page, skip: (runEnd - 1 - i) * 2 + 1);
            }
            _calls.Add(SystemCallList.Madvise, (long)block + (long)run * Page, (long)(runEnd - run) * Page, Libc.MADV_DONTNEED);
            run = NextBit(pages, runEnd, true);
        }
        EndWindow(begin, end - first);
        return Collect(pages, first, end, evicted);
    }

    /// <summary>Reads the results of an eviction, in the order in which its calls were listed.</summary>
    private int Collect(ReadOnlySpan<ulong> pages, int first, int end, Span<ulong> evicted)
    {
        int written = 0, call = 2;
        for (int run = first; run < end;)
        {
            int runEnd = NextBit(pages, run, false), drop = call + (runEnd - run) * 2;
            for (int i = call + 1; i < drop; i += 2)
            {
                if (_calls.Succeeded(i))
                    written++;
            }
            if (_calls.Succeeded(drop))
            {
                for (int i = run; i < runEnd; i++)
                    evicted[i >> 6] |= 1UL << (i & 63);
            }
            else
                LastError = ErrorOf(call, drop + 1);
            call = drop + 1;
            run = NextBit(pages, runEnd, true);
        }
        return written;
    }

    /// <summary>Gives pages back for good: they read as zero, and the file does not keep them.</summary>
    public unsafe void Discard(ulong begin, ulong bytes)
    {
        ulong offset = OffsetOf(begin, begin + bytes);
        if (IsInMemory || HostMemory.Allocate(_fd, PunchHole, (long)offset, (long)bytes) != 0)
        {
            // A file system without holes, or one in which filling a hole again may fail: zeros take their place.
            Span<byte> zeros = stackalloc byte[Page];
            for (ulong at = 0; at < bytes; at += Page)
                RandomAccess.Write(_file.SafeFileHandle, zeros, (long)(offset + at));
        }
        HostMemory.Discard((void*)begin, (nuint)bytes);
    }

    /// <summary>Asks the kernel to write out what the file has in the page cache and to forget what is written. Any thread.</summary>
    public void DropCache() => _ = Libc.posix_fadvise(_fd, 0, 0, FadviseDontNeed);

    /// <summary>Opens the window: read-only, and what the kernel knows about each page in _words, or <paramref name="unknown"/> where it does not
    /// tell.</summary>
    private unsafe void BeginWindow(ulong begin, int pages, ulong unknown)
    {
        new Span<ulong>(_words, pages).Fill(unknown);
        _calls.Clear();
        _calls.Add(SystemCallList.Mprotect, (long)begin, (long)pages * Page, Libc.PROT_READ);
        _calls.Add(SystemCallList.Pread, Map.Fd, (long)_words, (long)pages * sizeof(ulong), (long)(begin / Page * sizeof(ulong)),
            expected: (long)pages * sizeof(ulong));
    }

    /// <summary>Closes the window and makes the calls.</summary>
    private void EndWindow(ulong begin, int pages)
    {
        _calls[0].Skip = _calls.Count - 1;
        _calls.Add(SystemCallList.Mprotect, (long)begin, (long)pages * Page, Libc.PROT_READ | Libc.PROT_WRITE);
        _calls.Run();
    }

    /// <summary>errno of the first write or other call in a part of the list that was made and failed; ENOSPC for a short write.</summary>
    private int ErrorOf(int from, int to)
    {
        const int NoSpace = 28;
        if (!_calls.Succeeded(0))
            return (int)-_calls[0].Result;
        for (int i = from; i < to; i++)
        {
            long result = _calls[i].Result;
            if (_calls[i].Number != SystemCallList.Mask && result != long.MinValue && !_calls.Succeeded(i))
                return result < 0 ? (int)-result : NoSpace;
        }
        return NoSpace;
    }

    private ulong OffsetOf(ulong begin, ulong end)
    {
        foreach (Attached r in _ranges)
            if (begin >= r.Begin && end <= r.End)
                return r.Offset + (begin - r.Begin);
        throw new ArgumentOutOfRangeException(nameof(begin), "not attached memory");
    }

    /// <summary>First index from <paramref name="from"/> on whose bit has the value; the number of bits when there is none.</summary>
    private static int NextBit(ReadOnlySpan<ulong> mask, int from, bool value)
    {
        for (int i = from; i < mask.Length * 64; i = (i | 63) + 1)
        {
            ulong word = (value ? mask[i >> 6] : ~mask[i >> 6]) >> (i & 63);
            if (word != 0)
                return i + BitOperations.TrailingZeroCount(word);
        }
        return mask.Length * 64;
    }

    private static int LastBit(ReadOnlySpan<ulong> mask)
    {
        for (int w = mask.Length - 1; w >= 0; w--)
            if (mask[w] != 0)
                return w * 64 + 63 - BitOperations.LeadingZeroCount(mask[w]);
        return -1;
    }

    /// <summary>Closes the file. Attached memory keeps its contents.</summary>
    public unsafe void Dispose()
    {
        if (_disposed)
            return;
        _disposed = true;
        foreach (Attached r in _ranges)
            FaultGuard.RemovePagedMemory(r.Ticket);
        _file.Dispose();
        _calls.Dispose();
        NativeMemory.Free(_words);
    }
}

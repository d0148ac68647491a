using System.Runtime.InteropServices;
using System.Text;

namespace Ring3.Host;

/// <summary>
/// A regular file or a block device as a disk: locked while it is open, and read and written at offsets. Results are bytes, 0, or -errno; nothing throws
/// and nothing is allocated.
/// </summary>
/// <remarks>
/// The lock is flock(2): exclusive, or shared by those who only read. It ends with the process.
/// SAFETY: pointers passed to the C library are to locals of the right size, or the caller's buffers of the length that he says. Members may be called from
/// any thread.
/// </remarks>
public sealed partial class DiskFile : IDisposable
{
    private const int EOPNOTSUPP = 95, EINVAL = 22, GetFlags = 3;
    private const int KeepSize = 1, PunchHole = 2, ZeroRange = 0x10;
    /// <summary>IOV_MAX.</summary>
    private const int MaxPieces = 1024;
    private readonly int _fd;
    private int _closed;

    private DiskFile(int fd, long bytes, bool isBlockDevice, bool direct)
    {
        (_fd, Bytes, IsBlockDevice) = (fd, bytes, isBlockDevice);
        if (direct)
            FindBlock();
    }

    /// <summary>Size when it was opened.</summary>
    public long Bytes { get; }

    public bool IsBlockDevice { get; }

    /// <summary>Opens and locks. 0; -EAGAIN when another has locked it; -ENOTBLK when it is neither a file nor a block device; or what the host says.</summary>
    /// <param name="path">The file.</param>
    /// <param name="readOnly">It is not written to.</param>
    /// <param name="file">The disk.</param>
    /// <param name="direct">Without the host's page cache (O_DIRECT), where the file system has that: see <see cref="IsDirect"/>.</param>
    public static int TryOpen(string path, bool readOnly, out DiskFile? file, bool direct = false)
    {
        file = null;
        int fd = Open(path, readOnly, direct ? DirectFlag : 0);
        if (fd == -EINVAL && direct)
            fd = Open(path, readOnly, 0);
        return fd < 0 ? fd : TryAdopt(fd, readOnly, out file);
    }

    private static unsafe int Open(string path, bool readOnly, int flags)
    {
        const int ReadWrite = 2, NonBlock = 0x800, Cloexec = 0x80000;
        fixed (byte* p = Encoding.UTF8.GetBytes(path + "\0"))
        {
            int fd = (int)Libc.syscall(257 /* openat */, -100, (nint)p, (readOnly ? 0 : ReadWrite) | NonBlock | Cloexec | flags, 0, 0, 0);
            return fd < 0 ? -Marshal.GetLastPInvokeError() : fd;
        }
    }

    /// <summary>As <see cref="TryOpen"/>, with what another process has opened. The descriptor is closed when there is no result.</summary>
    /// <returns>Also -EBADF when it cannot be read, or written where that is to be.</returns>
    public static int TryAdopt(int fd, bool readOnly, out DiskFile? file)
    {
        const int LockShared = 1, LockExclusive = 2, LockNonBlock = 4, SeekEnd = 2, AccessMode = 3, WriteOnly = 1, ReadWrite = 2;
        const int ENOTBLK = 15, EBADF = 9;
        const uint TypeMask = 0xf000, Regular = 0x8000, Block = 0x6000;
        file = null;
        int error = 0, flags = Libc.fcntl(fd, GetFlags, 0), access = flags & AccessMode;
        long bytes = 0;
        if (!TryStat(fd, out uint mode, out _))
            error = -Marshal.GetLastPInvokeError();
        else if ((mode & TypeMask) is not (Regular or Block))
            error = -ENOTBLK;
        else if (access == WriteOnly || !readOnly && access != ReadWrite)
            error = -EBADF;
        else if (Libc.syscall(73 /* flock */, fd, (readOnly ? LockShared : LockExclusive) | LockNonBlock, 0, 0, 0, 0) != 0)
            error = -Marshal.GetLastPInvokeError();
        else if ((bytes = Libc.syscall(8 /* lseek */, fd, 0, SeekEnd, 0, 0, 0)) < 0)
            error = -Marshal.GetLastPInvokeError();
        if (error != 0)
        {
            _ = Libc.close(fd);
            return error;
        }
        file = new DiskFile(fd, bytes, (mode & TypeMask) == Block, (flags & DirectFlag) != 0);
        return 0;
    }

    private static unsafe bool TryStat(int fd, out uint mode, out long modifiedNs)
    {
        const int StatBytes = 144, ModeAt = 24, ModifiedAt = 88;
        const long Second = 1_000_000_000;
        byte* stat = stackalloc byte[StatBytes];
        bool ok = Libc.syscall(5 /* fstat */, fd, (nint)stat, 0, 0, 0, 0) == 0;
        mode = ok ? *(uint*)(stat + ModeAt) : 0;
        modifiedNs = ok ? *(long*)(stat + ModifiedAt) * Second + *(long*)(stat + ModifiedAt + 8) : 0;
        return ok;
    }

    /// <summary>When the file was written last, by the wall clock; of a block device, nothing that says so.</summary>
    public long ModifiedNs => TryStat(_fd, out _, out long modified) ? modified : 0;

    /// <summary>For passing it on to another process, which then has the lock, too.</summary>
    public int Descriptor => _fd;

    /// <summary>Reads at an offset; fewer bytes than asked for at the end of the file only.</summary>
    public unsafe int Read(long offset, byte* buffer, int length)
    {
        var piece = new HostPiece((ulong)buffer, (nuint)length);
        int n = length == 0 ? 0 : IsWhole(offset, buffer, length) ? (int)Read(offset, new Span<HostPiece>(ref piece)) : ReadBlocks(offset, buffer, length);
        return n == -EINVAL && TryGrowBlock() ? Read(offset, buffer, length) : n;
    }

    /// <summary>Reads at an offset into pieces of memory, which may vanish meanwhile: the bytes, fewer at the end of the file only, or -errno.</summary>
    /// <param name="offset">Where in the file.</param>
    /// <param name="pieces">None is empty; changed as they are filled.</param>
    public unsafe long Read(long offset, Span<HostPiece> pieces)
    {
        long done = 0;
        while (!pieces.IsEmpty)
        {
            nint n;
            fixed (HostPiece* first = pieces)
                n = Libc.preadv(_fd, first, Math.Min(pieces.Length, MaxPieces), offset + done);
            if (n == 0)
                break;
            if (n < 0 && Marshal.GetLastPInvokeError() is var error)
            {
                if (error == Libc.EINTR)
                    continue;
                return -error;
            }
            done += n;
            for (nuint left = (nuint)n; left != 0;)
            {
                HostPiece piece = pieces[0];
                nuint took = Math.Min(left, piece.Bytes);
                left -= took;
                if (took == piece.Bytes)
                    pieces = pieces[1..];
                else
                    pieces[0] = new HostPiece(piece.Hva + took, piece.Bytes - took);
            }
        }
        return done;
    }

    /// <summary>Writes everything at an offset: 0 or -errno.</summary>
    public unsafe int Write(long offset, byte* buffer, int length)
    {
        int r;
        if (!IsWhole(offset, buffer, length))
            r = WriteBlocks(offset, buffer, length);
        else if (Volatile.Read(ref _block) > SmallestBlock)
        {
            // A part of a block is written with the rest of it: nobody else writes meanwhile.
            using (_blockLock.Enter())
                r = WriteWhole(offset, buffer, length);
        }
        else
            r = WriteWhole(offset, buffer, length);
        return r == -EINVAL && TryGrowBlock() ? Write(offset, buffer, length) : r;
    }

    private unsafe int WriteWhole(long offset, byte* buffer, int length)
    {
        int done = 0;
        while (done < length)
        {
            nint n = Libc.pwrite(_fd, buffer + done, (nuint)(length - done), offset + done);
            if (n < 0 && Marshal.GetLastPInvokeError() is var error)
            {
                if (error == Libc.EINTR)
                    continue;
                return -error;
            }
            done += (int)n;
        }
        return 0;
    }

    /// <summary>What was written survives a loss of power: 0 or -errno.</summary>
    public int Flush() => Libc.syscall(75 /* fdatasync */, _fd, 0, 0, 0, 0, 0) == 0 ? 0 : -Marshal.GetLastPInvokeError();

    /// <summary>Gives space back; it reads as zeros. 0, -EOPNOTSUPP where the host's file system cannot, or another error.</summary>
    public int Discard(long offset, long length) => HostMemory.Allocate(_fd, PunchHole | KeepSize, offset, length);

    /// <summary>Makes bytes zero, with or without giving their space back. 0, -EOPNOTSUPP, or another error.</summary>
    public int WriteZeroes(long offset, long length, bool mayUnmap)
    {
        int r = mayUnmap ? Discard(offset, length) : -EOPNOTSUPP;
        return r == -EOPNOTSUPP ? HostMemory.Allocate(_fd, ZeroRange | KeepSize, offset, length) : r;
    }

    public void Dispose()
    {
        if (Interlocked.Exchange(ref _closed, 1) != 0)
            return;
        _ = Libc.close(_fd);
        FreeScratch();
    }
}

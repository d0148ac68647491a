using System.Runtime.InteropServices;

// SAFETY: the buffer has ScratchBytes bytes, is used under the lock alone, and is freed when nobody uses the disk any more.
namespace Ring3.Host;

// Past the page cache (O_DIRECT). The host then takes whole blocks alone, from and into memory that is aligned to them. How large they are no call tells on
// every kernel and file system: the disk finds it out, at the latest by the error of a request.
public sealed partial class DiskFile
{
    private const int DirectFlag = 0x4000, SmallestBlock = 512, LargestBlock = 4096, ScratchBytes = 64 << 10;

    private readonly RankedLock _blockLock = new(LockRank.DiskBlocks);
    private unsafe byte* _scratch;
    /// <summary>Bytes of which places, lengths and addresses are multiples; 1: the page cache is used, which takes all.</summary>
    private int _block = 1;

    /// <summary>Nothing goes through the host's page cache.</summary>
    public bool IsDirect => Volatile.Read(ref _block) != 1;

    /// <summary>Whether a file can be opened so.</summary>
    public static bool HasDirect(string path)
    {
        int fd = Open(path, readOnly: true, DirectFlag);
        if (fd >= 0)
            _ = Libc.close(fd);
        return fd != -EINVAL;
    }

    private unsafe void FindBlock()
    {
        _scratch = (byte*)NativeMemory.AlignedAlloc(ScratchBytes, LargestBlock);
        _block = SmallestBlock;
        var piece = new HostPiece((ulong)_scratch, SmallestBlock);
        if (Bytes % SmallestBlock != 0 || Libc.preadv(_fd, &piece, 1, 0) < 0 && Marshal.GetLastPInvokeError() == EINVAL)
            TryGrowBlock();
    }

    /// <summary>A request of whole blocks was refused: they are larger. Where the disk cannot be of larger ones, the page cache takes over.</summary>
    /// <returns>False: that was not the reason.</returns>
    internal bool TryGrowBlock()
    {
        const int SetFlags = 4;
        using RankedLock.Scope _ = _blockLock.Enter();
        int block = Volatile.Read(ref _block);
        if (block == 1)
            return false;
        bool larger = block < LargestBlock && Bytes % LargestBlock == 0;
        if (!larger && Libc.fcntl(_fd, SetFlags, Libc.fcntl(_fd, GetFlags, 0) & ~DirectFlag) != 0)
            return false;
        Volatile.Write(ref _block, larger ? LargestBlock : 1);
        return true;
    }

    private unsafe bool IsWhole(long offset, byte* buffer, int length) => ((ulong)offset | (ulong)buffer | (uint)length) % (uint)Volatile.Read(ref _block) == 0;

    /// <summary>Whether the host can read into these pieces of memory as they are.</summary>
    public bool Takes(long offset, ReadOnlySpan<HostPiece> pieces)
    {
        uint block = (uint)Volatile.Read(ref _block);
        ulong all = (ulong)offset;
        foreach (HostPiece piece in pieces)
            all |= piece.Hva | piece.Bytes;
        return all % block == 0;
    }

    /// <summary>Reads what is no whole blocks: the bytes, or -errno.</summary>
    private unsafe int ReadBlocks(long offset, byte* buffer, int length)
    {
        using RankedLock.Scope _ = _blockLock.Enter();
        for (int done = 0; done < length;)
        {
            int n = Fetch(offset + done, length - done, out int skip);
            if (n <= 0)
                return n < 0 ? n : done;
            Buffer.MemoryCopy(_scratch + skip, buffer + done, length - done, n);
            done += n;
        }
        return length;
    }

    /// <summary>Writes what is no whole blocks: 0 or -errno.</summary>
    private unsafe int WriteBlocks(long offset, byte* buffer, int length)
    {
        using RankedLock.Scope _ = _blockLock.Enter();
        for (int done = 0; done < length;)
        {
            int n = Fetch(offset + done, length - done, out int skip);
            if (n <= 0)
                return n < 0 ? n : -EINVAL;
            Buffer.MemoryCopy(buffer + done, _scratch + skip, ScratchBytes - skip, n);
            int r = WriteWhole(offset + done - skip, _scratch, RoundUp(skip + n));
            if (r != 0)
                return r;
            done += n;
        }
        return 0;
    }

    private int PartBlock => Math.Max(Volatile.Read(ref _block), SmallestBlock);

    private int RoundUp(int n) => (n + PartBlock - 1) / PartBlock * PartBlock;

    /// <summary>Reads the blocks that a piece begins in into the buffer: how many bytes of the piece it has, 0 at the disk's end, or -errno.</summary>
    /// <param name="offset">Where the piece begins.</param>
    /// <param name="length">Its bytes.</param>
    /// <param name="skip">Where in the buffer it begins.</param>
    private unsafe int Fetch(long offset, int length, out int skip)
    {
        skip = (int)(offset % PartBlock);
        int bytes = Math.Min(RoundUp(skip + length), ScratchBytes);
        var piece = new HostPiece((ulong)_scratch, (nuint)bytes);
        long got = Read(offset - skip, new Span<HostPiece>(ref piece));
        return got < 0 ? (int)got : (int)Math.Clamp(got - skip, 0, length);
    }

    private unsafe void FreeScratch() => NativeMemory.AlignedFree(_scratch);
}

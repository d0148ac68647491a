using System.Buffers.Binary;
using System.Runtime.InteropServices;
using System.Text;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// A disk in a raw file or on a block device. Each queue has a thread, which does one request after the other. What is read goes to guest memory by the system
/// call; where that cannot be, and for writes, a buffer of the queue is between: guest memory may vanish, or be evicted, under a system call, but not under the
/// accessors of <see cref="GuestMemory"/>. SPEC: virtio 1.2, "Block Device".
/// </summary>
/// <remarks>SAFETY: a queue's buffer has <see cref="BufferBytes"/> bytes and belongs to its thread; every length is at most that. The threads have ended
/// before it is freed.</remarks>
public sealed class BlockDevice : VirtioDevice
{
    public const int DeviceType = 2, SectorBytes = 512;

    /// <summary>Features of block devices.</summary>
    public const ulong SegMax = 1UL << 2, ReadOnly = 1UL << 5, BlockSize = 1UL << 6, FlushCommand = 1UL << 9, Topology = 1UL << 10, MultiQueue = 1UL << 12,
        DiscardCommand = 1UL << 13, WriteZeroesCommand = 1UL << 14;

    private const ushort QueueSize = 256;
    private const int BufferBytes = 256 << 10, DirectBytes = 1 << 20, HeaderBytes = 16, SegmentBytes = 16, IdBytes = 20, ConfigBytes = 60;
    private const uint In = 0, Out = 1, Flush = 4, GetId = 8, Discard = 11, WriteZeroes = 13;
    private const byte Ok = 0, IoError = 1, Unsupported = 2;
    private const uint MaxRangeSectors = 1 << 22, MaxRanges = 16;
    private const int EOPNOTSUPP = 95;

    private readonly DiskFile _file;
    private readonly bool _readOnly;
    private readonly ulong _sectors;
    private readonly byte[] _id = new byte[IdBytes], _config = new byte[ConfigBytes];
    private readonly unsafe byte*[] _buffers;

    /// <param name="memory">The guest's.</param>
    /// <param name="file">Belongs to the device from now on. Its size is a multiple of <see cref="SectorBytes"/>.</param>
    /// <param name="readOnly">The guest may not write.</param>
    /// <param name="serial">What the guest is told; at most 20 bytes of it.</param>
    /// <param name="queues">1 to <see cref="VirtioTransport.MaxQueues"/>.</param>
    /// <param name="name">For threads and messages.</param>
    public unsafe BlockDevice(GuestMemory memory, DiskFile file, bool readOnly, string serial, int queues, string name)
        : base(memory, DeviceType, name, Sizes(queues))
    {
        (_file, _readOnly, _sectors) = (file, readOnly, (ulong)file.Bytes / SectorBytes);
        byte[] id = Encoding.UTF8.GetBytes(serial);
        id.AsSpan(0, Math.Min(id.Length, IdBytes)).CopyTo(_id);
        Features = SegMax | BlockSize | FlushCommand | Topology | (queues > 1 ? MultiQueue : 0) | (readOnly ? ReadOnly : DiscardCommand | WriteZeroesCommand);
        FillConfig((ushort)queues);
        _buffers = new byte*[queues];
        for (int i = 0; i < queues; i++)
            _buffers[i] = (byte*)NativeMemory.AlignedAlloc(BufferBytes, 4096);
    }

    private static ushort[] Sizes(int queues)
    {
        var sizes = new ushort[queues];
        Array.Fill(sizes, QueueSize);
        return sizes;
    }

    private void FillConfig(ushort queues)
    {
        const int CapacityAt = 0, SegMaxAt = 12, BlockSizeAt = 20, PhysicalExponentAt = 24, MinIoAt = 26, OptIoAt = 28, QueuesAt = 34, MaxDiscardAt = 36,
            MaxDiscardSegAt = 40, DiscardAlignAt = 44, MaxZeroesAt = 48, MaxZeroesSegAt = 52, ZeroesMayUnmapAt = 56;
        const byte EightSectors = 3;
        void Put32(int at, uint value) => BinaryPrimitives.WriteUInt32LittleEndian(_config.AsSpan(at), value);
        void Put16(int at, ushort value) => BinaryPrimitives.WriteUInt16LittleEndian(_config.AsSpan(at), value);
        BinaryPrimitives.WriteUInt64LittleEndian(_config.AsSpan(CapacityAt), _sectors);
        // Header and status are descriptors too.
        Put32(SegMaxAt, QueueSize - 2);
        Put32(BlockSizeAt, SectorBytes);
        _config[PhysicalExponentAt] = EightSectors;
        Put16(MinIoAt, 1);
        Put32(OptIoAt, BufferBytes / SectorBytes);
        Put16(QueuesAt, queues);
        Put32(MaxDiscardAt, MaxRangeSectors);
        Put32(MaxDiscardSegAt, MaxRanges);
        Put32(DiscardAlignAt, 8);
        Put32(MaxZeroesAt, MaxRangeSectors);
        Put32(MaxZeroesSegAt, MaxRanges);
        _config[ZeroesMayUnmapAt] = 1;
    }

    public override ulong Features { get; }

    public override ReadOnlySpan<byte> Config => _config;

    /// <summary>Nothing: requests are served whole, and what is in the image is the caller's to look after.</summary>
    protected internal override void Transfer(StateTransfer state)
    {
    }

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        Span<byte> header = stackalloc byte[HeaderBytes];
        if (chain.ReadableBytes < HeaderBytes || chain.WritableBytes < 1)
        {
            Queues[queue].Break("a disk request without header or status");
            return 0;
        }
        if (!chain.TryRead(0, header))
            return NoMemory(queue);
        uint type = BinaryPrimitives.ReadUInt32LittleEndian(header);
        ulong sector = BinaryPrimitives.ReadUInt64LittleEndian(header[8..]);
        ulong written = 0;
        byte? status = type switch
        {
            In => Read(queue, chain, sector, out written),
            Out => _readOnly ? IoError : Write(queue, chain, sector),
            Flush => _file.Flush() == 0 ? Ok : IoError,
            GetId => Identify(chain, out written),
            Discard or WriteZeroes => _readOnly ? IoError : Ranges(chain, type == WriteZeroes),
            _ => Unsupported,
        };
        // The status is the last byte that can be written, wherever the data end.
        if (status is not { } code || !chain.TryWrite(chain.WritableBytes - 1, [code]))
            return NoMemory(queue);
        return (uint)Math.Min(written + 1, uint.MaxValue);
    }

    private uint NoMemory(int queue)
    {
        Queues[queue].Break("a disk request's buffer is no memory");
        return 0;
    }

    /// <summary>Whether whole sectors of the disk are meant.</summary>
    private bool IsInside(ulong sector, ulong bytes) => bytes % SectorBytes == 0 && sector <= _sectors && bytes / SectorBytes <= _sectors - sector;

    /// <summary>Status, or null when the buffer is no memory.</summary>
    private unsafe byte? Read(int queue, DescriptorChain chain, ulong sector, out ulong written)
    {
        ulong bytes = chain.WritableBytes - 1;
        written = 0;
        if (!IsInside(sector, bytes))
            return IoError;
        bool direct = true;
        while (written < bytes)
        {
            int n = (int)Math.Min((ulong)(direct ? DirectBytes : BufferBytes), bytes - written);
            if (direct)
            {
                long? got = chain.Fill(written, n, _file, (long)(sector * SectorBytes + written));
                if (got is not null && got != n)
                    return IoError;
                direct = got is not null;
                if (direct)
                    written += (uint)n;
                continue;
            }
            if (_file.Read((long)(sector * SectorBytes + written), _buffers[queue], n) != n)
                return IoError;
            if (!chain.TryWrite(written, new ReadOnlySpan<byte>(_buffers[queue], n)))
                return null;
            written += (uint)n;
        }
        return Ok;
    }

    /// <summary>Status, or null when the buffer is no memory.</summary>
    private unsafe byte? Write(int queue, DescriptorChain chain, ulong sector)
    {
        ulong bytes = chain.ReadableBytes - HeaderBytes;
        if (!IsInside(sector, bytes))
            return IoError;
        for (ulong done = 0; done < bytes;)
        {
            int n = (int)Math.Min(BufferBytes, bytes - done);
            if (!chain.TryRead(HeaderBytes + done, new Span<byte>(_buffers[queue], n)))
                return null;
            if (_file.Write((long)(sector * SectorBytes + done), _buffers[queue], n) != 0)
                return IoError;
            done += (uint)n;
        }
        return Ok;
    }

    private byte? Identify(DescriptorChain chain, out ulong written)
    {
        int n = (int)Math.Min(IdBytes, chain.WritableBytes - 1);
        written = (uint)n;
        return chain.TryWrite(0, _id.AsSpan(0, n)) ? Ok : null;
    }

    /// <summary>Discards, or writes zeros to, a list of ranges. Nothing is done when one of them is wrong.</summary>
    private byte? Ranges(DescriptorChain chain, bool zeroes)
    {
        ulong bytes = chain.ReadableBytes - HeaderBytes;
        if (bytes == 0 || bytes % SegmentBytes != 0 || bytes / SegmentBytes > MaxRanges)
            return IoError;
        Span<byte> list = stackalloc byte[(int)(MaxRanges * SegmentBytes)];
        list = list[..(int)bytes];
        if (!chain.TryRead(HeaderBytes, list))
            return null;
        for (int at = 0; at < list.Length; at += SegmentBytes)
        {
            (ulong sector, uint count, uint flags) = Range(list[at..]);
            if (flags > (zeroes ? 1u : 0))
                return Unsupported;
            if (count > MaxRangeSectors || !IsInside(sector, (ulong)count * SectorBytes))
                return IoError;
        }
        for (int at = 0; at < list.Length; at += SegmentBytes)
        {
            (ulong sector, uint count, uint flags) = Range(list[at..]);
            if (count == 0)
                continue;
            (long offset, long length) = ((long)sector * SectorBytes, (long)count * SectorBytes);
            int r = zeroes ? _file.WriteZeroes(offset, length, flags != 0) : _file.Discard(offset, length);
            if (r != 0)
                return r == -EOPNOTSUPP ? Unsupported : IoError;
        }
        return Ok;
    }

    private static (ulong Sector, uint Count, uint Flags) Range(ReadOnlySpan<byte> at) =>
        (BinaryPrimitives.ReadUInt64LittleEndian(at), BinaryPrimitives.ReadUInt32LittleEndian(at[8..]), BinaryPrimitives.ReadUInt32LittleEndian(at[12..]));

    protected override unsafe void Dispose(bool disposing)
    {
        foreach (byte* buffer in _buffers)
            NativeMemory.AlignedFree(buffer);
        _file.Dispose();
    }
}

using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Virtio;

/// <summary>A piece of guest memory that a request names. It does not wrap; whether there is memory shows when it is used.</summary>
public readonly record struct GuestRange(ulong Gpa, uint Length);

/// <summary>
/// One request of a driver: ranges that the device reads, then ranges that it writes. One object serves any number of requests, one after the other, and
/// allocates nothing for them.
/// </summary>
public sealed class DescriptorChain
{
    /// <summary>Bytes of a chain. SPEC: virtio 1.2, "The Virtqueue Descriptor Table": a chain has at most 2^32 bytes.</summary>
    private const ulong MaxBytes = 1UL << 32;

    private readonly GuestMemory _memory;
    private readonly GuestRange[] _ranges;
    private int _count, _readable, _descriptors;

    internal DescriptorChain(GuestMemory memory, int maxDescriptors) => (_memory, _ranges) = (memory, new GuestRange[maxDescriptors]);

    /// <summary>What the device may read, in order.</summary>
    public ReadOnlySpan<GuestRange> Readable => _ranges.AsSpan(0, _readable);

    /// <summary>What the device may write, in order.</summary>
    public ReadOnlySpan<GuestRange> Writable => _ranges.AsSpan(_readable, _count - _readable);

    public ulong ReadableBytes { get; private set; }
    public ulong WritableBytes { get; private set; }

    /// <summary>The driver's name for the chain: its head, or the id of its buffer.</summary>
    internal ushort Id { get; set; }

    /// <summary>Slots of a packed ring that it takes.</summary>
    internal ushort Slots { get; set; }

    internal void Clear()
    {
        (_count, _readable, _descriptors) = (0, 0, 0);
        (ReadableBytes, WritableBytes, Id, Slots) = (0, 0, 0, 0);
    }

    /// <summary>Adds a descriptor. Null, or why a driver must not make such a chain.</summary>
    /// <param name="limit">Descriptors that the chain may have.</param>
    internal string? Add(ulong gpa, uint length, bool writable, int limit)
    {
        if (++_descriptors > limit || _count == _ranges.Length)
            return "a chain is longer than its queue, or a loop";
        if (length > ulong.MaxValue - gpa)
            return "a buffer wraps around the end of the address space";
        if (!writable && WritableBytes != 0)
            return "a buffer to read follows one to write";
        if (ReadableBytes + WritableBytes + length > MaxBytes)
            return "a chain has more than 4 GiB";
        if (length == 0)
            return null;
        _ranges[_count++] = new GuestRange(gpa, length);
        if (writable)
        {
            WritableBytes += length;
            return null;
        }
        ReadableBytes += length;
        _readable = _count;
        return null;
    }

    /// <summary>Copies bytes of the readable part out. False: it is shorter, or some of it is no memory.</summary>
    /// <param name="offset">First byte, counted from the begin of the part.</param>
    /// <param name="data">Where they go.</param>
    public bool TryRead(ulong offset, Span<byte> data)
    {
        for (ReadOnlySpan<GuestRange> part = Readable; !data.IsEmpty;)
        {
            int n = Next(ref part, ref offset, data.Length, out ulong gpa);
            if (n == 0 || !_memory.Read(gpa, data[..n]))
                return false;
            data = data[n..];
        }
        return true;
    }

    /// <summary>Copies into the writable part. False: it is shorter, or some of it is no memory that the guest could write itself.</summary>
    /// <param name="offset">First byte, counted from the begin of the part.</param>
    /// <param name="data">What is written.</param>
    public bool TryWrite(ulong offset, ReadOnlySpan<byte> data)
    {
        for (ReadOnlySpan<GuestRange> part = Writable; !data.IsEmpty;)
        {
            int n = Next(ref part, ref offset, data.Length, out ulong gpa);
            if (n == 0 || !_memory.Write(gpa, data[..n]))
                return false;
            data = data[n..];
        }
        return true;
    }

    /// <summary>Has a file fill a piece of the writable part without a copy between. Null: it cannot be so, and nothing is said of what the piece has
    /// now.</summary>
    /// <param name="offset">The piece's first byte, counted from the begin of the part.</param>
    /// <param name="bytes">Its length.</param>
    /// <param name="file">The file.</param>
    /// <param name="at">Where in the file.</param>
    /// <returns>Bytes that were read, fewer than the piece has at the end of the file only; or -errno.</returns>
    internal long? Fill(ulong offset, int bytes, DiskFile file, long at)
    {
        const int MaxPieces = 512, EFAULT = 14, EINVAL = 22;
        Span<HostPiece> pieces = stackalloc HostPiece[MaxPieces];
        int count = 0;
        // What is lent stays what it is until the system call is over.
        using var _ = Rcu.Read();
        ulong from = offset;
        ReadOnlySpan<GuestRange> part = Writable;
        for (int left = bytes; left != 0;)
        {
            int n = Next(ref part, ref from, left, out ulong gpa);
            if (n == 0 || !_memory.TryLend(gpa, (ulong)n, pieces, ref count))
                return null;
            left -= n;
        }
        if (!file.Takes(at, pieces[..count]))
            return null;
        long got = file.Read(at, pieces[..count]);
        from = offset;
        part = Writable;
        for (int left = bytes; left != 0;)
        {
            int n = Next(ref part, ref from, left, out ulong gpa);
            _memory.WrittenByHost(gpa, (ulong)n);
            left -= n;
        }
        return got is -EFAULT or -EINVAL ? null : got;
    }

    /// <summary>Takes the next piece of a part, from a byte of it on, which is the first of what is left afterwards. 0: the part ends before.</summary>
    private static int Next(ref ReadOnlySpan<GuestRange> part, ref ulong offset, int most, out ulong gpa)
    {
        while (!part.IsEmpty && offset >= part[0].Length)
        {
            offset -= part[0].Length;
            part = part[1..];
        }
        gpa = part.IsEmpty ? 0 : part[0].Gpa + offset;
        int n = part.IsEmpty ? 0 : (int)Math.Min(part[0].Length - offset, (ulong)most);
        offset += (ulong)n;
        return n;
    }
}

using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Virtio;

/// <summary>Where a network device's frames come from and go to. One thread sends, another receives.</summary>
public interface IPacketLink : IDisposable
{
    /// <summary>Bytes that <see cref="Send"/> wants before the frame.</summary>
    const int Headroom = 4;

    /// <summary>Longest frame.</summary>
    const int MaxFrame = 65535 + 18;

    /// <summary>
    /// Sends a frame that lies behind <see cref="Headroom"/> bytes, which may be overwritten; may wait for room. A frame that cannot be sent is lost.
    /// </summary>
    void Send(Span<byte> framed);

    /// <summary>Waits for a frame, which is good until the next call. Empty: the link has ended.</summary>
    ReadOnlySpan<byte> Receive();

    /// <summary>Whoever sends or receives returns soon.</summary>
    void Stop();
}

/// <summary>Frames on a stream: the length in four bytes, most significant first, and the frame. So speak passt, and QEMU's socket networks.</summary>
/// <param name="socket">Belongs to the link from now on.</param>
public sealed class StreamLink(StreamSocket socket) : IPacketLink
{
    private readonly byte[] _buffer = new byte[2 * (IPacketLink.Headroom + IPacketLink.MaxFrame)];
    private int _begin, _end;

    public void Send(Span<byte> framed)
    {
        BinaryPrimitives.WriteInt32BigEndian(framed, framed.Length - IPacketLink.Headroom);
        _ = socket.Send(framed);
    }

    public ReadOnlySpan<byte> Receive()
    {
        while (true)
        {
            int have = _end - _begin;
            if (have >= IPacketLink.Headroom)
            {
                uint length = BinaryPrimitives.ReadUInt32BigEndian(_buffer.AsSpan(_begin));
                // Nothing that follows could be understood.
                if (length is 0 or > IPacketLink.MaxFrame)
                    return default;
                if (have >= IPacketLink.Headroom + (int)length)
                {
                    ReadOnlySpan<byte> frame = _buffer.AsSpan(_begin + IPacketLink.Headroom, (int)length);
                    _begin += IPacketLink.Headroom + (int)length;
                    return frame;
                }
            }
            if (_begin != 0)
            {
                _buffer.AsSpan(_begin, have).CopyTo(_buffer);
                (_begin, _end) = (0, have);
            }
            int n = socket.Receive(_buffer.AsSpan(_end));
            if (n <= 0)
                return default;
            _end += n;
        }
    }

    public void Stop() => socket.Shutdown();

    public void Dispose() => socket.Dispose();
}

/// <summary>Frames of a TAP interface.</summary>
/// <param name="tap">Belongs to the link from now on.</param>
public sealed class TapLink(TapDevice tap) : IPacketLink
{
    private readonly byte[] _buffer = new byte[IPacketLink.MaxFrame];

    public void Send(Span<byte> framed) => tap.Send(framed[IPacketLink.Headroom..]);

    public ReadOnlySpan<byte> Receive() => tap.Receive(_buffer) is > 0 and var n ? _buffer.AsSpan(0, n) : default;

    public void Stop() => tap.Shutdown();

    public void Dispose() => tap.Dispose();
}

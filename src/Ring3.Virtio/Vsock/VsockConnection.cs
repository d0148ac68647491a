using System.Net.Sockets;
using System.Text;

namespace Ring3.Virtio;

/// <summary>One stream between a port of the guest and a local socket of the host. Belongs to the device's thread.</summary>
internal sealed class VsockConnection(Socket socket) : IDisposable
{
    /// <summary>Bytes that the guest may send before the host's program has taken them.</summary>
    public const int BufferBytes = 256 << 10;
    private const int LongestGreeting = 32;

    private readonly byte[] _greeting = new byte[LongestGreeting];
    private byte[] _buffer = [];
    private int _begin, _count, _greetingBytes;
    private uint _sent, _received, _forwarded, _told, _peerBuffer, _peerForwarded;

    /// <summary>The program has not said yet which port it wants; the guest has not answered yet.</summary>
    public bool IsGreeting, IsAsking;

    /// <summary>The program has ended its stream and the guest was told; the guest has ended its own; the guest takes nothing any more.</summary>
    public bool HostEnded, GuestEnded, GuestDeaf;

    private bool _shutDown;

    public uint HostPort { get; init; }
    public uint GuestPort { get; set; }

    public Socket Socket { get; } = socket;

    public int Descriptor { get; } = (int)socket.SafeHandle.DangerousGetHandle();

    /// <summary>Where it is in the set that is waited for.</summary>
    public int Place { get; set; }

    public bool HasOutput => _count != 0;

    /// <summary>Bytes that the guest has room for.</summary>
    public int Credit
    {
        get
        {
            uint under = _sent - _peerForwarded;
            return under >= _peerBuffer ? 0 : (int)Math.Min(_peerBuffer - under, int.MaxValue);
        }
    }

    /// <summary>The guest should hear soon how much room there is again.</summary>
    public bool ShouldTellRoom => _forwarded - _told >= BufferBytes / 4;

    /// <summary>What a packet says about the guest's room.</summary>
    public void Hear(in VsockHeader header) => (_peerBuffer, _peerForwarded) = (header.BufferBytes, header.ForwardedBytes);

    /// <summary>Says in a packet how much room there is.</summary>
    public void Fill(ref VsockHeader header)
    {
        _told = _forwarded;
        (header.BufferBytes, header.ForwardedBytes) = (BufferBytes, _forwarded);
    }

    /// <summary>Bytes have gone to the guest.</summary>
    public void Sent(int bytes) => _sent += (uint)bytes;

    /// <summary>Room for so many bytes of the guest, at most two pieces; false: it sends more than it may.</summary>
    public bool TryReserve(uint bytes, out Span<byte> first, out Span<byte> second)
    {
        first = second = default;
        if (bytes > BufferBytes - (uint)_count)
            return false;
        if (_buffer.Length == 0)
            _buffer = new byte[BufferBytes];
        int at = (_begin + _count) % BufferBytes, n = (int)Math.Min(bytes, (uint)(BufferBytes - at));
        first = _buffer.AsSpan(at, n);
        second = _buffer.AsSpan(0, (int)bytes - n);
        _count += (int)bytes;
        _received += bytes;
        return true;
    }

    /// <summary>Gives the program what it takes now. False: it takes nothing any more.</summary>
    public bool Flush()
    {
        while (_count != 0)
        {
            int n = Socket.Send(_buffer.AsSpan(_begin, Math.Min(_count, BufferBytes - _begin)), SocketFlags.None, out SocketError error);
            if (error == SocketError.WouldBlock)
                return true;
            if (error != SocketError.Success)
                return false;
            _begin = (_begin + n) % BufferBytes;
            _count -= n;
            _forwarded += (uint)n;
        }
        if (GuestEnded && !_shutDown)
        {
            _shutDown = true;
            try { Socket.Shutdown(SocketShutdown.Send); }
            catch (SocketException) { return false; }
        }
        return true;
    }

    /// <summary>Reads "CONNECT PORT": the port; null while it is not there yet, and <paramref name="wrong"/> when it is something else.</summary>
    public uint? ReadGreeting(out bool wrong)
    {
        const string Word = "CONNECT ";
        wrong = false;
        while (true)
        {
            // A byte at a time: what follows is the guest's.
            int n = Socket.Receive(_greeting.AsSpan(_greetingBytes, 1), SocketFlags.None, out SocketError error);
            if (error == SocketError.WouldBlock)
                return null;
            wrong = error != SocketError.Success || n == 0;
            if (wrong)
                return null;
            if (_greeting[_greetingBytes] == (byte)'\n')
                break;
            wrong = ++_greetingBytes == LongestGreeting;
            if (wrong)
                return null;
        }
        string line = Encoding.Latin1.GetString(_greeting, 0, _greetingBytes);
        wrong = !line.StartsWith(Word, StringComparison.Ordinal)
            | !uint.TryParse(line.AsSpan(Math.Min(Word.Length, line.Length)), System.Globalization.NumberStyles.None, null, out uint port);
        return wrong ? null : port;
    }

    /// <summary>Tells the program that the guest has answered. False: it is not there any more.</summary>
    public bool Greet()
    {
        _ = Socket.Send(Encoding.ASCII.GetBytes($"OK {HostPort}\n"), SocketFlags.None, out SocketError error);
        return error == SocketError.Success;
    }

    public void Dispose() => Socket.Dispose();
}

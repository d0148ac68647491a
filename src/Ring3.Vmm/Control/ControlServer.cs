using System.Buffers;
using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text.Json;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Why a command is not done: one line for whoever asked.</summary>
public sealed class ControlException(string message) : Exception(message);

/// <summary>Does a command; what it has to say are members of a JSON object.</summary>
/// <exception cref="ControlException">It is not done.</exception>
public delegate void ControlHandler(IReadOnlyList<string> arguments, Utf8JsonWriter answer);

/// <summary>
/// A machine's end of <c>ring3 ctl</c>, on a thread of its own. A client sends one line, a JSON array of words, and gets one line, an object that has "ok",
/// and "error" if that is false; then the connection ends.
/// </summary>
/// <remarks>
/// Only this user and root are heard. Nobody is waited for: who sends too much, nothing for a while, or does not take his answer, which fits into a socket,
/// loses the connection; of more clients than there are places the others wait in the system's queue.
/// </remarks>
public sealed class ControlServer : IDisposable
{
    private const int MaxClients = 16, MaxRequestBytes = 4096, MaxAnswerBytes = 128 << 10, MaxWords = 64;
    private const long PatienceNs = 5_000_000_000;

    private sealed class Client(Socket socket)
    {
        public readonly Socket Socket = socket;
        public readonly long EndNs = HostClock.MonotonicNs() + PatienceNs;
        public readonly byte[] Request = new byte[MaxRequestBytes];
        public int Bytes, Place;
    }

    private readonly Socket _listener;
    private readonly IReadOnlyDictionary<string, ControlHandler> _commands;
    private readonly List<Client> _clients = [];
    private readonly PollSet _poll = new();
    private readonly int _wake = EventFd.Create();
    private readonly Thread _thread;
    private volatile bool _stop;

    /// <param name="listener">Belongs to the server from now on.</param>
    /// <param name="commands">What can be asked for.</param>
    public ControlServer(Socket listener, IReadOnlyDictionary<string, ControlHandler> commands)
    {
        (_listener, _commands) = (listener, commands);
        listener.Blocking = false;
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-control" };
        _thread.Start();
    }

    private void Run()
    {
        while (!_stop)
            Turn();
    }

    private void Turn()
    {
        const int ForEver = -1, LookMs = 500;
        _poll.Clear();
        int wake = _poll.Add(_wake, read: true, write: false);
        int listener = _clients.Count < MaxClients ? _poll.Add(Descriptor(_listener), read: true, write: false) : -1;
        foreach (Client c in _clients)
            c.Place = _poll.Add(Descriptor(c.Socket), read: true, write: false);
        _ = _poll.Wait(_clients.Count == 0 ? ForEver : LookMs);
        if (_poll.IsReadable(wake))
            return;
        long now = HostClock.MonotonicNs();
        for (int i = _clients.Count - 1; i >= 0; i--)
        {
            Client c = _clients[i];
            if (_poll.IsReadable(c.Place) ? Hear(c) : now < c.EndNs)
                continue;
            c.Socket.Dispose();
            _clients.RemoveAt(i);
        }
        if (listener >= 0 && _poll.IsReadable(listener))
            Accept();
    }

    private static int Descriptor(Socket socket) => (int)socket.SafeHandle.DangerousGetHandle();

    private void Accept()
    {
        Socket socket;
        try { socket = _listener.Accept(); }
        catch (SocketException) { return; }
        if (IsFriend(socket))
        {
            socket.Blocking = false;
            _clients.Add(new Client(socket));
        }
        else
            socket.Dispose();
    }

    /// <summary>The directory is this user's alone; a descriptor could have been passed on.</summary>
    private static bool IsFriend(Socket socket)
    {
        // struct ucred: process, user, group.
        const int SolSocket = 1, PeerCredentials = 17;
        Span<byte> credentials = stackalloc byte[12];
        try { _ = socket.GetRawSocketOption(SolSocket, PeerCredentials, credentials); }
        catch (SocketException) { return false; }
        uint user = BinaryPrimitives.ReadUInt32LittleEndian(credentials[4..]);
        return user == 0 || user == Privileges.Identity.User;
    }

    /// <summary>Takes what a client has sent. False: the connection ends.</summary>
    private bool Hear(Client c)
    {
        int n = c.Socket.Receive(c.Request.AsSpan(c.Bytes), SocketFlags.None, out SocketError error);
        if (error == SocketError.WouldBlock)
            return true;
        if (error != SocketError.Success || n == 0)
            return false;
        int end = c.Request.AsSpan(c.Bytes, n).IndexOf((byte)'\n');
        c.Bytes += n;
        if (end >= 0)
            Send(c, Answer(c.Request.AsMemory(0, c.Bytes - n + end)));
        else if (c.Bytes == MaxRequestBytes)
            Send(c, Refusal($"a request has at most {MaxRequestBytes} bytes"));
        else
            return true;
        return false;
    }

    private static void Send(Client c, ReadOnlySpan<byte> answer) => _ = c.Socket.Send(answer, SocketFlags.None, out _);

    /// <summary>The answer to a request.</summary>
    internal ReadOnlySpan<byte> Answer(ReadOnlyMemory<byte> request)
    {
        try
        {
            List<string> words = Words(request);
            if (!_commands.TryGetValue(words[0], out ControlHandler? command))
                return Refusal($"this machine knows {string.Join(", ", _commands.Keys.Order(StringComparer.Ordinal))}, not '{words[0]}'");
            ReadOnlySpan<byte> answer = Line(writer =>
            {
                writer.WriteBoolean("ok", true);
                command(words[1..], writer);
            });
            return answer.Length <= MaxAnswerBytes ? answer : Refusal("the answer is too long");
        }
        catch (ControlException e) { return Refusal(e.Message); }
        catch (JsonException) { return Refusal("a request is a line with a JSON array of words"); }
    }

    private static List<string> Words(ReadOnlyMemory<byte> request)
    {
        using JsonDocument document = JsonDocument.Parse(request);
        if (document.RootElement is not { ValueKind: JsonValueKind.Array } array || array.GetArrayLength() is 0 or > MaxWords
            || array.EnumerateArray().Any(w => w.ValueKind != JsonValueKind.String))
        {
            throw new JsonException();
        }
        try { return [.. array.EnumerateArray().Select(w => w.GetString()!)]; }
        catch (InvalidOperationException) { throw new JsonException(); } // half of a surrogate pair
    }

    private static ReadOnlySpan<byte> Refusal(string why) => Line(writer =>
    {
        writer.WriteBoolean("ok", false);
        writer.WriteString("error", why);
    });

    private static ReadOnlySpan<byte> Line(Action<Utf8JsonWriter> members)
    {
        var text = new ArrayBufferWriter<byte>();
        using (var writer = new Utf8JsonWriter(text))
        {
            writer.WriteStartObject();
            members(writer);
            writer.WriteEndObject();
        }
        text.Write("\n"u8);
        return text.WrittenSpan;
    }

    public void Dispose()
    {
        _stop = true;
        _ = EventFd.Signal(_wake);
        _thread.Join();
        foreach (Client c in _clients)
            c.Socket.Dispose();
        // Removes its name; a confined process may not, and the next one does.
        _listener.Dispose();
        EventFd.Close(_wake);
    }
}

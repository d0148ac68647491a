using System.Buffers;
using System.Buffers.Binary;
using System.Net.Sockets;
using System.Text.Json;
using Microsoft.Win32.SafeHandles;
using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>
/// A machine's end of <c>ring3 ctl</c>, on a thread of its own. A client sends one line, a JSON array of words, and gets one line, an object that has "ok",
/// and "error" if that is false; then the connection ends. Descriptors that come with the line belong to the command.
/// </summary>
/// <remarks>
/// Only this user and root are heard. Nobody is waited for: who sends too much, nothing for a while, or does not take his answer, which fits into a socket,
/// loses the connection; of more clients than there are places the others wait in the system's queue.
/// </remarks>
public sealed class ControlServer : IDisposable
{
    private const int MaxClients = 16, MaxRequestBytes = 4096, MaxAnswerBytes = 128 << 10, MaxWords = 64, MaxFiles = 4;
    private const long PatienceNs = 5_000_000_000;

    private sealed class Client(Socket socket)
    {
        public readonly Socket Socket = socket;
        public readonly long EndNs = HostClock.MonotonicNs() + PatienceNs;
        public readonly byte[] Request = new byte[MaxRequestBytes];
        public readonly List<SafeFileHandle> Files = [];
        public int Bytes, Place;
        /// <summary>Belongs to the thread that does what it has asked for.</summary>
        public bool IsTaken;

        public void Close()
        {
            Socket.Dispose();
            foreach (SafeFileHandle file in Files)
                file.Dispose();
        }
    }

    private readonly Socket _listener;
    private readonly IReadOnlyDictionary<string, ControlCommand> _commands;
    private readonly List<Client> _clients = [];
    private readonly PollSet _poll = new();
    private readonly int _wake = EventFd.Create();
    private readonly Thread _thread;
    private volatile bool _stop;
    /// <summary>What takes time and is under way. Belongs to the server's thread, and <see cref="Dispose"/> behind it.</summary>
    private Thread? _busy;
    private volatile string? _busyWith;

    /// <param name="listener">Belongs to the server from now on.</param>
    /// <param name="commands">What can be asked for.</param>
    public ControlServer(Socket listener, IReadOnlyDictionary<string, ControlCommand> commands)
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
            _clients.RemoveAt(i);
            if (!c.IsTaken)
                c.Close();
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

    /// <summary>Takes what a client has sent. False: it is heard no more.</summary>
    private bool Hear(Client c)
    {
        const int WouldBlock = -11;
        Span<int> descriptors = stackalloc int[DescriptorMessage.MaxDescriptors];
        int n = DescriptorMessage.Receive(Descriptor(c.Socket), c.Request.AsSpan(c.Bytes), descriptors, out int count);
        foreach (int descriptor in descriptors[..count])
            c.Files.Add(new SafeFileHandle(descriptor, ownsHandle: true));
        if (n == WouldBlock)
            return true;
        if (n <= 0)
            return false;
        int end = c.Request.AsSpan(c.Bytes, n).IndexOf((byte)'\n');
        c.Bytes += n;
        if (c.Files.Count > MaxFiles)
            Send(c, Refusal($"a request has at most {MaxFiles} files"));
        else if (end >= 0)
            Do(c, c.Request.AsMemory(0, c.Bytes - n + end));
        else if (c.Bytes == MaxRequestBytes)
            Send(c, Refusal($"a request has at most {MaxRequestBytes} bytes"));
        else
            return true;
        return false;
    }

    private static void Send(Client c, ReadOnlySpan<byte> answer) => _ = c.Socket.Send(answer, SocketFlags.None, out _);

    private void Do(Client c, ReadOnlyMemory<byte> line)
    {
        List<string> words;
        try { words = Words(line); }
        catch (JsonException)
        {
            Send(c, Refusal("a request is a line with a JSON array of words"));
            return;
        }
        var request = new ControlRequest(words[1..], c.Files);
        if (!_commands.TryGetValue(words[0], out ControlCommand command))
            Send(c, Refusal($"this machine knows {string.Join(", ", _commands.Keys.Order(StringComparer.Ordinal))}, not '{words[0]}'"));
        else if (!command.TakesTime)
            Send(c, Answer(command, request));
        else if (_busyWith is { } other)
            Send(c, Refusal($"the machine is busy with {other}"));
        else
            Start(words[0], command, request, c);
    }

    private void Start(string name, ControlCommand command, ControlRequest request, Client c)
    {
        // The one before has sent its answer.
        _busy?.Join();
        (_busyWith, c.IsTaken) = (name, true);
        _busy = new Thread(() =>
        {
            byte[] answer = Answer(command, request).ToArray();
            // Who has the answer can ask for the next.
            _busyWith = null;
            Send(c, answer);
            c.Close();
        }) { IsBackground = true, Name = "ring3-command" };
        _busy.Start();
    }

    private static ReadOnlySpan<byte> Answer(ControlCommand command, ControlRequest request)
    {
        try
        {
            ReadOnlySpan<byte> answer = Line(writer =>
            {
                writer.WriteBoolean("ok", true);
                command.Handler(request, writer);
            });
            return answer.Length <= MaxAnswerBytes ? answer : Refusal("the answer is too long");
        }
        catch (Exception e) when (e is ControlException or BootException) { return Refusal(e.Message); }
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
            c.Close();
        _busy?.Join();
        // Removes its name; a confined process may not, and the next one does.
        _listener.Dispose();
        EventFd.Close(_wake);
    }
}

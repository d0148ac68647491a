using System.Buffers.Binary;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// Streams between ports of the guest and local sockets of the host. A program that connects to the device's socket and says "CONNECT PORT" is connected to
/// that port of the guest, and hears "OK" and a number of its own; a guest that connects to a port of the host (CID 2) is connected to the socket of the
/// same name with "_PORT" behind it. SPEC: virtio 1.2, "Socket Device"; the names are Firecracker's.
/// </summary>
/// <remarks>One thread owns the connections, serves what the guest sends, and waits for sockets and doorbells at once. Buffers are bounded by credit, packets
/// that wait for the guest to listen by <see cref="MaxPending"/>, and connections by <see cref="MaxConnections"/>.</remarks>
public sealed class VsockDevice : VirtioDevice
{
    public const int DeviceType = 19;
    public const ulong HostCid = 2;
    internal const int MaxConnections = 256, MaxPending = 512;

    private const int Receive = 0, Transmit = 1, Event = 2;
    /// <summary>SPEC: virtio 1.2, "Device Events": connections are gone, and the guest's address may be another.</summary>
    private const uint TransportReset = 0;
    private const ushort QueueSize = 256;
    private const int PacketBytes = 64 << 10, PacketsAtOnce = 64;
    private const uint FirstHostPort = 1u << 30;

    private readonly Func<uint, Socket?> _connect;
    private readonly Socket _listener;
    private readonly byte[] _config = new byte[8], _data = new byte[PacketBytes];
    private readonly ulong _guestCid;
    private readonly Dictionary<(uint Host, uint Guest), VsockConnection> _connections = [];
    private readonly List<VsockConnection> _greeting = [], _ended = [];
    private readonly Queue<VsockHeader> _pending = new();
    private readonly PollSet _poll = new();
    private readonly int _wake = EventFd.Create();
    private Thread? _thread;
    private DescriptorChain? _hand;
    private int _generation;
    private uint _nextPort = FirstHostPort;
    private bool _holds, _pause;
    private DescriptorChain? _event;
    /// <summary>A clone's guest has not heard yet that its connections are another machine's.</summary>
    private volatile bool _resets;
    private volatile bool _stop;

    /// <param name="memory">The guest's.</param>
    /// <param name="guestCid">The guest's address; at least 3.</param>
    /// <param name="connect">Connects to the program that listens for a port of the host; null: there is none.</param>
    /// <param name="listener">It, listening; belongs to the device from now on.</param>
    public VsockDevice(GuestMemory memory, ulong guestCid, Func<uint, Socket?> connect, Socket listener)
        : base(memory, DeviceType, "vsock", [QueueSize, QueueSize, QueueSize])
    {
        (_guestCid, _connect, _listener) = (guestCid, connect, listener);
        _listener.Blocking = false;
        BinaryPrimitives.WriteUInt64LittleEndian(_config, guestCid);
        foreach (VirtQueue queue in Queues)
            queue.Rung = () => EventFd.Signal(_wake);
    }

    public override ulong Features => 0;

    public override ReadOnlySpan<byte> Config => _config;

    protected internal override bool HasWorker(int queue) => false;

    protected internal override void Started(ulong features)
    {
        if (_thread is not null || Transport is not { HasThreads: true })
            return;
        _thread = new Thread(Run) { IsBackground = true, Name = "ring3-vsock" };
        _thread.Start();
    }

    /// <summary>The buffer in hand is the guest's again.</summary>
    protected internal override void Held()
    {
        VirtQueue queue = Queues[Receive];
        using (queue.Gate.Enter())
        {
            if (_holds && _generation == queue.Generation)
                queue.Untake(_hand!);
            _holds = false;
        }
    }

    /// <summary>Nothing: programs of the host are connected to one machine. A clone's guest is told that its connections have ended.</summary>
    protected internal override void Transfer(StateTransfer state)
    {
        if (state.IsLoading)
            (_resets, _generation) = (true, Queues[Receive].Generation);
    }

    private void Run()
    {
        const int ForEver = -1;
        try
        {
            while (!_stop)
                Turn(ForEver);
        }
        catch (Exception e)
        {
            Transport?.Fail(e);
        }
    }

    /// <summary>Does what there is to do, and waits until there is more, or for so long.</summary>
    internal void Turn(int timeoutMs)
    {
        Step();
        Wait(timeoutMs);
    }

    private void Step()
    {
        _ = EventFd.Drain(_wake);
        if (_generation != Queues[Receive].Generation)
            Forget();
        _pause = _pending.Count >= MaxPending;
        bool more = _pause || Transport is { } transport && transport.TryServe(Transmit, ref _pause);
        foreach (VsockConnection c in _connections.Values)
            Pump(c);
        End();
        if (_resets && TryTellReset())
            _resets = false;
        while (_pending.TryPeek(out VsockHeader header) && TryGive(ref header, default))
            _ = _pending.Dequeue();
        if (more && _pending.Count < MaxPending && !_stop)
            _ = EventFd.Signal(_wake);
    }

    /// <summary>A driver that has reset the device knows no connection.</summary>
    private void Forget()
    {
        _generation = Queues[Receive].Generation;
        (_holds, _resets) = (false, false);
        _pending.Clear();
        _ended.AddRange(_connections.Values);
        foreach (VsockConnection c in _ended)
            Remove(c);
        _ended.Clear();
    }

    private void Remove(VsockConnection c)
    {
        _ = _connections.Remove((c.HostPort, c.GuestPort));
        c.Dispose();
    }

    /// <summary>Removes those that have ended, and tells the guest.</summary>
    private void End()
    {
        foreach (VsockConnection c in _ended)
        {
            if (!_connections.ContainsKey((c.HostPort, c.GuestPort)))
                continue;
            Say(c, VsockOperation.Reset);
            Remove(c);
        }
        _ended.Clear();
    }

    /// <summary>Waits for the guest, and for the programs of the host that something can be done for.</summary>
    private void Wait(int timeoutMs)
    {
        // What is said about a connection comes before its bytes.
        if (_pending.Count != 0 && TryHold())
            return;
        bool room = _connections.Count + _greeting.Count < MaxConnections, listens = _pending.Count == 0 && TryHold();
        _poll.Clear();
        _ = _poll.Add(_wake, read: true, write: false);
        int listener = room ? _poll.Add((int)_listener.SafeHandle.DangerousGetHandle(), read: true, write: false) : -1;
        foreach (VsockConnection c in _greeting)
            c.Place = _poll.Add(c.Descriptor, read: true, write: false);
        foreach (VsockConnection c in _connections.Values)
        {
            (bool read, bool write) = (Reads(c) && listens, c.HasOutput);
            c.Place = read || write ? _poll.Add(c.Descriptor, read, write) : -1;
        }
        if (_stop || _poll.Wait(timeoutMs) != 0)
            return;
        if (listener >= 0 && _poll.IsReadable(listener))
            Accept();
        for (int i = _greeting.Count - 1; i >= 0; i--)
        {
            if (_greeting[i].Place > 0 && _poll.IsReadable(_greeting[i].Place))
                Greet(i);
        }
        foreach (VsockConnection c in _connections.Values)
        {
            if (c.Place <= 0 || !_poll.IsReadable(c.Place))
                continue;
            for (int i = 0; i < PacketsAtOnce && Reads(c) && TryFetch(c); i++)
            {
            }
        }
    }

    /// <summary>What its program sends can go to the guest.</summary>
    private static bool Reads(VsockConnection c) => !c.IsAsking && !c.HostEnded && !c.GuestDeaf && c.Credit != 0;

    private void Accept()
    {
        Socket socket;
        try { socket = _listener.Accept(); }
        catch (SocketException) { return; }
        socket.Blocking = false;
        while (_connections.Keys.Any(k => k.Host == _nextPort))
            NextPort();
        _greeting.Add(new VsockConnection(socket) { IsGreeting = true, HostPort = _nextPort, Place = -1 });
        NextPort();
    }

    private void NextPort() => _nextPort = _nextPort == uint.MaxValue ? FirstHostPort : _nextPort + 1;

    private void Greet(int index)
    {
        VsockConnection c = _greeting[index];
        uint? port = c.ReadGreeting(out bool wrong);
        if (port is null && !wrong)
            return;
        _greeting.RemoveAt(index);
        // Nobody listens without a driver.
        if (port is not { } guest || !Queues[Receive].IsRunning)
        {
            c.Dispose();
            return;
        }
        (c.IsGreeting, c.IsAsking, c.GuestPort, c.Place) = (false, true, guest, -1);
        if (_connections.TryAdd((c.HostPort, guest), c))
            Say(c, VsockOperation.Request);
        else
            c.Dispose();
    }

    /// <summary>Gives a program what the guest has sent, and looks whether a connection has ended.</summary>
    private void Pump(VsockConnection c)
    {
        if (!c.Flush() || (c.GuestEnded && !c.HasOutput && (c.HostEnded || c.GuestDeaf)))
            _ended.Add(c);
        else if (c.ShouldTellRoom && _pending.Count < MaxPending)
            Say(c, VsockOperation.CreditUpdate);
    }

    /// <summary>Tells the guest that its connections are gone; later, when it has no room for that.</summary>
    private bool TryTellReset()
    {
        VirtQueue queue = Queues[Event];
        using (queue.Gate.Enter())
        {
            _event ??= queue.NewChain();
            while (queue.IsRunning && Transport is { IsStopped: false } transport)
            {
                bool taken = queue.TryPop(_event);
                uint id = TransportReset;
                if (taken && !_event.TryWrite(0, MemoryMarshal.AsBytes(new ReadOnlySpan<uint>(in id))))
                    queue.Break("a buffer for events has no room for one, or is no memory");
                else if (taken && queue.Push(_event, sizeof(uint)))
                    transport.Interrupt(queue);
                else if (!taken && queue.Fault is null && queue.TryRest() && queue.Fault is null)
                    return false;
                if (queue.Fault is { } why)
                    transport.NeedReset(why);
                if (taken)
                    return true;
            }
            return false;
        }
    }

    /// <summary>Gives the guest what a program has sent, a packet. False: there is nothing, or no room. What was taken from the program is given: the gate is
    /// held meanwhile.</summary>
    private bool TryFetch(VsockConnection c)
    {
        using RankedLock.Scope gate = Queues[Receive].Gate.Enter();
        if (!TryHoldGated())
            return false;
        int room = (int)Math.Min(Math.Min((ulong)PacketBytes, (ulong)c.Credit), _hand!.WritableBytes - VsockHeader.Bytes);
        int n = c.Socket.Receive(_data.AsSpan(0, room), SocketFlags.None, out SocketError error);
        if (error == SocketError.WouldBlock)
            return false;
        if (error != SocketError.Success)
        {
            c.HostEnded = true;
            _ended.Add(c);
            return false;
        }
        if (n == 0)
        {
            c.HostEnded = true;
            Say(c, VsockOperation.Shutdown, VsockHeader.NoSend);
            return false;
        }
        VsockHeader header = Header(c, VsockOperation.Data);
        header.Length = (uint)n;
        if (!TryGiveGated(ref header, _data.AsSpan(0, n)))
            return false;
        c.Sent(n);
        return true;
    }

    private VsockHeader Header(VsockConnection c, VsockOperation operation, uint flags = 0)
    {
        var header = new VsockHeader
        {
            SourceCid = HostCid, DestinationCid = _guestCid, SourcePort = c.HostPort, DestinationPort = c.GuestPort, Type = VsockHeader.Stream,
            Operation = operation, Flags = flags,
        };
        c.Fill(ref header);
        return header;
    }

    private void Say(VsockConnection c, VsockOperation operation, uint flags = 0) => _pending.Enqueue(Header(c, operation, flags));

    /// <summary>Has a buffer of the guest in hand. False: there is none, and the guest will ring.</summary>
    private bool TryHold()
    {
        using (Queues[Receive].Gate.Enter())
            return TryHoldGated();
    }

    private bool TryHoldGated()
    {
        VirtQueue queue = Queues[Receive];
        _hand ??= queue.NewChain();
        if (_holds && _generation == queue.Generation)
            return queue.IsRunning;
        _holds = false;
        while (queue.IsRunning && _generation == queue.Generation && Transport is { IsStopped: false } transport)
        {
            if (queue.TryPop(_hand))
            {
                _holds = _hand.WritableBytes > VsockHeader.Bytes;
                if (!_holds)
                    queue.Break("a buffer for packets has no room for one");
            }
            else if (queue.Fault is null && queue.TryRest() && queue.Fault is null)
                return false;
            if (queue.Fault is { } why)
                transport.NeedReset(why);
            if (_holds)
                return true;
        }
        return false;
    }

    /// <summary>Gives the guest a packet, which fits into the buffer in hand. False: there is none.</summary>
    private bool TryGive(ref VsockHeader header, ReadOnlySpan<byte> data)
    {
        using (Queues[Receive].Gate.Enter())
            return TryHoldGated() && TryGiveGated(ref header, data);
    }

    private bool TryGiveGated(ref VsockHeader header, ReadOnlySpan<byte> data)
    {
        VirtQueue queue = Queues[Receive];
        _holds = false;
        if (!_hand!.TryWrite(0, MemoryMarshal.AsBytes(new ReadOnlySpan<VsockHeader>(in header))) || !_hand.TryWrite(VsockHeader.Bytes, data))
        {
            queue.Break("a buffer for packets is no memory");
            Transport!.NeedReset(queue.Fault!);
            return false;
        }
        if (queue.Push(_hand, (uint)(VsockHeader.Bytes + data.Length)))
            Transport!.Interrupt(queue);
        return true;
    }

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        var header = default(VsockHeader);
        if (chain.ReadableBytes < VsockHeader.Bytes || !chain.TryRead(0, MemoryMarshal.AsBytes(new Span<VsockHeader>(ref header)))
            || header.Length > chain.ReadableBytes - VsockHeader.Bytes)
        {
            Queues[queue].Break("a packet is shorter than it says, or no memory");
            return 0;
        }
        if (header.SourceCid == _guestCid)
            Hear(queue, chain, header);
        _pause = _stop || _pending.Count >= MaxPending;
        return 0;
    }

    private void Hear(int queue, DescriptorChain chain, in VsockHeader header)
    {
        (uint Host, uint Guest) key = (header.DestinationPort, header.SourcePort);
        bool known = _connections.TryGetValue(key, out VsockConnection? c) && header.DestinationCid == HostCid && header.Type == VsockHeader.Stream;
        if (!known)
        {
            if (header.Operation == VsockOperation.Request && header.DestinationCid == HostCid && header.Type == VsockHeader.Stream && TryConnect(key, header))
                return;
            // Who resets what is not there is not answered: two would do so for ever.
            if (header.Operation != VsockOperation.Reset)
                Refuse(header);
            return;
        }
        c!.Hear(header);
        switch (header.Operation)
        {
            case VsockOperation.Response when c.IsAsking:
                c.IsAsking = false;
                if (!c.Greet())
                    _ended.Add(c);
                break;
            case VsockOperation.Data when !c.IsAsking && !c.GuestEnded && c.TryReserve(header.Length, out Span<byte> first, out Span<byte> second):
                if (!chain.TryRead(VsockHeader.Bytes, first) || !chain.TryRead(VsockHeader.Bytes + (ulong)first.Length, second))
                    Queues[queue].Break("a packet is no memory");
                break;
            case VsockOperation.Shutdown:
                c.GuestDeaf |= (header.Flags & VsockHeader.NoReceive) != 0;
                c.GuestEnded |= (header.Flags & VsockHeader.NoSend) != 0;
                break;
            case VsockOperation.CreditRequest:
                Say(c, VsockOperation.CreditUpdate);
                break;
            case VsockOperation.CreditUpdate:
                break;
            case VsockOperation.Reset:
                _ = c.Flush();
                Remove(c);
                break;
            default:
                // More than it has room for, or out of turn.
                _ended.Add(c);
                break;
        }
    }

    /// <summary>Connects to the local socket PATH_PORT; null: nobody listens there.</summary>
    public static Socket? Connect(string path, uint port)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified);
        try
        {
            // A program that does not accept is none that listens.
            socket.Blocking = false;
            socket.Connect(new UnixDomainSocketEndPoint($"{path}_{port}"));
            return socket;
        }
        catch (Exception e) when (e is SocketException or ArgumentException)
        {
            socket.Dispose();
            return null;
        }
    }

    /// <summary>Connects the guest to a program of the host. False: there is none that listens.</summary>
    private bool TryConnect((uint Host, uint Guest) key, in VsockHeader header)
    {
        if (_connections.Count + _greeting.Count >= MaxConnections)
            return false;
        if (_connect(key.Host) is not { } socket)
            return false;
        socket.Blocking = false;
        var c = new VsockConnection(socket) { HostPort = key.Host, GuestPort = key.Guest, Place = -1 };
        c.Hear(header);
        _connections.Add(key, c);
        Say(c, VsockOperation.Response);
        return true;
    }

    private void Refuse(in VsockHeader header) => _pending.Enqueue(new VsockHeader
    {
        SourceCid = header.DestinationCid, DestinationCid = _guestCid, SourcePort = header.DestinationPort, DestinationPort = header.SourcePort,
        Type = header.Type, Operation = VsockOperation.Reset,
    });

    protected internal override void Stopping()
    {
        _stop = true;
        _ = EventFd.Signal(_wake);
    }

    protected override void Dispose(bool disposing)
    {
        Stopping();
        _thread?.Join();
        foreach (VsockConnection c in (VsockConnection[])[.. _connections.Values, .. _greeting])
            c.Dispose();
        _listener.Dispose();
        EventFd.Close(_wake);
    }
}

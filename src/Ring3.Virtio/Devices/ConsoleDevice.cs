using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Text;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>Gets what the guest writes to a port, on a thread of the port, which may wait.</summary>
public delegate void PortOutput(ReadOnlySpan<byte> data);

/// <summary>Streams between guest and host: port 0 is a console (hvc0), the others are character devices (vportNp1 and on, by the device's number).
/// SPEC: virtio 1.2, "Console Device".</summary>
/// <remarks>What the guest writes is served by a thread for each port. What it reads is given to it by whoever has it, waiting for the guest to open the port
/// and for buffers. What the device says about its ports is given by a thread of its own.</remarks>
public sealed class ConsoleDevice : VirtioDevice
{
    public const int DeviceType = 3;
    /// <summary>More ports than one.</summary>
    public const ulong MultiPort = 1UL << 1;

    private const int FirstReceive = 0, FirstTransmit = 1, ControlReceive = 2, ControlTransmit = 3;
    private const ushort QueueSize = 64;
    private const int ConfigBytes = 8, PortCountAt = 4, MessageBytes = 8, EventAt = 4, ValueAt = 6, BufferBytes = 16 << 10, MaxPending = 1024;
    private const ushort DeviceReady = 0, DeviceAdd = 1, PortReady = 3, ConsolePort = 4, PortOpen = 6, PortName = 7;

    private readonly Port[] _ports;
    private readonly byte[] _config = new byte[ConfigBytes];
    private readonly ConcurrentQueue<byte[]> _pending = new();
    private readonly Thread _teller;
    private volatile bool _stop, _inputStopped;

    private sealed class Port(string name, PortOutput output)
    {
        public readonly string Name = name;
        public readonly PortOutput Output = output;
        public readonly byte[] Buffer = new byte[BufferBytes];
        /// <summary>The guest reads and writes it; there is somebody here who does.</summary>
        public volatile bool GuestOpen, HostOpen = true;
    }

    /// <param name="memory">The guest's.</param>
    /// <param name="ports">Name of each port, and where its output goes. The first is the console.</param>
    public ConsoleDevice(GuestMemory memory, IReadOnlyList<(string Name, PortOutput Output)> ports)
        : base(memory, DeviceType, "console", Sizes(ports.Count))
    {
        _ports = [.. ports.Select(p => new Port(p.Name, p.Output))];
        BinaryPrimitives.WriteInt32LittleEndian(_config.AsSpan(PortCountAt), ports.Count);
        _teller = new Thread(RunTeller) { IsBackground = true, Name = "ring3-console" };
        _teller.Start();
    }

    private static ushort[] Sizes(int ports)
    {
        var sizes = new ushort[2 * ports + 2];
        Array.Fill(sizes, QueueSize);
        return sizes;
    }

    public override ulong Features => MultiPort;

    public override ReadOnlySpan<byte> Config => _config;

    private static int ReceiveQueue(int port) => port == 0 ? FirstReceive : 2 * port + 2;

    private static int PortOf(int queue) => queue <= FirstTransmit ? 0 : (queue - 2) / 2;

    protected internal override bool HasWorker(int queue) => queue % 2 == FirstTransmit;

    protected internal override void Started(ulong features)
    {
        _pending.Clear();
        foreach (Port port in _ports)
            port.GuestOpen = false;
        // Who knows one port only does not say that it has opened it.
        _ports[0].GuestOpen = (features & MultiPort) == 0;
    }

    protected internal override void Transfer(StateTransfer state)
    {
        foreach (Port port in _ports)
        {
            port.GuestOpen = state.Keep(port.GuestOpen);
            port.HostOpen = state.Keep(port.HostOpen);
        }
        byte[][] pending = [.. _pending];
        int count = state.Keep(pending.Length);
        for (int i = 0; i < count; i++)
        {
            byte[] message = state.Block(state.IsLoading ? default : pending[i]);
            if (state.IsLoading)
                _pending.Enqueue(message);
        }
    }

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        if (queue == ControlTransmit)
        {
            Hear(queue, chain);
            return 0;
        }
        Port port = _ports[PortOf(queue)];
        for (ulong done = 0; done < chain.ReadableBytes && !_stop;)
        {
            int n = (int)Math.Min(BufferBytes, chain.ReadableBytes - done);
            if (!chain.TryRead(done, port.Buffer.AsSpan(0, n)))
            {
                Queues[queue].Break("what is written to a port is no memory");
                break;
            }
            port.Output(port.Buffer.AsSpan(0, n));
            done += (uint)n;
        }
        return 0;
    }

    /// <summary>The driver says something about a port.</summary>
    private void Hear(int queue, DescriptorChain chain)
    {
        Span<byte> message = stackalloc byte[MessageBytes];
        if (chain.ReadableBytes < MessageBytes || !chain.TryRead(0, message))
        {
            Queues[queue].Break("a control message is too short, or no memory");
            return;
        }
        uint id = BinaryPrimitives.ReadUInt32LittleEndian(message);
        ushort value = BinaryPrimitives.ReadUInt16LittleEndian(message[ValueAt..]);
        switch (BinaryPrimitives.ReadUInt16LittleEndian(message[EventAt..]))
        {
            case DeviceReady when value == 1:
                for (int i = 0; i < _ports.Length; i++)
                    Say(i, DeviceAdd, 1);
                break;
            case PortReady when value == 1 && id < (uint)_ports.Length:
                // A port that has its name is open here: a guest that reads sooner would read the end.
                Say((int)id, PortOpen, _ports[id].HostOpen ? (ushort)1 : (ushort)0);
                if (id == 0)
                    Say(0, ConsolePort, 1);
                else
                    Say((int)id, PortName, 1, Encoding.UTF8.GetBytes(_ports[id].Name));
                break;
            case PortOpen when id < (uint)_ports.Length:
                _ports[id].GuestOpen = value != 0;
                Queues[ReceiveQueue((int)id)].Doorbell.WakeAll();
                break;
        }
        if (_pending.Count > MaxPending)
            Queues[queue].Break("the driver asks for more than it listens to");
    }

    /// <summary>Says something about a port, as soon as the driver listens.</summary>
    private void Say(int port, ushort what, ushort value, params ReadOnlySpan<byte> more)
    {
        var message = new byte[MessageBytes + more.Length];
        BinaryPrimitives.WriteInt32LittleEndian(message, port);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(EventAt), what);
        BinaryPrimitives.WriteUInt16LittleEndian(message.AsSpan(ValueAt), value);
        more.CopyTo(message.AsSpan(MessageBytes));
        _pending.Enqueue(message);
        Queues[ControlReceive].Doorbell.WakeAll();
    }

    private void RunTeller()
    {
        try
        {
            VirtQueue queue = Queues[ControlReceive];
            while (!_stop)
            {
                // Before the look at what to do: who rings afterwards changes it.
                int ticket = queue.Doorbell.Ticket;
                if (!_pending.TryPeek(out byte[]? message) || Give(queue, message, whole: true) == 0)
                    queue.Doorbell.Wait(ticket);
                else
                    _ = _pending.TryDequeue(out _);
            }
        }
        catch (Exception e)
        {
            Transport?.Fail(e);
        }
    }

    /// <summary>Gives a port's reader bytes, waiting until the guest has opened the port and has room. False: the machine has ended.</summary>
    public bool Send(int port, ReadOnlySpan<byte> data)
    {
        VirtQueue queue = Queues[ReceiveQueue(port)];
        while (!data.IsEmpty)
        {
            int ticket = queue.Doorbell.Ticket;
            if (_stop || _inputStopped)
                return false;
            int n = _ports[port].GuestOpen ? Give(queue, data, whole: false) : 0;
            if (n == 0)
                queue.Doorbell.Wait(ticket);
            data = data[n..];
        }
        return true;
    }

    /// <summary>The end of what a port's reader gets, behind what it has been given.</summary>
    public void EndInput(int port)
    {
        _ports[port].HostOpen = false;
        Say(port, PortOpen, 0);
    }

    /// <summary>Nobody waits any more in <see cref="Send"/>, now and later.</summary>
    public void StopInput()
    {
        _inputStopped = true;
        for (int i = 0; i < _ports.Length; i++)
            Queues[ReceiveQueue(i)].Doorbell.WakeAll();
    }

    /// <summary>The guest has the port open.</summary>
    public bool IsOpen(int port) => _ports[port].GuestOpen;

    /// <summary>Takes what the guest has written to a port and is not served yet.</summary>
    public void DrainOutput(int port)
    {
        bool stop = false;
        while (Transport is { } transport && transport.TryServe(ReceiveQueue(port) + 1, ref stop))
        {
        }
    }

    /// <summary>Fills one buffer of the driver: bytes that were taken; 0: there is no buffer, and the driver will ring.</summary>
    internal int Give(VirtQueue queue, ReadOnlySpan<byte> data, bool whole)
    {
        using (queue.Gate.Enter())
        {
            while (queue.IsRunning && Transport is { IsStopped: false } transport)
            {
                if (!queue.TryPop(out DescriptorChain chain))
                {
                    if (queue.Fault is null && queue.TryRest() && queue.Fault is null)
                        return 0;
                    if (queue.Fault is { } fault)
                        transport.NeedReset(fault);
                    continue;
                }
                int n = (int)Math.Min((ulong)data.Length, chain.WritableBytes);
                if (n == 0 || whole && n < data.Length)
                    queue.Break("a buffer for a port's input has no room");
                else if (!chain.TryWrite(0, data[..n]))
                    queue.Break("a buffer for a port's input is no memory");
                if (queue.Fault is { } why)
                {
                    transport.NeedReset(why);
                    return 0;
                }
                if (queue.Push(chain, (uint)n))
                    transport.Interrupt(queue);
                return n;
            }
            return 0;
        }
    }

    protected internal override void Stopping()
    {
        _stop = true;
        foreach (VirtQueue queue in Queues)
            queue.Doorbell.WakeAll();
    }

    protected override void Dispose(bool disposing)
    {
        Stopping();
        _teller.Join();
    }
}

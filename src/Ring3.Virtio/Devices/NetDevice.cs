using System.Buffers.Binary;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>A network card with one queue each way, without offloads. SPEC: virtio 1.2, "Network Device".</summary>
/// <remarks>
/// The transmit queue has a thread as others have; what the link receives is delivered by a thread of the device. It holds the driver's buffers in its
/// hands that it has taken and not used yet: a frame may need several.
/// </remarks>
public sealed class NetDevice : VirtioDevice
{
    public const int DeviceType = 1, HeaderBytes = 12;

    /// <summary>Features of network devices.</summary>
    public const ulong Mtu = 1UL << 3, Mac = 1UL << 5, MergedBuffers = 1UL << 15;

    private const int Receive = 0, Transmit = 1;
    private const ushort QueueSize = 256;
    private const int ConfigBytes = 12, MtuAt = 10, BufferCountAt = 10;

    private readonly IPacketLink _link;
    private readonly Action<string> _ended;
    private readonly byte[] _config = new byte[ConfigBytes], _sending = new byte[IPacketLink.Headroom + IPacketLink.MaxFrame];
    private readonly DescriptorChain[] _hands;
    private readonly Thread _receiver;
    private int _held, _heldOf;
    private bool _merge;
    private volatile bool _stop;

    /// <param name="memory">The guest's.</param>
    /// <param name="link">Belongs to the device from now on.</param>
    /// <param name="mac">Six bytes.</param>
    /// <param name="mtu">What the driver is told; 0: nothing.</param>
    /// <param name="ended">Told when the link has ended by itself, on a thread of the device.</param>
    public NetDevice(GuestMemory memory, IPacketLink link, ReadOnlySpan<byte> mac, ushort mtu, Action<string> ended)
        : base(memory, DeviceType, "net", [QueueSize, QueueSize])
    {
        (_link, _ended) = (link, ended);
        mac[..6].CopyTo(_config);
        BinaryPrimitives.WriteUInt16LittleEndian(_config.AsSpan(MtuAt), mtu);
        Features = Mac | MergedBuffers | (mtu != 0 ? Mtu : 0);
        _hands = new DescriptorChain[QueueSize];
        _receiver = new Thread(RunReceiver) { IsBackground = true, Name = "ring3-net-link" };
        _receiver.Start();
    }

    public override ulong Features { get; }

    public override ReadOnlySpan<byte> Config => _config;

    protected internal override bool HasWorker(int queue) => queue == Transmit;

    protected internal override void Started(ulong features) => Volatile.Write(ref _merge, (features & MergedBuffers) != 0);

    protected internal override void Held()
    {
        VirtQueue queue = Queues[Receive];
        using (queue.Gate.Enter())
        {
            if (_heldOf == queue.Generation)
            {
                while (_held != 0)
                    queue.Untake(_hands[--_held]);
            }
            _held = 0;
        }
    }

    /// <summary>The card's address. Who is on its other side is not in a snapshot.</summary>
    protected internal override void Transfer(StateTransfer state) => state.Bytes(_config);

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        ulong bytes = chain.ReadableBytes - HeaderBytes;
        if (chain.ReadableBytes < HeaderBytes)
            Queues[queue].Break("a frame without its header");
        else if (bytes is > 0 and <= IPacketLink.MaxFrame)
        {
            Span<byte> framed = _sending.AsSpan(0, IPacketLink.Headroom + (int)bytes);
            if (chain.TryRead(HeaderBytes, framed[IPacketLink.Headroom..]))
                _link.Send(framed);
            else
                Queues[queue].Break("a frame is no memory");
        }
        return 0;
    }

    private void RunReceiver()
    {
        try
        {
            while (_link.Receive() is { IsEmpty: false } frame)
                Deliver(frame);
            if (!_stop)
                _ended("the network has ended");
        }
        catch (Exception e)
        {
            Transport?.Fail(e);
        }
    }

    /// <summary>Gives a frame to the driver, waiting for buffers. Without a driver, and when it does not fit, it is lost.</summary>
    internal void Deliver(ReadOnlySpan<byte> frame)
    {
        VirtQueue queue = Queues[Receive];
        while (true)
        {
            // Before the look at what to do: who rings afterwards changes it.
            int ticket = queue.Doorbell.Ticket;
            if (_stop || TryDeliver(queue, frame))
                return;
            queue.Doorbell.Wait(ticket);
        }
    }

    /// <summary>False: nothing was done, and the driver will ring when it has more buffers.</summary>
    internal bool TryDeliver(VirtQueue queue, ReadOnlySpan<byte> frame)
    {
        using (queue.Gate.Enter())
        {
            while (queue.IsRunning && Transport is { IsStopped: false } transport)
            {
                bool done = TryFill(queue, frame);
                if (queue.Fault is { } why)
                    transport.NeedReset(why);
                else if (!done && queue.TryRest() && queue.Fault is null)
                    return false;
                if (done)
                    return true;
            }
            return true;
        }
    }

    /// <summary>False: more buffers are needed.</summary>
    private bool TryFill(VirtQueue queue, ReadOnlySpan<byte> frame)
    {
        // Those of a driver before a reset are nobody's.
        if (_heldOf != queue.Generation)
            (_held, _heldOf) = (0, queue.Generation);
        ulong room = 0;
        for (int i = 0; i < _held; i++)
            room += _hands[i].WritableBytes;
        ulong needed = HeaderBytes + (ulong)frame.Length;
        while (room < needed)
        {
            if (_held != 0 && !Volatile.Read(ref _merge))
                return true;
            if (_held == _hands.Length)
            {
                queue.Break("a whole queue of buffers has no room for a frame");
                return true;
            }
            DescriptorChain next = _hands[_held] ??= queue.NewChain();
            if (!queue.TryPop(next))
                return false;
            _held++;
            room += next.WritableBytes;
            if (_held == 1 && next.WritableBytes < HeaderBytes)
            {
                queue.Break("a buffer for frames has no room for a header");
                return true;
            }
        }
        Give(queue, frame);
        return true;
    }

    private void Give(VirtQueue queue, ReadOnlySpan<byte> frame)
    {
        Span<byte> header = stackalloc byte[HeaderBytes];
        header.Clear();
        int used = 0;
        // How many there are is in the header of the first.
        for (int done = 0, at = HeaderBytes; done < frame.Length || used == 0; at = 0)
        {
            DescriptorChain chain = _hands[used++];
            int n = (int)Math.Min((ulong)(frame.Length - done), chain.WritableBytes - (ulong)at);
            if (!chain.TryWrite((ulong)at, frame.Slice(done, n)))
            {
                queue.Break("a buffer for frames is no memory");
                return;
            }
            done += n;
        }
        BinaryPrimitives.WriteUInt16LittleEndian(header[BufferCountAt..], (ushort)used);
        if (!_hands[0].TryWrite(0, header))
        {
            queue.Break("a buffer for frames is no memory");
            return;
        }
        int left = frame.Length;
        for (int i = 0; i < used; i++)
        {
            int at = i == 0 ? HeaderBytes : 0;
            int n = (int)Math.Min((ulong)left, _hands[i].WritableBytes - (ulong)at);
            left -= n;
            queue.Stage(_hands[i], (uint)(at + n));
        }
        if (queue.Publish())
            Transport!.Interrupt(queue);
        // The unused ones are next; the objects go round.
        for (int i = 0; i < _held - used; i++)
            (_hands[i], _hands[used + i]) = (_hands[used + i], _hands[i]);
        _held -= used;
    }

    /// <summary>A thread that sends may wait for room.</summary>
    protected internal override void Stopping()
    {
        _stop = true;
        _link.Stop();
        Queues[Receive].Doorbell.WakeAll();
    }

    protected override void Dispose(bool disposing)
    {
        Stopping();
        _receiver.Join();
        _link.Dispose();
    }
}

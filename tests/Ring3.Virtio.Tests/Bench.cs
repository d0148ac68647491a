using System.Buffers.Binary;
using Ring3.Memory;

namespace Ring3.Virtio.Tests;

/// <summary>A device on a transport without threads, guest memory, and the other side of its queues.</summary>
internal sealed class Bench : IDisposable, IPciInterrupts
{
    public const ulong RamBytes = 1 << 20;

    private readonly MemorySlots _slots = new();
    private readonly GuestRam _ram = new(RamBytes);

    public Bench(Func<GuestMemory, VirtioDevice> create, ulong offered = VirtioFeature.OfTransport)
    {
        _slots.SetRegion(0, 0, 0, RamBytes, _ram.Hva);
        Memory = new GuestMemory(_slots);
        Device = create(Memory);
        Transport = new VirtioTransport(Device, this, offered, Messages.Add, e => throw e) { HasThreads = false };
    }

    public GuestMemory Memory { get; }
    public VirtioDevice Device { get; }
    public VirtioTransport Transport { get; }
    public List<string> Messages { get; } = [];
    public List<(ulong Address, uint Data)> Sent { get; } = [];
    public bool Line { get; private set; }

    public void SetLine(bool level) => Line = level;

    public void Send(ulong address, uint data) => Sent.Add((address, data));

    public ulong Get(int at, int bytes)
    {
        Span<byte> data = stackalloc byte[bytes];
        Transport.Read((ulong)at, data);
        ulong value = 0;
        for (int i = bytes - 1; i >= 0; i--)
            value = value << 8 | data[i];
        return value;
    }

    public void Set(int at, int bytes, ulong value)
    {
        Span<byte> data = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(data, value);
        Transport.Write((ulong)at, data[..bytes]);
    }

    public byte Status { get => (byte)Get(20, 1); set => Set(20, 1, value); }

    /// <summary>Acknowledges, agrees on features, and gives back what was offered.</summary>
    public ulong Negotiate(ulong wanted)
    {
        Status = 0;
        Status = VirtioStatus.Acknowledge;
        Status = VirtioStatus.Acknowledge | VirtioStatus.Driver;
        ulong offered = 0;
        for (uint half = 0; half < 2; half++)
        {
            Set(0, 4, half);
            offered |= Get(4, 4) << (int)(32 * half);
            Set(8, 4, half);
            Set(12, 4, (uint)(wanted >> (int)(32 * half)));
        }
        Status = VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.FeaturesOk;
        return offered;
    }

    public void Enable(int queue, ushort size, ulong descriptors, ulong driver, ulong device, ushort vector = 0xffff)
    {
        Set(22, 2, (ulong)queue);
        Set(24, 2, size);
        Set(26, 2, vector);
        Set(32, 8, descriptors);
        Set(40, 4, (uint)driver);
        Set(44, 4, driver >> 32);
        Set(48, 8, device);
        Set(28, 2, 1);
    }

    public void Ready() => Status = VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.FeaturesOk | VirtioStatus.DriverOk;

    /// <summary>Serves a queue until nothing is left.</summary>
    public void Serve(int queue = 0)
    {
        bool stop = false;
        while (Transport.TryServe(queue, ref stop))
        {
        }
    }

    public void Write<T>(ulong gpa, T value) where T : unmanaged => Assert.True(Memory.TryWrite(gpa, value));

    public T Read<T>(ulong gpa) where T : unmanaged
    {
        Assert.True(Memory.TryRead(gpa, out T value));
        return value;
    }

    public void Dispose()
    {
        Transport.Dispose();
        _slots.Release();
        _ram.Dispose();
    }
}

/// <summary>Gives what it reads back, inverted.</summary>
internal sealed class InvertingDevice(GuestMemory memory, ushort size) : VirtioDevice(memory, type: 60, "invert", [size])
{
    private readonly byte[] _config = [1, 2, 3, 4, 5, 6];

    public override ulong Features => 3;
    /// <summary>The second feature needs the first.</summary>
    public override bool Accepts(ulong features) => features != 2;
    public override ReadOnlySpan<byte> Config => _config;
    public override void WriteConfig(int offset, ReadOnlySpan<byte> data) => data.CopyTo(_config.AsSpan(offset));
    public int Served { get; private set; }

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        Served++;
        int n = (int)Math.Min(chain.ReadableBytes, Math.Min(chain.WritableBytes, 4096));
        Span<byte> data = stackalloc byte[4096];
        data = data[..n];
        if (!chain.TryRead(0, data))
            Queues[queue].Break("not there");
        for (int i = 0; i < n; i++)
            data[i] = (byte)~data[i];
        if (!chain.TryWrite(0, data))
            Queues[queue].Break("not there");
        return (uint)n;
    }
}

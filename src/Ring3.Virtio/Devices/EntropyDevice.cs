using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>The host's randomness for the guest, or a repeatable stream. SPEC: virtio 1.2, "Entropy Device".</summary>
public sealed class EntropyDevice : VirtioDevice
{
    public const int DeviceType = 4;
    private const ushort QueueSize = 64;
    /// <summary>Bytes that one request gets at most: a driver that wants more asks again.</summary>
    private const int MaxBytes = 4096;

    private readonly byte[] _buffer = new byte[MaxBytes];
    private readonly bool _repeatable;
    private SeededRandom _random;

    /// <param name="memory">The guest's.</param>
    /// <param name="seed">Makes the bytes a function of this number and of how many were asked for before.</param>
    public EntropyDevice(GuestMemory memory, ulong? seed)
        : base(memory, DeviceType, "rng", [QueueSize])
    {
        _repeatable = seed is not null;
        _random = new SeededRandom(seed ?? 0);
    }

    public override ulong Features => 0;
    public override ReadOnlySpan<byte> Config => default;

    protected internal override void Transfer(StateTransfer state) => state.Value(ref _random);

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        int n = (int)Math.Min(MaxBytes, chain.WritableBytes);
        Span<byte> bytes = _buffer.AsSpan(0, n);
        if (_repeatable)
            _random.Fill(bytes);
        else
            HostRandom.Fill(bytes);
        if (chain.TryWrite(0, bytes))
            return (uint)n;
        Queues[queue].Break("a buffer for random bytes is no memory");
        return 0;
    }
}

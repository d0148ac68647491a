using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Virtio;

/// <summary>What another program has said in the vhost-user protocol cannot be, or it has said nothing. The message is a phrase.</summary>
public sealed class VhostUserException(string message) : Exception(message);

/// <summary>
/// The front end's side of the vhost-user protocol, as far as devices here need it: one memory region, split rings, no log, no channel of the back end's own.
/// Only before the back end serves; afterwards nothing is said any more. SPEC: QEMU, "Vhost-user Protocol".
/// </summary>
/// <param name="socket">Belongs to the link from now on.</param>
public sealed class VhostUserLink(HelperSocket socket) : IDisposable
{
    /// <summary>Feature bit that stands for the protocol's own features.</summary>
    public const ulong ProtocolFeatures = 1UL << 30;
    /// <summary>Protocol features: several queues, and configuration space.</summary>
    public const ulong MultiQueue = 1, Configuration = 1 << 9;
    /// <summary>Bytes of configuration space that can be asked for.</summary>
    public const int MaxConfig = 256;

    private const uint GetFeatures = 1, SetFeatures = 2, SetOwner = 3, SetMemTable = 5, SetVringNum = 8, SetVringAddr = 9, SetVringBase = 10, SetVringKick = 12,
        SetVringCall = 13, GetProtocolFeatures = 15, SetProtocolFeatures = 16, GetQueueNum = 17, SetVringEnable = 18, GetConfig = 24;
    private const uint Version = 1, Reply = 1 << 2;
    private const int HeaderBytes = 12, ConfigHeaderBytes = 12, AnswerMs = 10_000;

    /// <summary>Has input when the other side has ended, or says what nobody has asked for.</summary>
    public int Descriptor => socket.Descriptor;

    /// <summary>Becomes the device's owner; features that the other side has.</summary>
    /// <exception cref="VhostUserException">It has no protocol features, or does not answer.</exception>
    public ulong Open(ulong protocolFeatures)
    {
        ulong features = AskNumber(GetFeatures);
        if ((features & ProtocolFeatures) == 0)
            throw new VhostUserException("it has no protocol features");
        if ((features & VirtioFeature.Version1) == 0)
            throw new VhostUserException("it knows the legacy interface alone");
        ulong has = AskNumber(GetProtocolFeatures);
        if ((has & protocolFeatures) != protocolFeatures)
            throw new VhostUserException($"it lacks protocol features 0x{protocolFeatures & ~has:x}");
        TellNumber(SetProtocolFeatures, protocolFeatures);
        Tell(SetOwner, []);
        return features;
    }

    /// <summary>How many queues it can serve.</summary>
    public ulong QueueCount() => AskNumber(GetQueueNum);

    /// <summary>The features that are used.</summary>
    public void Use(ulong features) => TellNumber(SetFeatures, features | ProtocolFeatures);

    /// <summary>Reads the configuration space from its begin on.</summary>
    public void ReadConfig(Span<byte> config)
    {
        Span<byte> message = stackalloc byte[ConfigHeaderBytes + MaxConfig];
        message = message[..(ConfigHeaderBytes + config.Length)];
        message.Clear();
        BinaryPrimitives.WriteInt32LittleEndian(message[4..], config.Length);
        Tell(GetConfig, message);
        Listen(GetConfig, message);
        message[ConfigHeaderBytes..].CopyTo(config);
    }

    /// <summary>The memory that rings and buffers are in. Descriptors count from its begin.</summary>
    public void SetMemory(int descriptor, ulong address, ulong bytes)
    {
        Span<byte> table = stackalloc byte[40];
        table.Clear();
        table[0] = 1;
        BinaryPrimitives.WriteUInt64LittleEndian(table[16..], bytes);
        BinaryPrimitives.WriteUInt64LittleEndian(table[24..], address);
        Tell(SetMemTable, table, descriptor);
    }

    /// <summary>A ring and its signals: kick is ours, call the other side's. It serves the ring from now on.</summary>
    /// <param name="index">Queue.</param>
    /// <param name="size">Descriptors.</param>
    /// <param name="ring">Addresses as in <see cref="SetMemory"/>.</param>
    /// <param name="kick">Eventfd.</param>
    /// <param name="call">Eventfd.</param>
    public void SetRing(int index, int size, (ulong Descriptors, ulong Available, ulong Used) ring, int kick, int call)
    {
        TellState(SetVringNum, index, (uint)size);
        TellState(SetVringBase, index, 0);
        Span<byte> addresses = stackalloc byte[40];
        addresses.Clear();
        BinaryPrimitives.WriteInt32LittleEndian(addresses, index);
        BinaryPrimitives.WriteUInt64LittleEndian(addresses[8..], ring.Descriptors);
        BinaryPrimitives.WriteUInt64LittleEndian(addresses[16..], ring.Used);
        BinaryPrimitives.WriteUInt64LittleEndian(addresses[24..], ring.Available);
        Tell(SetVringAddr, addresses);
        TellNumber(SetVringCall, (ulong)index, call);
        TellNumber(SetVringKick, (ulong)index, kick);
        TellState(SetVringEnable, index, 1);
    }

    private void TellState(uint request, int index, uint value)
    {
        Span<byte> state = stackalloc byte[8];
        BinaryPrimitives.WriteInt32LittleEndian(state, index);
        BinaryPrimitives.WriteUInt32LittleEndian(state[4..], value);
        Tell(request, state);
    }

    private void TellNumber(uint request, ulong value, params ReadOnlySpan<int> descriptors)
    {
        Span<byte> number = stackalloc byte[8];
        BinaryPrimitives.WriteUInt64LittleEndian(number, value);
        Tell(request, number, descriptors);
    }

    private ulong AskNumber(uint request)
    {
        Tell(request, []);
        Span<byte> number = stackalloc byte[8];
        Listen(request, number);
        return BinaryPrimitives.ReadUInt64LittleEndian(number);
    }

    private void Tell(uint request, ReadOnlySpan<byte> payload, params ReadOnlySpan<int> descriptors)
    {
        Span<byte> message = stackalloc byte[HeaderBytes + ConfigHeaderBytes + MaxConfig];
        message = message[..(HeaderBytes + payload.Length)];
        BinaryPrimitives.WriteUInt32LittleEndian(message, request);
        BinaryPrimitives.WriteUInt32LittleEndian(message[4..], Version);
        BinaryPrimitives.WriteInt32LittleEndian(message[8..], payload.Length);
        payload.CopyTo(message[HeaderBytes..]);
        if (socket.Send(message, descriptors) != 0)
            throw new VhostUserException("it has ended");
    }

    /// <summary>The answer to a request, of exactly the payload's length.</summary>
    private void Listen(uint request, Span<byte> payload)
    {
        const int TimedOut = -110;
        Span<byte> header = stackalloc byte[HeaderBytes];
        int r = socket.Receive(header, AnswerMs);
        bool matches = r == 0 && BinaryPrimitives.ReadUInt32LittleEndian(header) == request
            && (BinaryPrimitives.ReadUInt32LittleEndian(header[4..]) & (Version | Reply)) == (Version | Reply)
            && BinaryPrimitives.ReadInt32LittleEndian(header[8..]) == payload.Length;
        if (matches)
            r = socket.Receive(payload, AnswerMs);
        if (r == TimedOut)
            throw new VhostUserException("it does not answer");
        if (r != 0)
            throw new VhostUserException("it has ended");
        if (!matches)
            throw new VhostUserException($"it answers request {request} with something else");
    }

    public void Dispose() => socket.Dispose();
}

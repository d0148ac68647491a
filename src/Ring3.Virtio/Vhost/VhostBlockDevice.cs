using System.Buffers.Binary;
using System.Text;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>A disk that another program serves, such as qemu-storage-daemon for formats that are not raw. SPEC: virtio 1.2, "Block Device".</summary>
public sealed class VhostBlockDevice : VhostUserDevice
{
    private const int ConfigBytes = 60, CapacityAt = 0, SizeMaxAt = 8, SegMaxAt = 12, QueuesAt = 34;
    private const ushort QueueSize = 128;
    private const int MaxSegments = 126, SegmentBytes = 8192, HeaderBytes = 16, IdBytes = 20;
    private const int SlotBytes = MaxSegments * SegmentBytes + 4096;
    private const uint GetId = 8;
    private const byte IoError = 1;
    private const ulong SizeMax = 1UL << 1;
    /// <summary>What a server may offer; sizes of requests are ours.</summary>
    private const ulong Known = BlockDevice.ReadOnly | BlockDevice.BlockSize | BlockDevice.FlushCommand | BlockDevice.Topology | BlockDevice.DiscardCommand
        | BlockDevice.WriteZeroesCommand | BlockDevice.MultiQueue;

    private readonly byte[] _config, _id = new byte[IdBytes];

    /// <param name="memory">The guest's.</param>
    /// <param name="serial">What the guest is told; at most 20 bytes of it.</param>
    /// <param name="queues">As many as the server was told to have.</param>
    /// <param name="link">To the server; belongs to the device from now on.</param>
    /// <param name="name">For threads and messages.</param>
    /// <param name="ended">Told why the server serves no more, a phrase, on a thread of the device.</param>
    /// <exception cref="VhostUserException">The other side is no such server.</exception>
    public VhostBlockDevice(GuestMemory memory, string serial, int queues, VhostUserLink link, string name, Action<string> ended)
        : this(memory, serial, queues, link, name, ended, Agree(link, queues))
    {
    }

    private VhostBlockDevice(GuestMemory memory, string serial, int queues, VhostUserLink link, string name, Action<string> ended,
        (ulong Features, byte[] Config) agreed)
        : base(memory, BlockDevice.DeviceType, name, Sizes(queues), SlotBytes, link, agreed.Features, ended)
    {
        _config = agreed.Config;
        Features = agreed.Features & ~(queues > 1 ? 0 : BlockDevice.MultiQueue) | SizeMax | BlockDevice.SegMax;
        BinaryPrimitives.WriteUInt32LittleEndian(_config.AsSpan(SizeMaxAt), SegmentBytes);
        BinaryPrimitives.WriteUInt32LittleEndian(_config.AsSpan(SegMaxAt), MaxSegments);
        BinaryPrimitives.WriteUInt16LittleEndian(_config.AsSpan(QueuesAt), (ushort)queues);
        byte[] id = Encoding.UTF8.GetBytes(serial);
        id.AsSpan(0, Math.Min(id.Length, IdBytes)).CopyTo(_id);
    }

    private static ushort[] Sizes(int queues)
    {
        var sizes = new ushort[queues];
        Array.Fill(sizes, QueueSize);
        return sizes;
    }

    private static (ulong Features, byte[] Config) Agree(VhostUserLink link, int queues)
    {
        ulong features = link.Open(VhostUserLink.MultiQueue | VhostUserLink.Configuration) & Known;
        if (link.QueueCount() < (ulong)queues)
            throw new VhostUserException($"it has less than {queues} queues");
        var config = new byte[ConfigBytes];
        link.ReadConfig(config);
        if (BinaryPrimitives.ReadUInt64LittleEndian(config.AsSpan(CapacityAt)) is 0 or > long.MaxValue / BlockDevice.SectorBytes)
            throw new VhostUserException("it has a disk of no size");
        return (features, config);
    }

    public override ulong Features { get; }

    public override ReadOnlySpan<byte> Config => _config;

    protected override bool ErrorIsLast => true;

    protected override bool TryAnswer(Span<byte> request, Span<byte> answer, out int written)
    {
        written = 0;
        if (request.Length < HeaderBytes || answer.IsEmpty)
        {
            written = Refuse(request, answer);
            return true;
        }
        if (BinaryPrimitives.ReadUInt32LittleEndian(request) != GetId)
        {
            // Until the server has said otherwise.
            answer[^1] = IoError;
            return false;
        }
        answer.Clear();
        _id.AsSpan(0, Math.Min(IdBytes, answer.Length - 1)).CopyTo(answer);
        written = answer.Length;
        return true;
    }

    /// <summary>The status is the last byte, however much of the data was written.</summary>
    protected override int Given(int written, int writable) => writable;

    protected override int Refuse(ReadOnlySpan<byte> request, Span<byte> answer)
    {
        if (answer.IsEmpty)
            return 0;
        answer[^1] = IoError;
        return answer.Length;
    }
}

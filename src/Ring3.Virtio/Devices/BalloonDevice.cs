using System.Buffers.Binary;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>Memory that the guest does not need goes back to the host: what it reports as free, and what it puts into the balloon, of which nobody asks it to
/// here. It comes back, zeroed, when it is used again. SPEC: virtio 1.2, "Traditional Memory Balloon Device".</summary>
public sealed class BalloonDevice : VirtioDevice
{
    public const int DeviceType = 5;
    /// <summary>The guest may take pages back without asking; it reports free ones.</summary>
    public const ulong DeflateOnOom = 1UL << 2, Reporting = 1UL << 5;

    /// <summary>A device without statistics and hints has the reports behind these two.</summary>
    private const int Inflate = 0, Deflate = 1, Report = 2;
    private const ushort QueueSize = 128;
    private const int ConfigBytes = 8, ActualAt = 4, PageShift = 12, PagesAtOnce = 256;

    private readonly Action<ulong, ulong> _release;
    private readonly byte[] _config = new byte[ConfigBytes], _pages = new byte[4 * PagesAtOnce];

    /// <param name="memory">The guest's.</param>
    /// <param name="release">Gives guest memory back to the host, as far as there is any: gpa and bytes, both of whole pages. Threads of queues.</param>
    public BalloonDevice(GuestMemory memory, Action<ulong, ulong> release)
        : base(memory, DeviceType, "balloon", [QueueSize, QueueSize, QueueSize]) => _release = release;

    public override ulong Features => DeflateOnOom | Reporting;

    public override ReadOnlySpan<byte> Config => _config;

    /// <summary>How much there is in the balloon is the driver's to say, and nobody's to believe.</summary>
    public override void WriteConfig(int offset, ReadOnlySpan<byte> data)
    {
        if (offset >= ActualAt)
            data.CopyTo(_config.AsSpan(offset));
    }

    protected internal override void Transfer(StateTransfer state) => state.Bytes(_config);

    protected internal override uint Serve(int queue, DescriptorChain chain)
    {
        switch (queue)
        {
            case Inflate:
                Take(queue, chain);
                break;
            case Report:
                foreach (GuestRange range in chain.Writable)
                    Release(range.Gpa, range.Length);
                break;
            case Deflate:
                break;
        }
        return 0;
    }

    /// <summary>A list of page numbers, of which neighbours go together.</summary>
    private void Take(int queue, DescriptorChain chain)
    {
        (ulong first, ulong count) = (0, 0);
        for (ulong done = 0; done + 4 <= chain.ReadableBytes;)
        {
            int n = (int)Math.Min((ulong)_pages.Length, chain.ReadableBytes - done) & ~3;
            if (!chain.TryRead(done, _pages.AsSpan(0, n)))
            {
                Queues[queue].Break("a list of pages is no memory");
                return;
            }
            for (int at = 0; at < n; at += 4)
            {
                ulong page = BinaryPrimitives.ReadUInt32LittleEndian(_pages.AsSpan(at));
                if (page == first + count)
                {
                    count++;
                    continue;
                }
                Release(first << PageShift, count << PageShift);
                (first, count) = (page, 1);
            }
            done += (uint)n;
        }
        Release(first << PageShift, count << PageShift);
    }

    /// <summary>Whole pages of a range.</summary>
    private void Release(ulong gpa, ulong bytes)
    {
        const ulong Offset = (1UL << PageShift) - 1;
        (ulong begin, ulong end) = (gpa > ulong.MaxValue - Offset ? ulong.MaxValue & ~Offset : (gpa + Offset) & ~Offset, (gpa + bytes) & ~Offset);
        if (begin < end)
            _release(begin, end - begin);
    }
}

using System.Collections.Concurrent;
using Ring3.Host;

namespace Ring3.Virtio.Tests;

/// <summary>Frames both ways.</summary>
public class NetDeviceTests
{
    private const ulong Buffers = 0x8_0000;

    /// <summary>Keeps what is sent; nothing arrives by itself.</summary>
    private sealed class Link : IPacketLink
    {
        private readonly ManualResetEventSlim _stopped = new();
        public ConcurrentQueue<byte[]> Sent { get; } = new();

        public void Send(Span<byte> framed) => Sent.Enqueue(framed[IPacketLink.Headroom..].ToArray());

        public ReadOnlySpan<byte> Receive()
        {
            _stopped.Wait();
            return default;
        }

        public void Stop() => _stopped.Set();

        public void Dispose() => _stopped.Dispose();
    }

    private readonly Link _link = new();
    private readonly Bench _bench;

    public NetDeviceTests() => _bench = new Bench(m => new NetDevice(m, _link, [2, 1, 2, 3, 4, 5], 9000, _ => { }));

    private NetDevice Device => (NetDevice)_bench.Device;

    /// <summary>A driver whose queue 0 is the one that receives, or the one that sends.</summary>
    private Driver Start(ulong features, bool transmit)
    {
        features |= VirtioFeature.Version1;
        _bench.Negotiate(features);
        _bench.Enable(transmit ? 1 : 0, 16, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        _bench.Ready();
        return (features & VirtioFeature.PackedRing) != 0 ? new PackedDriver(_bench, 16, features) : new SplitDriver(_bench, 16, features);
    }

    private static byte[] Frame(int bytes)
    {
        var frame = new byte[bytes];
        for (int i = 0; i < bytes; i++)
            frame[i] = (byte)(i * 13 + 1);
        return frame;
    }

    /// <summary>A frame that waits for a second buffer has the first in hand: a queue that is held has it again, and it comes in its place later.</summary>
    [Theory, InlineData(0UL), InlineData(VirtioFeature.PackedRing)]
    public void BuffersInHand_GoBackToAQueueThatIsHeld(ulong ring)
    {
        Driver driver = Start(ring | NetDevice.MergedBuffers, transmit: false);
        byte[] frame = Frame(1000);
        for (int round = 0; round < 20; round++)
        {
            driver.Offer(false, new Piece(Buffers, 600, true));
            Assert.False(Device.TryDeliver(Device.Queues[0], frame));
            _bench.Transport.Hold();
            _bench.Transport.Release();
            Assert.False(Device.TryDeliver(Device.Queues[0], frame));
            driver.Offer(false, new Piece(Buffers + 0x1000, 600, true));
            Assert.True(Device.TryDeliver(Device.Queues[0], frame));
            Assert.Equal(600u, driver.Take()?.Written);
            Assert.Equal(412u, driver.Take()?.Written);
            var got = new byte[1012];
            Assert.True(_bench.Memory.Read(Buffers, got.AsSpan(0, 600)) && _bench.Memory.Read(Buffers + 0x1000, got.AsSpan(600)));
            Assert.Equal(frame, got[12..]);
        }
    }

    [Theory, InlineData(0UL), InlineData(VirtioFeature.PackedRing)]
    public void Frames_AreSentWithoutTheirHeader(ulong ring)
    {
        Driver driver = Start(ring, transmit: true);
        byte[] frame = Frame(1000);
        Assert.True(_bench.Memory.Write(Buffers + 12, frame));
        driver.Offer(false, new Piece(Buffers, 100, false), new Piece(Buffers + 100, 912, false));
        _bench.Serve(1);
        Assert.Equal(0u, driver.Take()?.Written);
        Assert.Equal(frame, Assert.Single(_link.Sent));
        // A header alone is no frame; less is no header.
        driver.Offer(false, new Piece(Buffers, 12, false));
        _bench.Serve(1);
        Assert.NotNull(driver.Take());
        Assert.Single(_link.Sent);
        driver.Offer(false, new Piece(Buffers, 11, false));
        _bench.Serve(1);
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    [Theory, InlineData(0UL), InlineData(VirtioFeature.PackedRing)]
    public void AFrame_TakesAsManyBuffersAsItNeeds(ulong ring)
    {
        Driver driver = Start(ring | NetDevice.MergedBuffers, transmit: false);
        byte[] frame = Frame(700);
        for (int round = 0; round < 20; round++)
        {
            // Two are not enough: the frame waits, and nothing is given back.
            driver.Offer(false, new Piece(Buffers, 256, true));
            driver.Offer(false, new Piece(Buffers + 256, 256, true));
            Assert.False(Device.TryDeliver(Device.Queues[0], frame));
            Assert.Null(driver.Take());
            driver.Offer(false, new Piece(Buffers + 512, 256, true));
            driver.Offer(false, new Piece(Buffers + 1024, 256, true));
            Assert.True(Device.TryDeliver(Device.Queues[0], frame));
            Assert.Equal([256u, 256, 200], new[] { driver.Take()!.Value.Written, driver.Take()!.Value.Written, driver.Take()!.Value.Written });
            Assert.Null(driver.Take());
            Assert.Equal(3, _bench.Read<ushort>(Buffers + 10));
            var got = new byte[700];
            Assert.True(_bench.Memory.Read(Buffers + 12, got));
            Assert.Equal(frame, got);
            // The fourth is for the next.
            Assert.True(Device.TryDeliver(Device.Queues[0], frame.AsSpan(0, 60)));
            Assert.Equal(72u, driver.Take()?.Written);
            Assert.Equal(1, _bench.Read<ushort>(Buffers + 1024 + 10));
        }
    }

    [Fact]
    public void WithoutMergedBuffers_AFrameThatDoesNotFitIsLost()
    {
        Driver driver = Start(0, transmit: false);
        driver.Offer(false, new Piece(Buffers, 128, true));
        Assert.True(Device.TryDeliver(Device.Queues[0], Frame(117)));
        Assert.Null(driver.Take());
        Assert.True(Device.TryDeliver(Device.Queues[0], Frame(116)));
        Assert.Equal(128u, driver.Take()?.Written);
    }

    [Fact]
    public void AfterAReset_OldBuffersAreNotTouched()
    {
        Driver driver = Start(NetDevice.MergedBuffers, transmit: false);
        driver.Offer(false, new Piece(Buffers, 64, true));
        Assert.False(Device.TryDeliver(Device.Queues[0], Frame(100)));
        _bench.Status = 0;
        Assert.True(Device.TryDeliver(Device.Queues[0], Frame(20)));
        _bench.Write(Driver.DriverArea + 2, (ushort)0);
        driver = Start(NetDevice.MergedBuffers, transmit: false);
        driver.Offer(false, new Piece(Buffers + 0x1000, 64, true));
        Assert.True(Device.TryDeliver(Device.Queues[0], Frame(20)));
        Assert.Equal(32u, driver.Take()?.Written);
        Assert.Equal(0, _bench.Read<byte>(Buffers + 12));
        Assert.Equal(1, _bench.Read<byte>(Buffers + 0x1000 + 12));
    }

    [Fact]
    public void AStream_CarriesFramesInPieces()
    {
        StreamSocket ours = StreamSocket.CreatePair(out int other);
        using var link = new StreamLink(ours);
        using (var stream = new FileStream(new Microsoft.Win32.SafeHandles.SafeFileHandle(other, ownsHandle: true), FileAccess.ReadWrite, 0))
        {
            link.Send([0, 0, 0, 0, 7, 8, 9]);
            var got = new byte[7];
            stream.ReadExactly(got);
            Assert.Equal([0, 0, 0, 3, 7, 8, 9], got);
            byte[] large = Frame(65_000);
            var writer = new Thread(() =>
            {
                stream.Write([0, 0, 0, 1, 5, 0, 0]);
                stream.Write([0, 2, 6, 7, 0, 0, (byte)(large.Length >> 8), (byte)large.Length]);
                stream.Write(large);
                stream.Write([0, 2, 0, 0]);
            });
            writer.Start();
            Assert.Equal([5], link.Receive().ToArray());
            Assert.Equal([6, 7], link.Receive().ToArray());
            Assert.Equal(large, link.Receive().ToArray());
            // More than a frame can have.
            Assert.True(link.Receive().IsEmpty);
            writer.Join();
        }
        Assert.True(link.Receive().IsEmpty);
    }
}

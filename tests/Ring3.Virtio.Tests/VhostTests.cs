using System.Buffers.Binary;
using Ring3.Tests.Shared;

namespace Ring3.Virtio.Tests;

/// <summary>Devices that another program serves.</summary>
public sealed class VhostTests : IDisposable
{
    private const ulong Offered = VirtioFeature.Version1 | VhostUserLink.ProtocolFeatures;
    private const ulong Header = 0x8_0000, Data = 0x8_1000, Answer = 0x9_0000;
    private const uint Lookup = 1, Write = 16, Open = 14;

    private readonly ManualResetEventSlim _ended = new();
    private string _why = "";
    private FakeBackEnd? _back;
    private Bench? _bench;

    public void Dispose()
    {
        _bench?.Dispose();
        _back?.Dispose();
        _ended.Dispose();
    }

    private void Ended(string why)
    {
        _why = why;
        _ended.Set();
    }

    /// <summary>A share whose queue 0 the driver uses: both queues are alike.</summary>
    private Driver Share(bool readOnly = false, ShareOwner? owner = null, ulong ring = 0)
    {
        _back = new FakeBackEnd(Offered, 0, []);
        _bench = new Bench(m => new VhostFsDevice(m, "tag", readOnly, owner, _back.Link, "fs", Ended));
        return Driver.Create(_bench, 16, VirtioFeature.Version1 | ring);
    }

    private VhostUserDevice Device => (VhostUserDevice)_bench!.Device;

    private void Request(Driver driver, uint code, uint flags = 0)
    {
        _bench!.Write(Header, 44u);
        _bench.Write(Header + 4, code);
        _bench.Write(Header + 8, 0x1122_3344_5566_7788UL);
        _bench.Write(Header + 24, 7UL | 8UL << 32);
        _bench.Write(Header + 40, flags);
        driver.Offer(false, new Piece(Header, 44, false), new Piece(Answer, 16, true), new Piece(Answer + 0x1000, 100, true));
        _bench.Set(VirtioTransport.DoorbellsAt, 2, 0);
    }

    [Theory, InlineData(0UL), InlineData(VirtioFeature.PackedRing)]
    public void Requests_AreAnsweredFromMemoryOfTheirOwn(ulong ring)
    {
        Driver driver = Share(ring: ring);
        for (int i = 0; i < 200; i++)
        {
            Request(driver, Lookup);
            Assert.True(_back!.WasKicked(0));
            Assert.True(_back.TryTake(0, out ushort head, out Span<byte> request, out Span<byte> answer));
            Assert.Equal((44, 116), (request.Length, answer.Length));
            Assert.Equal(Lookup, BinaryPrimitives.ReadUInt32LittleEndian(request[4..]));
            Assert.Equal(7u, BinaryPrimitives.ReadUInt32LittleEndian(request[24..]));
            answer.Fill((byte)(i + 1));
            _back.GiveBack(0, head, 20);
            Device.Collect(0);
            Assert.Equal(20u, driver.Take()!.Value.Written);
            Assert.Equal((byte)(i + 1), _bench!.Read<byte>(Answer + 0x1003));
            Assert.Equal(0, _bench.Read<byte>(Answer + 0x1004 + 80));
        }
    }

    [Fact]
    public void MoreThanThereIsRoomFor_WaitsForAnswers()
    {
        _back = new FakeBackEnd(Offered, 0, []);
        _bench = new Bench(m => new VhostFsDevice(m, "tag", false, null, _back.Link, "fs", Ended));
        var driver = (SplitDriver)Driver.Create(_bench, 128, VirtioFeature.Version1 | VirtioFeature.IndirectDescriptors);
        _bench.Write(Header + 4, Lookup);
        for (int i = 0; i < 120; i++)
            driver.Offer(true, new Piece(Header, 44, false), new Piece(Answer, 16, true));
        _bench.Set(VirtioTransport.DoorbellsAt, 2, 0);
        int taken = 0;
        for (int round = 0; round < 2; round++)
        {
            var heads = new List<ushort>();
            while (_back.TryTake(0, out ushort head, out _, out _))
                heads.Add(head);
            taken += heads.Count;
            Assert.Equal(round == 0 ? 64 : 56, heads.Count);
            foreach (ushort head in heads)
                _back.GiveBack(0, head, 16);
            Device.Collect(0);
        }
        for (int i = 0; i < taken; i++)
            Assert.NotNull(driver.Take());
        Assert.Null(driver.Take());
    }

    [Fact]
    public void ReadOnlyShares_RefuseWhatWrites()
    {
        const int EROFS = 30, ENOSYS = 38;
        Driver driver = Share(readOnly: true);
        foreach ((uint code, uint flags, bool allowed) in ((uint, uint, bool)[])
            [(Lookup, 0, true), (Write, 0, false), (Open, 0, true), (Open, 1, false), (Open, 2, false), (Open, 0x200, false), (Open, 0x40, false),
                (4, 0, false), (8, 0, false),
                (9, 0, false), (10, 0, false), (11, 0, false), (12, 0, false), (13, 0, false), (6, 0, false), (21, 0, false), (24, 0, false), (35, 0, false),
                    (39, 0, false),
                (43, 0, false), (45, 0, false), (47, 0, false), (48, 0, false), (51, 0, false), (1000, 0, false)])
        {
            Request(driver, code, flags);
            Assert.Equal(allowed, _back!.TryTake(0, out ushort head, out _, out _));
            if (allowed)
            {
                _back.GiveBack(0, head, 16);
                Device.Collect(0);
                _ = driver.Take();
                continue;
            }
            Assert.Equal(16u, driver.Take()!.Value.Written);
            Assert.Equal(code is 39 or 48 or 1000 ? -ENOSYS : -EROFS, _bench!.Read<int>(Answer + 4));
            Assert.Equal(0x1122_3344_5566_7788UL, _bench.Read<ulong>(Answer + 8));
        }
    }

    [Fact]
    public void OwnersAreWhoTheServerActsFor()
    {
        Driver driver = Share(owner: new ShareOwner(1000, 1001));
        Request(driver, Lookup);
        Assert.True(_back!.TryTake(0, out _, out Span<byte> request, out _));
        Assert.Equal(1000u, BinaryPrimitives.ReadUInt32LittleEndian(request[24..]));
        Assert.Equal(1001u, BinaryPrimitives.ReadUInt32LittleEndian(request[28..]));
        // O_NOATIME, which an overlay wants, and the host allows owners alone.
        Request(driver, Open, 0x4_8000);
        Assert.True(_back.TryTake(0, out _, out request, out _));
        Assert.Equal(0x8000u, BinaryPrimitives.ReadUInt32LittleEndian(request[40..]));
    }

    [Fact]
    public void AServerThatEnds_LeavesErrors()
    {
        Driver driver = Share();
        Request(driver, Lookup);
        _back!.HangUp();
        _ended.Wait();
        Assert.Equal(16u, driver.Take()!.Value.Written);
        Assert.Equal(-5, _bench!.Read<int>(Answer + 4));
        Request(driver, Lookup);
        Assert.Equal(16u, driver.Take()!.Value.Written);
        Assert.Equal("it has ended", _why);
        Assert.Equal(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    /// <summary>A wrong name, a name of nobody, an index that jumps, more than there was room for.</summary>
    [Theory]
    [InlineData(1u, 16u, 1)]
    [InlineData(2u, 16u, 1)]
    [InlineData(100_000u, 16u, 1)]
    [InlineData(0u, 16u, 100)]
    [InlineData(0u, 200u, 1)]
    [InlineData(0u, uint.MaxValue, 1)]
    public void AServerThatLies_LeavesErrors(uint head, uint written, ushort steps)
    {
        Driver driver = Share();
        Request(driver, Lookup);
        Assert.True(_back!.TryTake(0, out _, out _, out _));
        _back.Memory[..4096].Slice(0, 2048).Fill(0xff);
        _back.GiveBack(0, head, written, steps);
        _back.Call(0);
        _ended.Wait();
        Assert.StartsWith("it ", _why);
        Assert.Equal(-5, _bench!.Read<int>(Answer + 4));
    }

    [Fact]
    public void AnswersAfterAReset_AreNobodys()
    {
        Driver driver = Share();
        Request(driver, Lookup);
        Assert.True(_back!.TryTake(0, out ushort head, out _, out _));
        _bench!.Status = 0;
        _back.GiveBack(0, head, 16);
        Device.Collect(0);
        Assert.Equal(0u, _bench.Read<uint>(Answer));
        driver = Driver.Create(_bench, 16, VirtioFeature.Version1);
        Assert.Null(driver.Take());
    }

    [Fact]
    public void RequestsThatAreTooLarge_AreRefused()
    {
        Driver driver = Share();
        _bench!.Write(Header + 4, Lookup);
        driver.Offer(false, new Piece(Header, 40, false), new Piece(Answer, 16, true), new Piece(Data, 0x20_0000, true));
        _bench.Set(VirtioTransport.DoorbellsAt, 2, 0);
        Assert.Equal(16u, driver.Take()!.Value.Written);
        Assert.Equal(-5, _bench.Read<int>(Answer + 4));
        Assert.False(_back!.TryTake(0, out _, out _, out _));
    }

    [Fact]
    public void BuffersThatAreNoMemory_StopTheDevice()
    {
        Driver driver = Share();
        driver.Offer(false, new Piece(Bench.RamBytes, 44, false), new Piece(Answer, 16, true));
        _bench!.Set(VirtioTransport.DoorbellsAt, 2, 0);
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
        Assert.Contains("no memory", Assert.Single(_bench.Messages));
    }

    public static TheoryData<uint, byte[]?> Lies => new()
    {
        { 1, null }, { 1, new byte[20] }, { 1, [1, 0, 0, 0, 5, 0, 0, 0, 255, 255, 255, 127, 0, 0, 0, 0, 0, 0, 0, 0] },
            { 1, [1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] },
        { 1, [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }, { 1, [1, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0] },
        { 15, [15, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }, { 15, null },
            { 17, [17, 0, 0, 0, 5, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] }, { 24, null },
        { 24, [24, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0] },
    };

    /// <summary>The end, nothing but zeros, a wrong length, no answer at all, no features, the legacy interface alone, no queue, no disk.</summary>
    [Theory, MemberData(nameof(Lies))]
    public void AServerThatLiesFromTheBegin_IsRefused(uint request, byte[]? lie)
    {
        _back = new FakeBackEnd(Offered, ulong.MaxValue, new byte[60]) { Tamper = (r, answer) => r == request ? lie : answer };
        VhostUserException e = Assert.Throws<VhostUserException>(() => new Bench(m => new VhostBlockDevice(m, "s", 2, _back.Link, "disk", Ended)));
        Assert.StartsWith("it ", e.Message);
    }

    [Fact]
    public void Disks_SayWhoTheyAreAndEndWithTheirStatus()
    {
        var config = new byte[60];
        config[0] = 100;
        _back = new FakeBackEnd(Offered | BlockDevice.FlushCommand, ulong.MaxValue, config);
        _bench = new Bench(m => new VhostBlockDevice(m, "serial", 1, _back.Link, "disk", Ended));
        Driver driver = Driver.Create(_bench, 16, VirtioFeature.Version1 | BlockDevice.FlushCommand);
        Assert.Equal(100u, _bench.Get(VirtioTransport.DeviceAt, 4));
        _bench.Write(Header, 8u);
        driver.Offer(false, new Piece(Header, 16, false), new Piece(Answer, 20, true), new Piece(Answer + 0x100, 1, true));
        _bench.Set(VirtioTransport.DoorbellsAt, 2, 0);
        Assert.Equal(21u, driver.Take()!.Value.Written);
        Assert.Equal((byte)'s', _bench.Read<byte>(Answer));
        // A server that answers, but not the last byte, has failed.
        _bench.Write(Header, 0u);
        driver.Offer(false, new Piece(Header, 16, false), new Piece(Answer, 512, true), new Piece(Answer + 0x1000, 1, true));
        _bench.Set(VirtioTransport.DoorbellsAt, 2, 0);
        Assert.True(_back.TryTake(0, out ushort head, out _, out Span<byte> answer));
        Assert.Equal(513, answer.Length);
        _back.GiveBack(0, head, 1);
        Device.Collect(0);
        Assert.Equal(513u, driver.Take()!.Value.Written);
        Assert.Equal(1, _bench.Read<byte>(Answer + 0x1000));
    }
}

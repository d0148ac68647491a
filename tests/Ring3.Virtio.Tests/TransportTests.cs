namespace Ring3.Virtio.Tests;

/// <summary>The registers.</summary>
public class TransportTests
{
    private const ulong In = 0x8_0000;
    private readonly Bench _bench = new(m => new InvertingDevice(m, 16));

    [Fact]
    public void Features_AreAgreedOn()
    {
        const ulong Offered = VirtioFeature.OfTransport | 3;
        Assert.Equal(Offered, _bench.Negotiate(VirtioFeature.Version1));
        Assert.Equal(VirtioStatus.Acknowledge | VirtioStatus.Driver | VirtioStatus.FeaturesOk, _bench.Status);
        // Afterwards they stay.
        _bench.Set(8, 4, 0);
        _bench.Set(12, 4, 3);
        Assert.Equal(0u, _bench.Get(12, 4));
        // Selectors beyond 63 have nothing.
        _bench.Set(0, 4, 2);
        Assert.Equal(0u, _bench.Get(4, 4));
    }

    [Theory]
    [InlineData(0UL)]
    [InlineData(VirtioFeature.Version1 | 1UL << 33)]
    [InlineData(VirtioFeature.Version1 | 4)]
    [InlineData(VirtioFeature.Version1 | 2)]
    public void Features_ThatCannotBe_AreRefused(ulong features)
    {
        _bench.Negotiate(features);
        Assert.Equal(VirtioStatus.Acknowledge | VirtioStatus.Driver, _bench.Status);
        _bench.Ready();
        Assert.Equal(0, _bench.Status & VirtioStatus.DriverOk);
    }

    [Fact]
    public void Registers_AreWhatWasWritten_UntilTheReset()
    {
        _bench.Negotiate(VirtioFeature.Version1);
        Assert.Equal(1u, _bench.Get(18, 2));
        Assert.Equal(16u, _bench.Get(24, 2));
        _bench.Set(22, 2, 1);
        Assert.Equal(0u, _bench.Get(24, 2));
        _bench.Enable(0, 8, 0x1234_5670, 0x1_0000_0002, 0x2_0000_0004, 1);
        Assert.Equal(8u, _bench.Get(24, 2));
        Assert.Equal(1u, _bench.Get(26, 2));
        Assert.Equal(1u, _bench.Get(28, 2));
        Assert.Equal(0x1234_5670u, _bench.Get(32, 8));
        Assert.Equal(0x1_0000_0002u, _bench.Get(40, 8));
        Assert.Equal(2u, _bench.Get(52, 4));
        // An enabled queue stays where it is.
        _bench.Set(32, 8, 0);
        _bench.Set(24, 2, 16);
        Assert.Equal(0x1234_5670u, _bench.Get(32, 8));
        Assert.Equal(8u, _bench.Get(24, 2));
        _bench.Set(16, 2, 1);
        Assert.Equal(1u, _bench.Get(16, 2));
        _bench.Set(16, 2, 2);
        Assert.Equal(0xffffu, _bench.Get(16, 2));
        _bench.Status = 0;
        Assert.Equal(0, _bench.Status);
        Assert.Equal(16u, _bench.Get(24, 2));
        Assert.Equal(0u, _bench.Get(28, 2));
        Assert.Equal(0xffffu, _bench.Get(26, 2));
        Assert.Equal(0u, _bench.Get(32, 8));
    }

    [Theory]
    [InlineData(3, 0x10000UL, 0x20000UL, 0x30000UL)]
    [InlineData(32, 0x10000UL, 0x20000UL, 0x30000UL)]
    [InlineData(16, 0x10008UL, 0x20000UL, 0x30000UL)]
    [InlineData(16, 0x10000UL, 0x20001UL, 0x30000UL)]
    [InlineData(16, 0x10000UL, 0x20000UL, 0x30002UL)]
    public void Queues_ThatMustNotBe_AreRefused(int size, ulong descriptors, ulong driver, ulong device)
    {
        _bench.Negotiate(VirtioFeature.Version1);
        _bench.Enable(0, (ushort)size, descriptors, driver, device);
        Assert.Equal(0u, _bench.Get(28, 2));
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    [Fact]
    public void DeviceConfiguration_IsReadAndWritten()
    {
        Assert.Equal(0x0403_0201u, _bench.Get(VirtioTransport.DeviceAt, 4));
        Assert.Equal(0x0605u, _bench.Get(VirtioTransport.DeviceAt + 4, 4));
        _bench.Set(VirtioTransport.DeviceAt + 5, 1, 9);
        Assert.Equal(0x09u, _bench.Get(VirtioTransport.DeviceAt + 5, 1));
        _bench.Set(VirtioTransport.DeviceAt + 5, 2, 0x1111);
        Assert.Equal(0x09u, _bench.Get(VirtioTransport.DeviceAt + 5, 1));
    }

    [Fact]
    public void ThePin_IsHighUntilTheIsrIsRead()
    {
        Driver driver = Driver.Create(_bench, 16, VirtioFeature.Version1);
        driver.Offer(false, new Piece(In, 4, false));
        _bench.Serve();
        Assert.True(_bench.Line);
        Assert.True(_bench.Transport.HasLineInterrupt);
        _bench.Transport.DisableLine(true);
        Assert.False(_bench.Line);
        Assert.True(_bench.Transport.HasLineInterrupt);
        _bench.Transport.DisableLine(false);
        Assert.True(_bench.Line);
        Assert.Equal(1u, _bench.Get(VirtioTransport.IsrAt, 1));
        Assert.False(_bench.Line);
        Assert.Equal(0u, _bench.Get(VirtioTransport.IsrAt, 1));
    }

    private void SetEntry(int vector, ulong address, uint data, uint mask)
    {
        int at = VirtioTransport.TableAt + 16 * vector;
        _bench.Set(at, 4, (uint)address);
        _bench.Set(at + 4, 4, address >> 32);
        _bench.Set(at + 8, 4, data);
        _bench.Set(at + 12, 4, mask);
    }

    [Fact]
    public void Messages_WaitBehindTheirMasks()
    {
        const ushort Enable = 0x8000, Mask = 0x4000;
        Assert.Equal(1u, _bench.Get(VirtioTransport.TableAt + 12, 4));
        _bench.Transport.SetMsixControl(Enable);
        SetEntry(0, 0xfee0_0000, 0x30, 0);
        SetEntry(1, 0xfee0_1000, 0x41, 0xffff_fffe);
        Driver driver = Driver.Create(_bench, 16, VirtioFeature.Version1, vector: 1);
        _bench.Set(16, 2, 0);

        driver.Offer(false, new Piece(In, 4, false));
        _bench.Serve();
        Assert.Equal([(0xfee0_1000UL, 0x41u)], _bench.Sent);
        Assert.False(_bench.Line);
        // Reserved bits of the control word are not kept.
        Assert.Equal(0u, _bench.Get(VirtioTransport.TableAt + 16 + 12, 4));

        SetEntry(1, 0xfee0_1000, 0x41, 1);
        driver.Offer(false, new Piece(In, 4, false));
        _bench.Serve();
        driver.Offer(false, new Piece(In, 4, false));
        _bench.Serve();
        Assert.Single(_bench.Sent);
        Assert.Equal(2u, _bench.Get(VirtioTransport.PendingAt, 8));
        SetEntry(1, 0xfee0_2000, 0x42, 0);
        Assert.Equal((0xfee0_2000UL, 0x42u), _bench.Sent[^1]);
        Assert.Equal(2, _bench.Sent.Count);
        Assert.Equal(0u, _bench.Get(VirtioTransport.PendingAt, 8));

        _bench.Transport.SetMsixControl(Enable | Mask);
        driver.Offer(false, new Piece(In, 4, false));
        _bench.Serve();
        Assert.Equal(2, _bench.Sent.Count);
        _bench.Transport.SetMsixControl(Enable);
        Assert.Equal(3, _bench.Sent.Count);

        // A device that stops says so by the configuration's vector.
        _bench.Write(Driver.DriverArea + 2, (ushort)999);
        _bench.Serve();
        Assert.Equal((0xfee0_0000UL, 0x30u), _bench.Sent[^1]);
    }

    [Fact]
    public void AReset_StopsTheQueue()
    {
        Driver driver = Driver.Create(_bench, 16, VirtioFeature.Version1);
        driver.Offer(false, new Piece(In, 4, false));
        _bench.Status = 0;
        _bench.Serve();
        Assert.Null(driver.Take());
        Assert.False(_bench.Line);
    }

    [Fact]
    public void Accesses_OfNothing_DoNothing()
    {
        foreach (int at in new[] { 56, 0xffe, 0x1001, 0x2006, 0x3ffe, 0x4020, 0x5fff, 0x6008, 0x7000, 0x7ffe, 0x8000 })
        {
            foreach (int bytes in new[] { 1, 2, 4, 8 })
            {
                _bench.Set(at, bytes, ulong.MaxValue);
                Assert.Equal(0u, _bench.Get(at, bytes));
            }
        }
        Assert.Equal(0, _bench.Status);
    }
}

namespace Ring3.Virtio.Tests;

/// <summary>Memory that goes back.</summary>
public sealed class BalloonDeviceTests : IDisposable
{
    private const ulong List = 0x8_0000;
    private readonly List<(ulong Gpa, ulong Bytes)> _released = [];
    private readonly Bench _bench;

    public BalloonDeviceTests() => _bench = new Bench(m => new BalloonDevice(m, (gpa, bytes) => _released.Add((gpa, bytes))));

    public void Dispose() => _bench.Dispose();

    private SplitDriver Start(int queue)
    {
        const ulong Features = VirtioFeature.Version1 | BalloonDevice.Reporting;
        _bench.Negotiate(Features);
        _bench.Enable(queue, 16, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        _bench.Ready();
        return new SplitDriver(_bench, 16, Features);
    }

    [Fact]
    public void ReportedRanges_GoBackInWholePages()
    {
        SplitDriver driver = Start(2);
        driver.Offer(false, new Piece(0x20_0000, 0x20_0000, true), new Piece(0x7ff, 0x2900, true), new Piece(0x5001, 0x1ffe, true));
        _bench.Serve(2);
        Assert.Equal(0u, driver.Take()!.Value.Written);
        Assert.Equal([(0x20_0000, 0x20_0000), (0x1000, 0x2000)], _released);
    }

    [Fact]
    public void RangesAtTheEndOfTheAddressSpace_DoNotWrap()
    {
        SplitDriver driver = Start(2);
        driver.Offer(false, new Piece(ulong.MaxValue - 0x1ffe, 0x1ffe, true));
        _bench.Serve(2);
        Assert.All(_released, r => Assert.True(r.Gpa + r.Bytes > r.Gpa || r.Gpa + r.Bytes == 0));
    }

    [Fact]
    public void PagesOfTheBalloon_GoBackAsRuns()
    {
        SplitDriver driver = Start(0);
        uint[] pages = [5, 6, 7, 3, 9, 10];
        for (int i = 0; i < pages.Length; i++)
            _bench.Write(List + 4UL * (uint)i, pages[i]);
        driver.Offer(false, new Piece(List, 24, false));
        _bench.Serve(0);
        Assert.Equal([(0x5000, 0x3000), (0x3000, 0x1000), (0x9000, 0x2000)], _released);
    }

    [Fact]
    public void ListsThatAreNoMemory_StopTheDevice()
    {
        SplitDriver driver = Start(0);
        driver.Offer(false, new Piece(Bench.RamBytes, 24, false));
        _bench.Serve(0);
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
        Assert.Empty(_released);
    }

    [Fact]
    public void WhatTheDriverSaysThatItHas_IsKeptAndNothingElse()
    {
        _bench.Set(VirtioTransport.DeviceAt, 4, 7);
        _bench.Set(VirtioTransport.DeviceAt + 4, 4, 9);
        Assert.Equal(9UL << 32, _bench.Get(VirtioTransport.DeviceAt, 8));
    }
}

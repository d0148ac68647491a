using System.Text;

namespace Ring3.Virtio.Tests;

/// <summary>Ports of a console: what is said about them, and bytes both ways.</summary>
public sealed class ConsoleDeviceTests : IDisposable
{
    private const ulong Message = 0x8_0000, Buffers = 0x9_0000;
    private readonly StringBuilder _written = new();
    private readonly Bench _bench;

    public ConsoleDeviceTests() =>
        _bench = new Bench(m => new ConsoleDevice(m, [("terminal", _ => { }), ("input", data => _written.Append(Encoding.ASCII.GetString(data)))]));

    public void Dispose() => _bench.Dispose();

    private ConsoleDevice Device => (ConsoleDevice)_bench.Device;

    /// <summary>A driver whose queue 0 is the device's queue <paramref name="queue"/>.</summary>
    private SplitDriver Start(int queue, ulong features = ConsoleDevice.MultiPort)
    {
        features |= VirtioFeature.Version1;
        _bench.Negotiate(features);
        _bench.Enable(queue, 16, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        _bench.Ready();
        return new SplitDriver(_bench, 16, features);
    }

    /// <summary>The driver says something on the control queue.</summary>
    private void Say(SplitDriver driver, uint port, ushort what, ushort value)
    {
        _bench.Write(Message, port);
        _bench.Write(Message + 4, what);
        _bench.Write(Message + 6, value);
        driver.Offer(false, new Piece(Message, 8, false));
        _bench.Serve(3);
        Assert.NotNull(driver.Take());
    }

    [Fact]
    public void WhatTheGuestWrites_ArrivesInOrder()
    {
        SplitDriver driver = Start(5);
        foreach (string text in (string[])["first ", "second ", "third"])
        {
            Assert.True(_bench.Memory.Write(Buffers, Encoding.ASCII.GetBytes(text)));
            driver.Offer(false, new Piece(Buffers, 3, false), new Piece(Buffers + 3, (uint)text.Length - 3, false));
            _bench.Serve(5);
            Assert.Equal(0u, driver.Take()!.Value.Written);
        }
        Assert.Equal("first second third", _written.ToString());
    }

    [Fact]
    public void Ports_AreToldOfWhenTheDriverListens()
    {
        SplitDriver control = Start(3);
        Say(control, 0, 0, 1);
        Say(control, 1, 3, 1);
        Assert.Equal(0, _bench.Status & VirtioStatus.NeedsReset);
        VirtQueue queue = Device.Queues[2];
        SplitDriver driver = Start(2);
        driver.Offer(false, new Piece(Buffers, 64, true));
        Assert.Equal(12, Device.Give(queue, [1, 0, 0, 0, 7, 0, 1, 0, 0x61, 0x62, 0x63, 0x64], whole: true));
        Assert.Equal(12u, driver.Take()!.Value.Written);
        Assert.Equal(0x64, _bench.Read<byte>(Buffers + 11));
    }

    [Fact]
    public void Input_WaitsForTheGuestToOpenThePort()
    {
        SplitDriver driver = Start(4);
        Assert.False(Device.IsOpen(1));
        driver.Offer(false, new Piece(Buffers, 3, true));
        driver.Offer(false, new Piece(Buffers + 16, 16, true));
        bool? sent = null;
        var sender = new Thread(() => sent = Device.Send(1, "abcdef"u8));
        sender.Start();
        Open(1);
        sender.Join();
        Assert.True(sent);
        Assert.Equal(3u, driver.Take()!.Value.Written);
        Assert.Equal(3u, driver.Take()!.Value.Written);
        Assert.Equal((byte)'d', _bench.Read<byte>(Buffers + 16));
        sender = new Thread(() => sent = Device.Send(1, "more"u8));
        sender.Start();
        Device.StopInput();
        sender.Join();
        Assert.False(sent);
    }

    /// <summary>As a control message would.</summary>
    private void Open(uint port)
    {
        _bench.Write(Message, port);
        _bench.Write(Message + 4, (ushort)6);
        _bench.Write(Message + 6, (ushort)1);
        // Queue 3 was not there when the driver began, so the device is asked directly.
        var chain = Device.Queues[3].NewChain();
        Assert.Null(chain.Add(Message, 8, writable: false, limit: 4));
        Assert.Equal(0u, Device.Serve(3, chain));
    }

    [Theory]
    [InlineData(4u)]
    [InlineData(0u)]
    public void ShortMessages_StopTheDevice(uint bytes)
    {
        SplitDriver driver = Start(3);
        driver.Offer(false, new Piece(Message, bytes, false));
        _bench.Serve(3);
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
    }

    [Fact]
    public void DriversThatAskAndDoNotListen_AreStopped()
    {
        SplitDriver driver = Start(3);
        for (int i = 0; i < 5000 && (_bench.Status & VirtioStatus.NeedsReset) == 0; i++)
        {
            _bench.Write(Message, 0u);
            _bench.Write(Message + 4, (ushort)0);
            _bench.Write(Message + 6, (ushort)1);
            driver.Offer(false, new Piece(Message, 8, false));
            _bench.Serve(3);
            _ = driver.Take();
        }
        Assert.NotEqual(0, _bench.Status & VirtioStatus.NeedsReset);
        Assert.Contains("listens", Assert.Single(_bench.Messages));
    }
}

namespace Ring3.Vmm.Tests.Devices;

public class SerialPortTests
{
    private const int Data = 0, Ier = 1, Iir = 2, Fcr = 2, Lcr = 3, Mcr = 4, Lsr = 5, Msr = 6, Scratch = 7;
    private readonly FakeLine _line = new();
    private readonly FakeSerial _sink = new();
    private readonly SerialPort _port;

    public SerialPortTests()
    {
        _port = new SerialPort(_line, _sink);
        _port.Out8(Mcr, 0x0b);
    }

    [Fact]
    public void Transmit_GoesToTheSinkAtOnce()
    {
        foreach (byte b in "ok"u8)
        {
            Assert.Equal(0x60, _port.In8(Lsr));
            _port.Out8(Data, b);
        }
        Assert.Equal("ok"u8.ToArray(), _sink.Bytes);
    }

    [Fact]
    public void Divisor_LivesBehindDlab()
    {
        _port.Out8(Lcr, 0x83);
        _port.Out8(Data, 0x34);
        _port.Out8(Ier, 0x12);
        Assert.Equal((0x34, 0x12), (_port.In8(Data), _port.In8(Ier)));
        _port.Out8(Lcr, 3);
        Assert.Equal(0, _port.In8(Ier));
        Assert.Empty(_sink.Bytes);
    }

    [Fact]
    public void Detection_As16550A()
    {
        _port.Out8(Scratch, 0xa5);
        Assert.Equal(0xa5, _port.In8(Scratch));
        Assert.Equal(1, _port.In8(Iir));
        _port.Out8(Fcr, 1);
        Assert.Equal(0xc1, _port.In8(Iir));
        _port.Out8(Ier, 0xff);
        Assert.Equal(0x0f, _port.In8(Ier));
    }

    [Fact]
    public void TransmitInterrupt_RisesWithEnableAndEndsWithIirRead()
    {
        _port.Out8(Ier, 2);
        Assert.True(_line.Level);
        Assert.Equal(2, _port.In8(Iir));
        Assert.False(_line.Level);
        Assert.Equal(1, _port.In8(Iir));
        _port.Out8(Data, (byte)'x');
        Assert.Equal((true, 2), (_line.Level, _line.Edges));
        _port.Out8(Ier, 0);
        Assert.False(_line.Level);
        _port.Out8(Ier, 2);
        Assert.Equal(3, _line.Edges);
    }

    [Theory]
    [InlineData(0x01, 1, 0xc4)]
    [InlineData(0xc1, 13, 0xcc)] // below the trigger level of 14: character timeout
    [InlineData(0xc1, 14, 0xc4)]
    [InlineData(0x41, 4, 0xc4)]
    public void ReceiveInterrupt_FollowsTheTrigger(byte fcr, int bytes, byte iir)
    {
        _port.Out8(Fcr, fcr);
        _port.Out8(Ier, 1);
        Assert.Equal(bytes, _port.Receive(new byte[bytes]));
        Assert.True(_line.Level);
        Assert.Equal(iir, _port.In8(Iir));
        for (int i = 0; i < bytes; i++)
        {
            Assert.Equal(0x61, _port.In8(Lsr));
            _ = _port.In8(Data);
        }
        Assert.Equal(0x60, _port.In8(Lsr));
        Assert.False(_line.Level);
    }

    [Fact]
    public void Receive_IsBounded()
    {
        Assert.Equal(65536, _port.Receive(new byte[70_000]));
        Assert.Equal(0, _port.Receive([1]));
        Assert.Equal(65536, _port.Pending);
    }

    [Fact]
    public void Loopback_ReturnsDataAndModemLines()
    {
        _port.Out8(Mcr, 0x1a);
        Assert.Equal(0x90, _port.In8(Msr) & 0xf0);
        _port.Out8(Data, 0x5a);
        Assert.Equal(0x5a, _port.In8(Data));
        Assert.Empty(_sink.Bytes);
        for (int i = 0; i < 17; i++)
            _port.Out8(Data, (byte)i);
        Assert.Equal(0x63, _port.In8(Lsr));
        _port.Out8(Mcr, 0x0b);
        Assert.Equal(0xb0, _port.In8(Msr) & 0xf0);
    }

    [Fact]
    public void Out2_GatesTheInterrupt()
    {
        _port.Out8(Mcr, 3);
        _port.Out8(Ier, 2);
        Assert.False(_line.Level);
        _port.Out8(Mcr, 0x0b);
        Assert.True(_line.Level);
    }

    [Fact]
    public void ModemStatus_DeltasInterruptOnce()
    {
        _ = _port.In8(Msr);
        _port.Out8(Mcr, 0x18);
        Assert.NotEqual(0, _port.In8(Msr) & 0x0f);
        Assert.Equal(0, _port.In8(Msr) & 0x0f);
        _port.Out8(Ier, 8);
        _port.Out8(Mcr, 0x0b);
        Assert.Equal(0, _port.In8(Iir));
        _ = _port.In8(Msr);
        Assert.False(_line.Level);
    }
}

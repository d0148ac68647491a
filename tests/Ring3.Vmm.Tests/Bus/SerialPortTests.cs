namespace Ring3.Vmm.Tests.Bus;

public class SerialPortTests
{
    private sealed class Collect : ISerialSink
    {
        public readonly List<byte> Bytes = [];
        public void Transmit(byte value) => Bytes.Add(value);
    }

    private readonly Collect _sink = new();
    private readonly List<bool> _levels = [];
    private readonly SerialPort _port;

    public SerialPortTests() => _port = new SerialPort(new SharedLineTests.Lambda(_levels.Add), _sink);

    private byte In(ulong register)
    {
        Span<byte> b = stackalloc byte[1];
        _port.Read(register, b);
        return b[0];
    }

    private void Out(ulong register, byte value) => _port.Write(register, [value]);

    [Fact]
    public void TransmitsAndInterruptsWhenTheTransmitterIsEmpty()
    {
        Out(4, 0xb);
        Out(1, 2);
        Assert.True(_levels[^1]);
        Assert.Equal(2, In(2) & 15);
        Assert.False(_levels[^1]);
        Assert.Equal(1, In(2) & 15);
        Out(0, (byte)'x');
        Assert.True(_levels[^1]);
        Assert.Equal([(byte)'x'], _sink.Bytes);
        Assert.Equal(0x60, In(5) & 0x60);
    }

    [Fact]
    public void InputWaitsUntilTheGuestListens()
    {
        Assert.Equal(5, _port.Receive("hello"u8));
        Out(2, 7); // probing drivers reset the FIFO
        Assert.Equal(0, In(5) & 1);
        Out(4, 0xb);
        Out(1, 1);
        Assert.True(_levels[^1]);
        string text = "";
        while ((In(5) & 1) != 0)
            text += (char)In(0);
        Assert.Equal("hello", text);
        Assert.False(_levels[^1]);
    }

    [Fact]
    public void LoopbackDoesNotReachTheSink()
    {
        Out(4, 0x1a);
        Assert.Equal(0x90, In(6) & 0xf0);
        Out(0, 0x55);
        Assert.Equal(0x55, In(0));
        Assert.Empty(_sink.Bytes);
    }

    [Fact]
    public void DivisorLatchAndScratch()
    {
        Out(3, 0x83);
        Out(0, 0x34);
        Out(1, 0x12);
        Assert.Equal(0x34, In(0));
        Assert.Equal(0x12, In(1));
        Out(3, 3);
        Out(7, 0xa5);
        Assert.Equal(0xa5, In(7));
        Assert.Empty(_sink.Bytes);
        Out(2, 1);
        Assert.Equal(0xc0, In(2) & 0xc0);
    }

    [Fact]
    public void NeverTakesMoreInputThanItsLimit()
    {
        int total = 0, n;
        while ((n = _port.Receive(new byte[10000])) != 0)
            total += n;
        Assert.Equal(1 << 16, total);
    }

    /// <summary>Firmware reads on the guest's behalf what the guest has not: first the FIFO, then the backlog.</summary>
    [Fact]
    public void FirmwareReadsInOrder()
    {
        Assert.Equal(-1, _port.Peek(0));
        Out(4, 8);
        Out(1, 1);
        _port.Receive([.. Enumerable.Range(0, 20).Select(i => (byte)i)]);
        Assert.Equal([0, 15, 16, 19, -1], new[] { 0, 15, 16, 19, 20 }.Select(_port.Peek));
        _port.Discard(17);
        Assert.Equal(17, In(0));
        _port.Discard(5);
        Assert.Equal((-1, 0), (_port.Peek(0), _port.Pending));
        _port.WaitForInput(0);
    }
}

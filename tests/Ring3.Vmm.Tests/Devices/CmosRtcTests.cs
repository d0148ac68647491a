namespace Ring3.Vmm.Tests.Devices;

public class CmosRtcTests
{
    private const long Second = 1_000_000_000;

    /// <summary>Thursday 2024-02-29 23:59:58.25 UTC.</summary>
    private static readonly long s_start = (long)(new DateTime(2024, 2, 29, 23, 59, 58, DateTimeKind.Utc) - DateTime.UnixEpoch).TotalSeconds * Second
        + Second / 4;

    private readonly FakeLine _line = new();
    private readonly FakeTimers _timers = new();
    private readonly CmosRtc _rtc;

    public CmosRtcTests() => _rtc = new CmosRtc(_line, _timers, s_start, e => throw e);

    private byte Get(byte index)
    {
        _rtc.Out8(0, index);
        return _rtc.In8(1);
    }

    private void Put(byte index, byte value)
    {
        _rtc.Out8(0, index);
        _rtc.Out8(1, value);
    }

    private string Time => string.Join(" ", ((byte[])[0x32, 9, 8, 7, 6, 4, 2, 0]).Select(i => Get(i).ToString("x2")));

    [Fact]
    public void Time_CountsAndRollsOver()
    {
        Assert.Equal("20 24 02 29 05 23 59 58", Time);
        _timers.Advance(Second);
        Assert.Equal("20 24 02 29 05 23 59 59", Time);
        _timers.Advance(Second);
        Assert.Equal("20 24 03 01 06 00 00 00", Time);
    }

    [Theory]
    [InlineData(0x02, 0x23)]  // BCD, 24 hours
    [InlineData(0x06, 23)]    // binary, 24 hours
    [InlineData(0x00, 0x91)]  // BCD, 11 pm
    [InlineData(0x04, 0x8b)]  // binary, 11 pm
    public void Formats_Hour(byte registerB, byte hour)
    {
        Put(0xb, registerB);
        Assert.Equal(hour, Get(4));
        Put(4, hour);
        Assert.Equal(hour, Get(4));
        _timers.Advance(2 * Second);
        Assert.Equal((registerB & 2) != 0 ? 0 : (registerB & 4) != 0 ? 12 : 0x12, Get(4));
    }

    [Fact]
    public void Set_HoldsTheClockWhileItIsWritten()
    {
        Put(0xb, 0x82);
        byte[][] fields = [[0x32, 0x19], [9, 0x99], [8, 0x12], [7, 0x31], [4, 0x23], [2, 0x59], [0, 0x30]];
        foreach (byte[] f in fields)
            Put(f[0], f[1]);
        _timers.Advance(5 * Second);
        Assert.Equal(0x30, Get(0));
        Put(0xb, 0x02);
        _timers.Advance(30 * Second);
        Assert.Equal("20 00 01 01", Time[..11]);
    }

    [Fact]
    public void UpdateInProgress_ShowsBeforeTheSecondTurns()
    {
        Assert.Equal(0x26, Get(0xa));
        _timers.Advance(Second * 3 / 4 - 100_000);
        Assert.Equal(0xa6, Get(0xa));
        _timers.Advance(100_000);
        Assert.Equal(0x26, Get(0xa));
    }

    [Fact]
    public void UpdateEnded_InterruptsEachSecond()
    {
        Put(0xb, 0x12);
        _timers.Advance(Second * 3 / 4);
        Assert.Equal((true, 1), (_line.Level, _line.Edges));
        Assert.Equal(0x90, Get(0xc) & ~0x40);
        Assert.False(_line.Level);
        Assert.Equal(0, Get(0xc));
        Put(1, 0x33);
        _timers.Advance(3 * Second);
        Assert.Equal(2, _line.Edges);
        Put(0xb, 0x02);
        Assert.False(_line.Level);
        Assert.Equal(0, _timers.Armed);
    }

    [Theory]
    [InlineData(0x10, 0x00, 0x00, 12)]  // at 00:00:10
    [InlineData(0x59, 0x59, 0x23, 1)]
    [InlineData(0xff, 0xff, 0xff, 1)]   // every second
    [InlineData(0x05, 0xc0, 0xc0, 7)]
    public void Alarm_FiresAtItsTime(byte second, byte minute, byte hour, int after)
    {
        Put(1, second);
        Put(3, minute);
        Put(5, hour);
        Put(0xb, 0x22);
        _timers.Advance(after * Second - Second / 4 - 1);
        Assert.False(_line.Level);
        _timers.Advance(1);
        Assert.True(_line.Level);
        Assert.Equal(0xb0, Get(0xc) & ~0x40);
    }

    [Theory]
    [InlineData(6, 1024)]
    [InlineData(3, 8192)]
    [InlineData(15, 2)]
    [InlineData(1, 256)]
    [InlineData(2, 128)]
    public void Periodic_HasTheSelectedRate(byte rate, int hz)
    {
        Put(0xa, (byte)(0x20 | rate));
        Put(0xb, 0x42);
        int ticks = 0;
        long step = Second / hz / 2;
        for (long t = 0; t < Second; t += step)
        {
            _timers.Advance(step);
            if (!_line.Level)
                continue;
            Assert.Equal(0xc0, Get(0xc) & 0xc0);
            ticks++;
        }
        Assert.InRange(ticks, hz - 1, hz + 1);
    }

    [Fact]
    public void Flags_AreSetWithoutInterruptEnable()
    {
        _timers.Advance(Second);
        Assert.Equal(0x50, Get(0xc));
        _timers.Advance(Second); // the alarm registers are zero: midnight matches
        Assert.Equal(0x70, Get(0xc));
        Assert.Equal(0, _line.Edges);
    }

    [Fact]
    public void Nvram_HoldsBytesAndMemorySizes()
    {
        _rtc.SetMachine(0xc000_0000, 0x1_4000_0000, 4);
        Assert.Equal(0x80, Get(0x15));
        Assert.Equal(0x02, Get(0x16));
        Assert.Equal(0xff, Get(0x17));
        Assert.Equal(0xbf00, Get(0x34) | Get(0x35) << 8);
        Assert.Equal(0x14000, Get(0x5b) | Get(0x5c) << 8 | Get(0x5d) << 16);
        Assert.Equal(3, Get(0x5f));
        Put(0x8f, 0x0a); // bit 7 of the index masks NMI
        Assert.Equal(0x0a, Get(0x0f));
        Assert.Equal(0x80, Get(0xd));
        Put(0xd, 0);
        Assert.Equal(0x80, Get(0xd));
        Assert.Equal(0xff, _rtc.In8(0));
    }
}

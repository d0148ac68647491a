namespace Ring3.Irqchip.Tests;

public class PitTests
{
    private const long Second = 1_000_000_000;

    private static (Rig Rig, Pit Pit) NewPit()
    {
        var rig = new Rig();
        rig.Redirect(0, 0x30);
        return (rig, rig.Chip.CreatePit(speaker: true)!);
    }

    private static void Program(Pit pit, int channel, int mode, ushort count, bool bcd = false)
    {
        pit.Write(0x43, (byte)(channel << 6 | 0x30 | mode << 1 | (bcd ? 1 : 0)));
        pit.Write((ushort)(0x40 + channel), (byte)count);
        pit.Write((ushort)(0x40 + channel), (byte)(count >> 8));
    }

    private static int Count(Pit pit, int channel)
    {
        pit.Write(0x43, (byte)(channel << 6));
        return pit.Read((ushort)(0x40 + channel)) | pit.Read((ushort)(0x40 + channel)) << 8;
    }

    /// <summary>Nanoseconds after which at least <paramref name="ticks"/> input clocks have passed.</summary>
    private static long Ns(long ticks) => (ticks * Second + PitChannel.FrequencyHz - 1) / PitChannel.FrequencyHz;

    /// <summary>Counter and OUT pin of channel 2 for each mode, count 1000, after a number of clocks.</summary>
    [Theory]
    [InlineData(0, 0, 1000, false)]
    [InlineData(0, 400, 600, false)]
    [InlineData(0, 1000, 0, true)]
    [InlineData(0, 1001, 65535, true)]
    [InlineData(1, 400, 600, false)]
    [InlineData(1, 1000, 0, true)]
    [InlineData(2, 400, 600, true)]
    [InlineData(2, 999, 1, false)]
    [InlineData(2, 1000, 1000, true)]
    [InlineData(2, 2400, 600, true)]
    [InlineData(3, 100, 800, true)]
    [InlineData(3, 499, 2, true)]
    [InlineData(3, 500, 1000, false)]
    [InlineData(3, 600, 800, false)]
    [InlineData(3, 1000, 1000, true)]
    [InlineData(4, 400, 600, true)]
    [InlineData(4, 1000, 0, false)]
    [InlineData(4, 1001, 65535, true)]
    [InlineData(5, 1000, 0, false)]
    public void Modes_CounterAndOut(int mode, int ticks, int count, bool output)
    {
        (Rig rig, Pit pit) = NewPit();
        pit.Write(0x61, 1);
        Program(pit, 2, mode, 1000);
        rig.Timers.Advance(Ns(ticks));
        Assert.Equal(count, Count(pit, 2));
        Assert.Equal(output, (pit.Read(0x61) & 0x20) != 0);
    }

    [Fact]
    public void Gate_PausesMode0AndRestartsMode3()
    {
        (Rig rig, Pit pit) = NewPit();
        pit.Write(0x61, 0);
        Program(pit, 2, 0, 1000);
        rig.Timers.Advance(Ns(500));
        Assert.Equal(1000, Count(pit, 2));
        pit.Write(0x61, 1);
        rig.Timers.Advance(Ns(300));
        pit.Write(0x61, 0);
        rig.Timers.Advance(Ns(300));
        Assert.Equal(700, Count(pit, 2));
        pit.Write(0x61, 3);
        Assert.Equal(3, pit.Read(0x61) & 3);
        Program(pit, 2, 3, 1000);
        rig.Timers.Advance(Ns(300));
        pit.Write(0x61, 0);
        pit.Write(0x61, 1);
        Assert.Equal(1000, Count(pit, 2));
    }

    [Fact]
    public void Latch_HoldsUntilRead_AndReadBackGivesStatusFirst()
    {
        (Rig rig, Pit pit) = NewPit();
        Program(pit, 0, 2, 10_000);
        rig.Timers.Advance(Ns(100));
        pit.Write(0x43, 0);
        rig.Timers.Advance(Ns(100));
        pit.Write(0x43, 0);
        Assert.Equal(9900, pit.Read(0x40) | pit.Read(0x40) << 8);
        Assert.Equal(9800, Count(pit, 0));
        pit.Write(0x43, 0xc2);
        rig.Timers.Advance(Ns(50));
        Assert.Equal(0xb4, pit.Read(0x40));
        Assert.Equal(9800, pit.Read(0x40) | pit.Read(0x40) << 8);
        pit.Write(0x43, 0x34);
        pit.Write(0x43, 0xe2);
        Assert.Equal(0x40, pit.Read(0x40) & 0x40);
    }

    [Fact]
    public void AccessModes_AndBcd()
    {
        (Rig rig, Pit pit) = NewPit();
        pit.Write(0x43, 0x54); // channel 1, low byte
        pit.Write(0x41, 0x80);
        Assert.Equal(0x80, pit.Read(0x41));
        pit.Write(0x43, 0x64); // channel 1, high byte
        pit.Write(0x41, 0x12);
        Assert.Equal(0x12, pit.Read(0x41));
        Program(pit, 2, 0, 0x1000, bcd: true);
        pit.Write(0x61, 1);
        rig.Timers.Advance(Ns(1));
        Assert.Equal(0x0999, Count(pit, 2));
    }

    [Theory]
    [InlineData(2)]
    [InlineData(3)]
    public void Channel0_TicksPeriodically(int mode)
    {
        (Rig rig, Pit pit) = NewPit();
        pit.SetReinject(false);
        Program(pit, 0, mode, 11932); // 100 Hz
        int ticks = 0;
        for (int ms = 0; ms < 1000; ms++)
        {
            rig.Timers.Advance(1_000_000);
            if (rig.Apics[0].AckInterrupt() != 0x30)
                continue;
            ticks++;
            rig.Apics[0].SetEoi();
        }
        Assert.InRange(ticks, 99, 100);
    }

    [Theory]
    [InlineData(0)]
    [InlineData(4)]
    public void Channel0_OneShotFiresOnce(int mode)
    {
        (Rig rig, Pit pit) = NewPit();
        Program(pit, 0, mode, 1193);
        rig.Timers.Advance(Ns(1192));
        Assert.Equal(0u, rig.Requested(0x30));
        rig.Timers.Advance(1_000);
        Assert.Equal(0x30, rig.Apics[0].AckInterrupt());
        rig.Apics[0].SetEoi();
        rig.Timers.Advance(Second);
        Assert.Equal(0u, rig.Requested(0x30));
    }

    [Theory]
    [InlineData(true, 6)]
    [InlineData(false, 2)]
    public void Reinjection_DeliversMissedTicks(bool reinject, int expected)
    {
        (Rig rig, Pit pit) = NewPit();
        pit.SetReinject(reinject);
        Program(pit, 0, 2, 11932);
        rig.Timers.Advance(10_000_500);
        Assert.Equal(0x30, rig.Apics[0].AckInterrupt()); // the guest is slow: five more periods pass
        rig.Timers.Advance(50_000_500);
        int ticks = 1;
        rig.Apics[0].SetEoi();
        while (rig.Apics[0].AckInterrupt() == 0x30)
        {
            ticks++;
            rig.Apics[0].SetEoi();
        }
        Assert.Equal(expected, ticks);
    }

    [Fact]
    public void Reinjection_ThroughThePic()
    {
        var rig = new Rig();
        Pit pit = rig.Chip.CreatePit(speaker: false)!;
        PicPair pic = rig.Chip.Pic!;
        foreach ((ushort port, byte value) in (ReadOnlySpan<(ushort, byte)>)[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, 1), (0x21, 0xfe)])
            pic.Write(port, value);
        Program(pit, 0, 2, 11932);
        rig.Timers.Advance(30_001_000);
        int ticks = 0;
        while (rig.Chip.HasInterrupt(rig.Apics[0]))
        {
            Assert.Equal(0x20, rig.Chip.AckInterrupt(rig.Apics[0]));
            pic.Write(0x20, 0x20);
            ticks++;
        }
        Assert.Equal(3, ticks);
        Assert.False(pit.ClaimsPort(0x61));
    }

    [Fact]
    public void HpetLegacy_StopsChannel0()
    {
        (Rig rig, Pit pit) = NewPit();
        Program(pit, 0, 2, 11932);
        Abi.kvm_pit_state2 state = pit.GetState();
        Assert.Equal(11932u, state.channels[0].count);
        Assert.Equal(2, state.channels[0].mode);
        state.flags = Abi.KvmApi.KVM_PIT_FLAGS_HPET_LEGACY;
        pit.SetState(state);
        rig.Timers.Advance(Second);
        Assert.Equal(0u, rig.Requested(0x30));
        state.flags = 0;
        pit.SetState(state);
        rig.Timers.Advance(10_100_000);
        Assert.Equal(1u, rig.Requested(0x30));
    }

    [Fact]
    public void NmiWatchdog_FollowsLint0()
    {
        (Rig rig, Pit pit) = NewPit();
        rig.Write(0, ApicRegister.LVT_LINT0, 0x400);
        Program(pit, 0, 2, 11932);
        rig.Timers.Advance(10_100_000);
        Assert.Equal(1, rig.Vcpus[0].Nmis);
    }
}

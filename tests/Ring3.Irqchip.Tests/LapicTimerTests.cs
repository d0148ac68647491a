namespace Ring3.Irqchip.Tests;

public class LapicTimerTests
{
    private const uint Vector = 0xec, Periodic = 1 << 17, Deadline = 2 << 17;

    [Theory]
    [InlineData(0xb, 1)]
    [InlineData(0x0, 2)]
    [InlineData(0x1, 4)]
    [InlineData(0x2, 8)]
    [InlineData(0x3, 16)]
    [InlineData(0x8, 32)]
    [InlineData(0x9, 64)]
    [InlineData(0xa, 128)]
    public void OneShot_CountsDownAtTheDividedBusClock(uint tdcr, int divide)
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.TDCR, tdcr);
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        Assert.Equal(1000u, rig.Read(0, ApicRegister.TMCCT));
        rig.Timers.Advance(400 * divide);
        Assert.Equal(600u, rig.Read(0, ApicRegister.TMCCT));
        rig.Timers.Advance(600 * divide - 1);
        Assert.Equal(0u, rig.Requested((int)Vector));
        rig.Timers.Advance(1);
        Assert.Equal(1u, rig.Requested((int)Vector));
        Assert.Equal(0u, rig.Read(0, ApicRegister.TMCCT));
        Assert.Equal(0, rig.Timers.Armed);
    }

    [Fact]
    public void BusPeriod_ScalesTheTimer()
    {
        var rig = new Rig();
        rig.Chip.Bus.BusPeriodNs = 40;
        rig.Write(0, ApicRegister.TDCR, 0xb);
        rig.Write(0, ApicRegister.TMICT, 100);
        rig.Timers.Advance(2000);
        Assert.Equal(50u, rig.Read(0, ApicRegister.TMCCT));
    }

    [Fact]
    public void Periodic_FiresEachPeriodAndCoalescesMissedTicks()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.TDCR, 0xb);
        rig.Write(0, ApicRegister.LVT_TIMER, Periodic | Vector);
        rig.Write(0, ApicRegister.TMICT, 1_000_000);
        for (int i = 0; i < 5; i++)
        {
            rig.Timers.Advance(1_000_000);
            Assert.Equal((int)Vector, rig.Apics[0].AckInterrupt());
            rig.Apics[0].SetEoi();
        }
        rig.Timers.Stall(3_500_000);
        rig.Timers.Advance(0);
        Assert.Equal((int)Vector, rig.Apics[0].AckInterrupt());
        rig.Apics[0].SetEoi();
        Assert.Equal(-1, rig.Apics[0].AckInterrupt());
        Assert.Equal(500_000u, rig.Read(0, ApicRegister.TMCCT));
        rig.Timers.Advance(500_000);
        Assert.True(rig.Apics[0].HasInterrupt());
        rig.Write(0, ApicRegister.TMICT, 0);
        Assert.Equal(0, rig.Timers.Armed);
    }

    [Fact]
    public void Periodic_IsLimitedToTheMinimumPeriod()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, Periodic | Vector);
        rig.Write(0, ApicRegister.TMICT, 1);
        Assert.Equal(rig.Timers.NowNs + 200_000, rig.Apics[0].TimerDeadlineNs);
    }

    [Fact]
    public void Masked_TimerCountsButDeliversNothing()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, 0x10000 | Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Advance(10_000);
        Assert.Equal(0u, rig.Requested((int)Vector));
    }

    [Fact]
    public void Divider_ChangeKeepsTheRemainingCount()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.TDCR, 0xb);
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Advance(500);
        rig.Write(0, ApicRegister.TDCR, 0);
        Assert.Equal(500u, rig.Read(0, ApicRegister.TMCCT));
        rig.Timers.Advance(999);
        Assert.Equal(0u, rig.Requested((int)Vector));
        rig.Timers.Advance(1);
        Assert.Equal(1u, rig.Requested((int)Vector));
    }

    [Fact]
    public void TscDeadline_FiresAtTheGuestsTime()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        apic.TscDeadline = 123;
        Assert.Equal(0ul, apic.TscDeadline);
        rig.Write(0, ApicRegister.LVT_TIMER, Deadline | Vector);
        rig.Write(0, ApicRegister.TMICT, 55);
        Assert.Equal(0u, rig.Read(0, ApicRegister.TMICT));
        ulong target = rig.Vcpus[0].GuestTsc() + 2001;
        apic.TscDeadline = target;
        Assert.Equal(target, apic.TscDeadline);
        rig.Timers.Advance(1000);
        Assert.Equal(0u, rig.Requested((int)Vector));
        rig.Timers.Advance(1);
        Assert.Equal(1u, rig.Requested((int)Vector));
        Assert.Equal(0ul, apic.TscDeadline);
    }

    [Fact]
    public void TscDeadline_PastFiresAtOnceZeroDisarms()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        rig.Write(0, ApicRegister.LVT_TIMER, Deadline | Vector);
        apic.TscDeadline = 1;
        rig.Timers.Advance(0);
        Assert.Equal(1u, rig.Requested((int)Vector));
        apic.TscDeadline = ulong.MaxValue;
        Assert.Equal(1, rig.Timers.Armed);
        apic.TscDeadline = 0;
        Assert.Equal(0, rig.Timers.Armed);
        apic.TscDeadline = rig.Vcpus[0].GuestTsc() + 1000;
        rig.Vcpus[0].TscOffset = -2000;
        apic.RestartTscDeadline();
        Assert.Equal(rig.Timers.NowNs + 1500, apic.TimerDeadlineNs);
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        Assert.Equal(0, rig.Timers.Armed);
        Assert.Equal(0ul, apic.TscDeadline);
    }

    [Fact]
    public void TscDeadline_AtOrBeforeNow_IsPendingWhenTheWriteReturns()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        rig.Write(0, ApicRegister.LVT_TIMER, Deadline | Vector);
        foreach (ulong ago in (ulong[])[0, 1, 100_000])
        {
            apic.TscDeadline = rig.Vcpus[0].GuestTsc() - ago;
            Assert.Equal(0ul, apic.TscDeadline);
            Assert.Equal((int)Vector, apic.AckInterrupt());
            apic.SetEoi();
            Assert.Equal(long.MaxValue, apic.TimerDeadlineNs);
        }
        apic.TscDeadline = rig.Vcpus[0].GuestTsc() + 1000;
        rig.Vcpus[0].TscOffset = 5000;
        apic.RestartTscDeadline();
        Assert.Equal((int)Vector, apic.AckInterrupt());
    }

    [Fact]
    public void TscDeadline_IsNeverEarlyByTheGuestsClock()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        rig.Write(0, ApicRegister.LVT_TIMER, Deadline | Vector);
        apic.TscDeadline = rig.Vcpus[0].GuestTsc() + 2000;
        // The host's clock runs ahead of the TSC.
        rig.Vcpus[0].TscOffset = -100;
        rig.Timers.Stall(1000);
        apic.PollTimer();
        Assert.False(apic.HasInterrupt());
        Assert.Equal(rig.Timers.NowNs + 50, apic.TimerDeadlineNs);
        rig.Timers.Advance(50);
        Assert.True(apic.HasInterrupt());
    }

    /// <summary>The host was busy and nobody has looked since the deadline: what the guest does next finds the timer expired, and cannot undo it.</summary>
    [Theory]
    [InlineData(ApicRegister.LVT_TIMER, 0x10000 | Vector)]
    [InlineData(ApicRegister.LVT_TIMER, Periodic | Vector)]
    [InlineData(ApicRegister.LVT_TIMER, Deadline | Vector)]
    [InlineData(ApicRegister.TMICT, 0)]
    [InlineData(ApicRegister.TMICT, 5000)]
    [InlineData(ApicRegister.TDCR, 0xb)]
    [InlineData(ApicRegister.SVR, 0xff)]
    public void ExpiredOneShot_IsPendingBeforeARegisterChanges(int register, uint value)
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Stall(2000);
        rig.Write(0, register, value);
        Assert.Equal(1u, rig.Requested((int)Vector));
    }

    [Theory]
    [InlineData(1999, true)]
    [InlineData(2000, false)]
    [InlineData(2001, false)]
    [InlineData(9000, false)]
    public void OneShot_ThatReadsZeroStaysExpiredInPeriodicMode(int elapsedNs, bool counts)
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Stall(elapsedNs);
        Assert.Equal(counts, rig.Read(0, ApicRegister.TMCCT) != 0);
        rig.Write(0, ApicRegister.LVT_TIMER, Periodic | Vector);
        Assert.Equal(counts, rig.Timers.Armed == 1);
        Assert.Equal(counts, rig.Apics[0].AckInterrupt() < 0);
        rig.Timers.Advance(1_000_000);
        Assert.Equal(counts, rig.Requested((int)Vector) == 1);
    }

    [Fact]
    public void PollTimer_FiresOnce()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Stall(5000);
        rig.Apics[0].PollTimer(rig.Timers.NowNs);
        Assert.Equal((int)Vector, rig.Apics[0].AckInterrupt());
        rig.Apics[0].SetEoi();
        rig.Timers.Advance(0);
        Assert.False(rig.Apics[0].HasInterrupt());
    }

    [Fact]
    public void State_ShowsWhatHasExpired()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_TIMER, Vector);
        rig.Write(0, ApicRegister.TMICT, 1000);
        rig.Timers.Stall(5000);
        var page = new byte[Lapic.StateSize];
        rig.Apics[0].GetState(page);
        Assert.NotEqual(0, page[ApicRegister.IRR + (int)(Vector >> 5) * 16 + ((int)Vector >> 3 & 3)] >> ((int)Vector & 7) & 1);
    }

    [Fact]
    public void State_CarriesTheRunningTimer()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.TDCR, 0xb);
        rig.Write(0, ApicRegister.LVT_TIMER, Periodic | Vector);
        rig.Write(0, ApicRegister.TMICT, 1_000_000);
        rig.Timers.Advance(300_000);
        var page = new byte[Lapic.StateSize];
        rig.Apics[0].GetState(page);
        var other = new Rig();
        Assert.True(other.Apics[0].SetState(page));
        Assert.Equal(other.Timers.NowNs + 700_000, other.Apics[0].TimerDeadlineNs);
        other.Timers.Advance(700_000);
        Assert.Equal(1u, other.Requested((int)Vector));
        Assert.Equal(other.Timers.NowNs + 1_000_000, other.Apics[0].TimerDeadlineNs);
    }
}

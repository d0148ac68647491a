namespace Ring3.Irqchip.Tests;

public class IoapicTests
{
    private const uint Level = 1 << 15, Masked = 1 << 16, RemoteIrr = 1 << 14;

    private static void Eoi(Rig rig, int vcpu = 0)
    {
        Assert.True(rig.Apics[vcpu].AckInterrupt() >= 0);
        rig.Apics[vcpu].SetEoi();
    }

    [Fact]
    public void Registers_IdVersionAndReset()
    {
        var rig = new Rig();
        Assert.Equal(0x0017_0011u, rig.ReadIoapic(1));
        rig.WriteIoapic(0, 0x0f00_0000);
        Assert.Equal(0x0f00_0000u, rig.ReadIoapic(0));
        Assert.Equal(Masked, rig.ReadIoapic(0x10));
        Assert.Equal(Masked, rig.ReadIoapic(0x3e));
        Assert.Equal(0u, rig.ReadIoapic(0x40));
        rig.Redirect(3, 0xffff_ffff, 0x12);
        Assert.Equal(0xffff_ffff & ~(RemoteIrr | 1 << 12), rig.ReadIoapic(0x16));
        Assert.Equal(0x1200_0000u, rig.ReadIoapic(0x17));
    }

    [Fact]
    public void Edge_DeliversOncePerRisingEdge()
    {
        var rig = new Rig(2);
        rig.Redirect(4, 0x34, 1);
        Assert.Equal(1, rig.Chip.Ioapic!.SetIrq(4, 0, true));
        Assert.Equal(0b10u, rig.Requested(0x34));
        Assert.Equal(0x34, rig.Apics[1].AckInterrupt());
        Assert.Equal(0, rig.Chip.Ioapic.SetIrq(4, 0, true));
        Assert.Equal(0u, rig.Requested(0x34));
        _ = rig.Chip.SetIrq(0, 4, false);
        Assert.Equal(1, rig.Chip.Ioapic.SetIrq(4, 0, true));
        Assert.Equal(0b10u, rig.Requested(0x34));
    }

    [Fact]
    public void Masked_ReportsMinusOneAndIsLostForEdge()
    {
        var rig = new Rig();
        rig.Redirect(5, 0x35 | Masked);
        Assert.Equal(-1, rig.Chip.Ioapic!.SetIrq(5, 0, true));
        rig.Redirect(5, 0x35);
        Assert.Equal(0u, rig.Requested(0x35));
    }

    [Fact]
    public void Level_RemoteIrrAndRetriggerOnEoi()
    {
        var rig = new Rig();
        rig.Redirect(11, 0x3b | Level);
        Assert.Equal(1, rig.Chip.Ioapic!.SetIrq(11, 0, true));
        Assert.Equal(0x3b | Level | RemoteIrr, rig.ReadIoapic(0x10 + 22));
        Assert.Equal(1u, rig.Apics[0].ReadRegister(ApicRegister.TMR + 0x10) >> (0x3b - 32) & 1);
        Assert.Equal(-1, rig.Chip.Ioapic.SetIrq(11, 0, true));
        for (int i = 0; i < 3; i++)
        {
            Eoi(rig);
            Assert.Equal(1u, rig.Requested(0x3b));
        }
        _ = rig.Apics[0].AckInterrupt();
        _ = rig.Chip.SetIrq(0, 11, false);
        rig.Apics[0].SetEoi();
        Assert.Equal(0u, rig.Requested(0x3b));
        Assert.Equal(0x3b | Level, rig.ReadIoapic(0x10 + 22));
    }

    [Fact]
    public void Level_UnmaskDeliversWhatIsAsserted()
    {
        var rig = new Rig();
        rig.Redirect(11, 0x3b | Level | Masked);
        Assert.Equal(-1, rig.Chip.Ioapic!.SetIrq(11, 0, true));
        rig.Redirect(11, 0x3b | Level);
        Assert.Equal(1u, rig.Requested(0x3b));
    }

    [Fact]
    public void Level_SourcesAreOred()
    {
        var rig = new Rig();
        rig.Redirect(10, 0x40 | Level);
        Ioapic io = rig.Chip.Ioapic!;
        _ = io.SetIrq(10, 0, true);
        _ = io.SetIrq(10, 1, true);
        _ = io.SetIrq(10, 0, false);
        Eoi(rig);
        Assert.Equal(1u, rig.Requested(0x40));
        rig.Chip.ClearSource(1);
        Eoi(rig);
        Assert.Equal(0u, rig.Requested(0x40));
    }

    [Fact]
    public void EdgeReconfiguration_ClearsRemoteIrr()
    {
        var rig = new Rig();
        rig.Redirect(11, 0x3b | Level);
        _ = rig.Chip.SetIrq(0, 11, true);
        rig.WriteIoapic(0x10 + 22, 0x3b | Masked);
        Assert.Equal(0x3b | Masked, rig.ReadIoapic(0x10 + 22));
    }

    [Fact]
    public void EoiRegister_EndsLevelWithBroadcastSuppressed()
    {
        var rig = new Rig(ioapicVersion: 0x20);
        rig.Write(0, ApicRegister.SVR, 0x11ff);
        rig.Redirect(9, 0x39 | Level);
        _ = rig.Chip.SetIrq(0, 9, true);
        _ = rig.Chip.SetIrq(0, 9, false);
        Eoi(rig);
        Assert.Equal(0x39 | Level | RemoteIrr, rig.ReadIoapic(0x10 + 18));
        rig.Chip.Ioapic!.MmioWrite(0x40, [0x39, 0, 0, 0]);
        Assert.Equal(0x39 | Level, rig.ReadIoapic(0x10 + 18));
    }

    [Fact]
    public void AckNotifier_RunsOnEoi_AndMayLowerTheLine()
    {
        var rig = new Rig();
        rig.Redirect(12, 0x4c | Level);
        int acks = 0;
        void Acked()
        {
            acks++;
            _ = rig.Chip.SetIrq(VmIrqchip.ResampleSourceId, 12, false);
        }
        rig.Chip.AddAckNotifier(12, Acked);
        _ = rig.Chip.SetIrq(VmIrqchip.ResampleSourceId, 12, true);
        Eoi(rig);
        Assert.Equal(1, acks);
        Assert.Equal(0u, rig.Requested(0x4c));
        rig.Chip.RemoveAckNotifier(12, Acked);
        _ = rig.Chip.SetIrq(VmIrqchip.ResampleSourceId, 12, true);
        Eoi(rig);
        Assert.Equal(1, acks);
    }

    /// <summary>
    /// The EOI of an edge-triggered pin is wanted as long as somebody waits for it, and no longer: then the guest may end the interrupt without an
    /// exit.
    /// </summary>
    [Fact]
    public void AckNotifier_WantsTheEoiOfAnEdgePin_UntilItIsRemoved()
    {
        var rig = new Rig();
        rig.Redirect(4, 0x34);
        int acks = 0;
        Action acked = () => acks++;
        for (int round = 1; round <= 100; round++)
        {
            rig.Chip.AddAckNotifier(4, acked);
            Assert.False(InService(rig));
            rig.Apics[0].SetEoi();
            Assert.Equal(round, acks);
            rig.Chip.RemoveAckNotifier(4, acked);
            Assert.True(InService(rig));
            rig.Apics[0].SetEoi();
            Assert.Equal(round, acks);
        }
    }

    /// <summary>Delivers pin 4; whether its end needs no exit.</summary>
    private static bool InService(Rig rig)
    {
        _ = rig.Chip.SetIrq(0, 4, true);
        _ = rig.Chip.SetIrq(0, 4, false);
        Assert.Equal(0x34, rig.Apics[0].AckInterrupt());
        return rig.Apics[0].CanUsePvEoi;
    }

    [Fact]
    public void Rtc_CoalescesUntilEveryReceiverEnded()
    {
        var rig = new Rig(2);
        rig.Write(0, ApicRegister.LDR, 1 << 24);
        rig.Write(1, ApicRegister.LDR, 2 << 24);
        rig.Redirect(8, 0x38 | 1 << 11, 3);
        Ioapic io = rig.Chip.Ioapic!;
        Assert.Equal(2, io.SetIrq(8, 0, true, lineStatus: true));
        _ = io.SetIrq(8, 0, false, lineStatus: true);
        Assert.Equal(0, io.SetIrq(8, 0, true, lineStatus: true));
        Eoi(rig, 0);
        Assert.Equal(0, io.SetIrq(8, 0, true, lineStatus: true));
        Eoi(rig, 1);
        _ = io.SetIrq(8, 0, false, lineStatus: true);
        Assert.Equal(2, io.SetIrq(8, 0, true, lineStatus: true));
    }

    [Fact]
    public void Storm_IsDelayed()
    {
        var rig = new Rig();
        rig.Redirect(11, 0x3b | Level);
        _ = rig.Chip.SetIrq(0, 11, true);
        int delivered = 0;
        while (rig.Apics[0].AckInterrupt() >= 0)
        {
            rig.Apics[0].SetEoi();
            Assert.True(++delivered <= 10_000);
        }
        Assert.Equal(10_000, delivered);
        rig.Timers.Advance(10_000_000);
        Assert.Equal(1u, rig.Requested(0x3b));
    }

    [Fact]
    public void State_RoundTripsAndRedeliversPending()
    {
        var rig = new Rig();
        rig.Redirect(4, 0x34);
        rig.Redirect(11, 0x3b | Level | Masked);
        rig.Redirect(5, 0x35);
        _ = rig.Chip.SetIrq(0, 5, true);
        _ = rig.Chip.SetIrq(0, 11, true);
        Abi.kvm_ioapic_state state = rig.Chip.Ioapic!.GetState();
        Assert.Equal(1u << 11, state.irr);
        var other = new Rig();
        other.Chip.Ioapic!.SetState(state);
        Assert.Equal(0x34u, other.ReadIoapic(0x18));
        other.Redirect(11, 0x3b | Level);
        Assert.Equal(1u, other.Requested(0x3b));
        Assert.Equal(0u, other.Requested(0x35));
    }

    /// <summary>
    /// A handler moves its own pin to the other CPU before it ends the interrupt: the end is still seen, remote IRR falls, and the line that is still
    /// up reaches the new CPU.
    /// </summary>
    [Theory]
    [InlineData(0x11)]
    [InlineData(0x20)]
    public void LevelPin_MovedByItsHandler_EndsWithTheEoi(byte version)
    {
        var rig = new Rig(2, ioapicVersion: version);
        int acks = 0;
        Action acked = () => acks++;
        rig.Chip.AddAckNotifier(18, acked);
        rig.Redirect(18, 0x45 | 1 << 15);
        _ = rig.Chip.SetIrq(0, 18, true);
        for (int round = 1; round <= 10_000; round++)
        {
            int from = (round & 1) ^ 1;
            Assert.Equal(0x45, rig.Apics[from].AckInterrupt());
            rig.WriteIoapic(0x11 + 2 * 18, (uint)(from ^ 1) << 24);
            Assert.NotEqual(0u, rig.ReadIoapic(0x10 + 2 * 18) & 1 << 14);
            rig.Apics[from].SetEoi();
            Assert.Equal(round, acks);
            // The line is still up; the storm that this is may be slowed down.
            rig.Timers.Advance(20_000_000);
            Assert.Equal(-1, rig.Apics[from].AckInterrupt());
            Assert.NotEqual(0u, rig.ReadIoapic(0x10 + 2 * 18) & 1 << 14);
        }
        rig.Chip.RemoveAckNotifier(18, acked);
    }

    /// <summary>
    /// Another vector is another matter: the EOI does not name the entry any more, as in the data sheet and in KVM. Edge mode and back frees the pin,
    /// which is what operating systems do.
    /// </summary>
    [Fact]
    public void LevelPin_GivenAnotherVectorByItsHandler_IsFreedByEdgeMode()
    {
        var rig = new Rig();
        rig.Redirect(18, 0x45 | 1 << 15);
        _ = rig.Chip.SetIrq(0, 18, true);
        Assert.Equal(0x45, rig.Apics[0].AckInterrupt());
        rig.WriteIoapic(0x10 + 2 * 18, 0x46 | 1 << 15);
        rig.Apics[0].SetEoi();
        Assert.Equal(-1, rig.Apics[0].AckInterrupt());
        Assert.NotEqual(0u, rig.ReadIoapic(0x10 + 2 * 18) & 1 << 14);
        rig.WriteIoapic(0x10 + 2 * 18, 0x46 | 1 << 16);
        rig.WriteIoapic(0x10 + 2 * 18, 0x46 | 1 << 15);
        Assert.Equal(0x46, rig.Apics[0].AckInterrupt());
    }

    /// <summary>The RTC's next tick waits for the EOI of the last, also when its handler has given the pin another vector or another CPU.</summary>
    [Theory]
    [InlineData(0x52, 0)]
    [InlineData(0x51, 1)]
    [InlineData(0x52, 1)]
    public void RtcPin_ChangedByItsHandler_TicksOn(byte vector, int cpu)
    {
        var rig = new Rig(2);
        Ioapic io = rig.Chip.Ioapic!;
        rig.Redirect(8, 0x51);
        Assert.Equal(1, io.SetIrq(8, 0, true, lineStatus: true));
        _ = io.SetIrq(8, 0, false, lineStatus: true);
        Assert.Equal(0x51, rig.Apics[0].AckInterrupt());
        Assert.Equal(0, io.SetIrq(8, 0, true, lineStatus: true));
        _ = io.SetIrq(8, 0, false, lineStatus: true);
        rig.Redirect(8, vector, (uint)cpu);
        rig.Apics[0].SetEoi();
        Assert.Equal(1, io.SetIrq(8, 0, true, lineStatus: true));
        Assert.Equal(vector, rig.Apics[cpu].AckInterrupt());
    }
}

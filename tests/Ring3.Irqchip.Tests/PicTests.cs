using Ring3.Abi;

namespace Ring3.Irqchip.Tests;

public class PicTests
{
    /// <summary>Initializes both chips as PC firmware does: vectors 0x20 and 0x28, ICW4 8086 mode plus <paramref name="icw4"/>, nothing masked.</summary>
    private static (Rig Rig, PicPair Pic) NewPic(byte icw4 = 1)
    {
        var rig = new Rig();
        PicPair pic = rig.Chip.Pic!;
        foreach ((ushort port, byte value) in (ReadOnlySpan<(ushort, byte)>)[(0x20, 0x11), (0x21, 0x20), (0x21, 4), (0x21, icw4), (0xa0, 0x11), (0xa1, 0x28),
            (0xa1, 2), (0xa1, icw4), (0x21, 0), (0xa1, 0)])
            pic.Write(port, value);
        return (rig, pic);
    }

    private static void Pulse(PicPair pic, int irq)
    {
        _ = pic.SetIrq(irq, 0, true);
        _ = pic.SetIrq(irq, 0, false);
    }

    [Theory]
    [InlineData(0, 0x20)]
    [InlineData(1, 0x21)]
    [InlineData(7, 0x27)]
    [InlineData(8, 0x28)]
    [InlineData(15, 0x2f)]
    public void Edge_GivesTheVector(int irq, int vector)
    {
        (Rig rig, PicPair pic) = NewPic();
        Pulse(pic, irq);
        Assert.True(rig.Chip.HasInterrupt(rig.Apics[0]));
        Assert.Equal(vector, rig.Chip.AckInterrupt(rig.Apics[0]));
        Assert.False(pic.Output);
    }

    [Fact]
    public void Priorities_NestByNumber()
    {
        (_, PicPair pic) = NewPic();
        Pulse(pic, 5);
        Assert.Equal(0x25, pic.Acknowledge());
        Pulse(pic, 6);
        Assert.False(pic.Output);
        Pulse(pic, 10);
        Assert.Equal(0x2a, pic.Acknowledge());
        Pulse(pic, 1);
        Assert.Equal(0x21, pic.Acknowledge());
        pic.Write(0x20, 0x20); // ends 1
        pic.Write(0xa0, 0x20); // ends 10
        pic.Write(0x20, 0x20); // ends the cascade
        Assert.False(pic.Output);
        pic.Write(0x20, 0x20); // ends 5
        Assert.Equal(0x26, pic.Acknowledge());
    }

    [Fact]
    public void Spurious_IsIrq7Or15()
    {
        (_, PicPair pic) = NewPic();
        Assert.Equal(0x27, pic.Acknowledge());
        pic.Write(0x4d1, 0x04);
        _ = pic.SetIrq(10, 0, true);
        Assert.True(pic.Output);
        _ = pic.SetIrq(10, 0, false);
        Assert.Equal(0x2f, pic.Acknowledge());
        pic.Write(0x20, 0x0b);
        Assert.Equal(4, pic.Read(0x20));
    }

    [Fact]
    public void Mask_HoldsRequests()
    {
        (_, PicPair pic) = NewPic();
        pic.Write(0x21, 0x08);
        Assert.Equal(-1, pic.SetIrq(3, 0, true));
        Assert.False(pic.Output);
        Assert.Equal(8, pic.Read(0x21));
        pic.Write(0x21, 0);
        Assert.Equal(0x23, pic.Acknowledge());
    }

    [Fact]
    public void Level_StaysUntilLowered()
    {
        (_, PicPair pic) = NewPic();
        pic.Write(0x4d0, 0xff);
        Assert.Equal(0xf8, pic.Read(0x4d0));
        _ = pic.SetIrq(5, 0, true);
        _ = pic.SetIrq(5, 1, true);
        Assert.Equal(0x25, pic.Acknowledge());
        _ = pic.SetIrq(5, 0, false);
        pic.Write(0x20, 0x65);
        Assert.True(pic.Output);
        Assert.Equal(0x25, pic.Acknowledge());
        _ = pic.SetIrq(5, 1, false);
        pic.Write(0x20, 0x65);
        Assert.False(pic.Output);
    }

    [Fact]
    public void Coalescing_IsReported()
    {
        (_, PicPair pic) = NewPic();
        Assert.Equal(1, pic.SetIrq(3, 0, true));
        _ = pic.SetIrq(3, 0, false);
        Assert.Equal(0, pic.SetIrq(3, 0, true));
    }

    [Fact]
    public void AutoEoi_LeavesNothingInService()
    {
        (_, PicPair pic) = NewPic(icw4: 3);
        Pulse(pic, 4);
        Assert.Equal(0x24, pic.Acknowledge());
        Assert.Equal(0, pic.GetState(true).isr);
    }

    [Fact]
    public void Rotation_MovesThePriority()
    {
        (_, PicPair pic) = NewPic();
        Pulse(pic, 3);
        Assert.Equal(0x23, pic.Acknowledge());
        pic.Write(0x20, 0xa0); // rotate on non-specific EOI: 3 is now lowest
        Pulse(pic, 3);
        Pulse(pic, 4);
        Assert.Equal(0x24, pic.Acknowledge());
        pic.Write(0x20, 0x64);
        pic.Write(0x20, 0xc4); // set priority: 4 lowest, 5 highest
        Pulse(pic, 5);
        Assert.Equal(0x25, pic.Acknowledge());
    }

    [Fact]
    public void SpecialMask_LetsLowerPrioritiesThrough()
    {
        (_, PicPair pic) = NewPic();
        Pulse(pic, 2 + 1);
        Assert.Equal(0x23, pic.Acknowledge());
        Pulse(pic, 6);
        Assert.False(pic.Output);
        pic.Write(0x21, 0x08);
        pic.Write(0x20, 0x68);
        Assert.True(pic.Output);
        Assert.Equal(0x26, pic.Acknowledge());
    }

    [Fact]
    public void Poll_AcknowledgesWithoutTheProcessor()
    {
        (_, PicPair pic) = NewPic();
        pic.Write(0x20, 0x0c);
        Assert.Equal(0, pic.Read(0x20));
        Pulse(pic, 6);
        pic.Write(0x20, 0x0c);
        Assert.Equal(0x86, pic.Read(0x20));
        pic.Write(0x20, 0x0b);
        Assert.Equal(0x40, pic.Read(0x20));
    }

    [Fact]
    public void Reinitialization_ForgetsEdgesAndTellsNotifiers()
    {
        (Rig rig, PicPair pic) = NewPic();
        int acks = 0;
        rig.Chip.AddAckNotifier(3, () => acks++);
        Pulse(pic, 3);
        pic.Write(0x20, 0x11);
        Assert.Equal(1, acks);
        Assert.False(pic.Output);
    }

    [Theory]
    [InlineData(0x700u, true)]
    [InlineData(0x10700u, false)]
    [InlineData(0x400u, false)]
    [InlineData(0x31u, false)]
    public void Lint0_DecidesWhoSeesTheOutput(uint lint0, bool seen)
    {
        (Rig rig, PicPair pic) = NewPic();
        rig.Write(0, ApicRegister.LVT_LINT0, lint0);
        Pulse(pic, 1);
        Assert.Equal(seen, rig.Chip.HasInterrupt(rig.Apics[0]));
        Assert.Equal(seen ? 1 : 0, Math.Min(1, rig.Vcpus[0].Notified));
    }

    [Fact]
    public void Lint0_UnmaskTellsTheVcpuOfAWaitingOutput()
    {
        (Rig rig, PicPair pic) = NewPic();
        rig.Write(0, ApicRegister.LVT_LINT0, 0x10700);
        Pulse(pic, 1);
        Assert.Equal(0, rig.Vcpus[0].Notified);
        rig.Write(0, ApicRegister.LVT_LINT0, 0x700);
        Assert.Equal(1, rig.Vcpus[0].Notified);
        Assert.Equal(0x21, rig.Chip.AckInterrupt(rig.Apics[0]));
    }

    [Fact]
    public void State_RoundTrips()
    {
        (_, PicPair pic) = NewPic();
        Pulse(pic, 4);
        _ = pic.Acknowledge();
        Pulse(pic, 1);
        pic.Write(0x21, 0x40);
        (_, PicPair other) = NewPic();
        kvm_pic_state state = pic.GetState(true);
        other.SetState(true, state);
        Assert.Equal(state, other.GetState(true));
        Assert.True(other.Output);
        Assert.Equal(0x21, other.Acknowledge());
    }
}

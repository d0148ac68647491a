namespace Ring3.Irqchip.Tests;

public class LapicTests
{
    private const uint Fixed = 1 << 14;

    [Fact]
    public void Reset_RegistersHavePowerOnValues()
    {
        var rig = new Rig(2, enable: false);
        Assert.Equal(ApicBase.DefaultAddress | ApicBase.EN | ApicBase.BSP, rig.Apics[0].Base);
        Assert.Equal(ApicBase.DefaultAddress | ApicBase.EN, rig.Apics[1].Base);
        (int Offset, uint Value)[] expected =
        [
            (ApicRegister.ID, 1 << 24), (ApicRegister.VERSION, 0x50014), (ApicRegister.TPR, 0), (ApicRegister.LDR, 0), (ApicRegister.DFR, 0xffff_ffff),
                (ApicRegister.SVR, 0xff),
            (ApicRegister.ICR, 0), (ApicRegister.LVT_TIMER, 0x10000), (ApicRegister.LVT_LINT0, 0x10000), (ApicRegister.LVT_LINT1, 0x10000),
                (ApicRegister.LVT_ERROR, 0x10000), (ApicRegister.TMICT, 0), (ApicRegister.TDCR, 0),
        ];
        foreach ((int offset, uint value) in expected)
            Assert.Equal(value, rig.Read(1, offset));
        Assert.Equal(0x700u, rig.Read(0, ApicRegister.LVT_LINT0));
    }

    [Theory]
    [InlineData(ApicRegister.TPR, 0xffff_ffff, 0xff)]
    [InlineData(ApicRegister.LDR, 0xffff_ffff, 0xff00_0000)]
    [InlineData(ApicRegister.DFR, 0x0000_0000, 0x0fff_ffff)]
    [InlineData(ApicRegister.SVR, 0xffff_ffff, 0x3ff)]
    [InlineData(ApicRegister.ICR2, 0xffff_ffff, 0xff00_0000)]
    [InlineData(ApicRegister.LVT_TIMER, 0xffff_ffff, 0x700ff)]
    [InlineData(ApicRegister.LVT_LINT0, 0xffff_ffff, 0x1a7ff)]
    [InlineData(ApicRegister.LVT_THERMAL, 0xffff_ffff, 0x107ff)]
    [InlineData(ApicRegister.LVT_ERROR, 0xffff_ffff, 0x100ff)]
    [InlineData(ApicRegister.TDCR, 0xffff_ffff, 0xb)]
    public void Write_KeepsDefinedBitsOnly(int offset, uint written, uint read)
    {
        var rig = new Rig();
        rig.Write(0, offset, written);
        Assert.Equal(read, rig.Read(0, offset));
    }

    [Fact]
    public void SoftwareDisable_MasksLvtsAndRefusesFixed()
    {
        var rig = new Rig(2);
        rig.Write(1, ApicRegister.LVT_TIMER, 0x40);
        rig.Write(1, ApicRegister.SVR, 0xff);
        Assert.Equal(0x10040u, rig.Read(1, ApicRegister.LVT_TIMER));
        rig.Write(1, ApicRegister.LVT_TIMER, 0x41);
        Assert.Equal(0x10041u, rig.Read(1, ApicRegister.LVT_TIMER));
        rig.Ipi(0, Fixed | 0x50, 1);
        Assert.Equal(0u, rig.Requested(0x50));
        rig.Ipi(0, 0x4400, 1);
        Assert.Equal(1, rig.Vcpus[1].Nmis);
    }

    [Fact]
    public void Priorities_NestAndUnwind()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        Assert.Equal(-1, apic.HighestDeliverable());
        rig.Ipi(0, 0x40000 | Fixed | 0x31);
        rig.Ipi(0, 0x40000 | Fixed | 0x55);
        Assert.Equal(2, rig.Vcpus[0].Notified);
        Assert.Equal(0x55, apic.AckInterrupt());
        Assert.Equal(0x50u, apic.Ppr);
        Assert.Equal(-1, apic.AckInterrupt());
        rig.Ipi(0, 0x40000 | Fixed | 0x5f);
        Assert.Equal(-1, apic.AckInterrupt());
        rig.Ipi(0, 0x40000 | Fixed | 0x60);
        Assert.Equal(0x60, apic.AckInterrupt());
        rig.Write(0, ApicRegister.EOI, 0);
        Assert.Equal(0x50u, apic.Ppr);
        rig.Write(0, ApicRegister.EOI, 0);
        Assert.Equal(0x5f, apic.AckInterrupt());
        rig.Write(0, ApicRegister.EOI, 0);
        Assert.Equal(0x31, apic.AckInterrupt());
        rig.Write(0, ApicRegister.EOI, 0);
        rig.Write(0, ApicRegister.EOI, 0);
        Assert.Equal(0u, apic.Ppr);
        Assert.False(apic.IrrPending);
    }

    [Fact]
    public void Tpr_BlocksItsClassAndBelow()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        apic.Cr8 = 5;
        Assert.Equal(0x50u, rig.Read(0, ApicRegister.TPR));
        rig.Ipi(0, 0x40000 | Fixed | 0x5f);
        Assert.False(apic.HasInterrupt());
        Assert.Equal(0x5f, apic.HighestIrr);
        int notified = rig.Vcpus[0].Notified;
        apic.Cr8 = 4;
        Assert.Equal(notified + 1, rig.Vcpus[0].Notified);
        Assert.Equal(0x5f, apic.HighestDeliverable());
        rig.Write(0, ApicRegister.TPR, 0x53);
        Assert.Equal(0x53u, rig.Read(0, ApicRegister.PPR));
    }

    [Fact]
    public void Errors_LatchOnWriteAndRaiseLvtError()
    {
        var rig = new Rig();
        rig.Write(0, ApicRegister.LVT_ERROR, 0xe0);
        rig.Ipi(0, 0x40000 | Fixed | 0x0f);
        Assert.Equal(1u, rig.Requested(0xe0));
        Assert.Equal(0u, rig.Read(0, ApicRegister.ESR));
        rig.Write(0, ApicRegister.ESR, 0);
        Assert.Equal(0x20u, rig.Read(0, ApicRegister.ESR));
        rig.Write(0, 0x40, 1);
        rig.Write(0, ApicRegister.ESR, 0);
        Assert.Equal(0x80u, rig.Read(0, ApicRegister.ESR));
        rig.Write(0, ApicRegister.ESR, 0);
        Assert.Equal(0u, rig.Read(0, ApicRegister.ESR));
        _ = rig.Chip.Bus.Deliver(null, new LapicInterrupt { Vector = 3, Assert = true, Dest = 0 });
        rig.Write(0, ApicRegister.ESR, 0);
        Assert.Equal(0x40u, rig.Read(0, ApicRegister.ESR));
    }

    [Theory]
    [InlineData(ApicMode.XApic, 0xfee0_0c00, true)]    // to x2APIC
    [InlineData(ApicMode.XApic, 0xfee0_0400, false)]   // EXTD without EN
    [InlineData(ApicMode.XApic, 0xfee0_0000, true)]    // disable
    [InlineData(ApicMode.XApic, 0xfee0_0801, false)]   // reserved bit 0
    [InlineData(ApicMode.XApic, 0xfee0_0a00, false)]   // reserved bit 9
    [InlineData(ApicMode.XApic, 0x1_0000_fee0_0800, false)]
    [InlineData(ApicMode.X2Apic, 0xfee0_0800, false)]  // back to xAPIC
    [InlineData(ApicMode.X2Apic, 0xfee0_0000, true)]
    [InlineData(ApicMode.Disabled, 0xfee0_0c00, false)]
    [InlineData(ApicMode.Disabled, 0xfee0_0800, true)]
    public void SetBase_FollowsTheModeDiagram(ApicMode from, ulong value, bool allowed)
    {
        var rig = new Rig();
        Assert.True(rig.Apics[0].SetBase(ApicBase.DefaultAddress | (ulong)from << 10, hostInitiated: true));
        ulong before = rig.Apics[0].Base;
        Assert.Equal(allowed, rig.Apics[0].SetBase(value, hostInitiated: false));
        Assert.Equal(allowed ? value : before, rig.Apics[0].Base);
    }

    [Fact]
    public void SetBase_WithoutX2ApicInCpuid_ExtdIsReserved()
    {
        var rig = new Rig();
        rig.Apics[0].BaseRegister.X2ApicSupported = false;
        Assert.False(rig.Apics[0].SetBase(ApicBase.DefaultAddress | ApicBase.EN | ApicBase.EXTD, hostInitiated: true));
    }

    [Fact]
    public void X2Apic_IdsAndDeadMmio()
    {
        var rig = new Rig(1, id: _ => 0x123).UseX2Apic();
        Assert.True(rig.Apics[0].ReadMsr(0x802, out ulong id));
        Assert.Equal(0x123u, id);
        Assert.True(rig.Apics[0].ReadMsr(0x80d, out ulong ldr));
        Assert.Equal(0x12_0008u, ldr);
        Assert.Equal(0xffff_ffff, rig.Read(0, ApicRegister.ID));
        rig.Write(0, ApicRegister.TPR, 0x20);
        Assert.Equal(0ul, rig.Apics[0].Cr8);
    }

    [Theory]
    [InlineData(0x802, 0, false)]             // ID
    [InlineData(0x803, 0, false)]             // version
    [InlineData(0x808, 0xff, true)]
    [InlineData(0x808, 0x100, false)]         // reserved
    [InlineData(0x809, 0, false)]             // no APR
    [InlineData(0x80a, 0, false)]             // PPR
    [InlineData(0x80b, 0, true)]
    [InlineData(0x80b, 1, false)]             // EOI must be zero
    [InlineData(0x80d, 0, false)]             // LDR
    [InlineData(0x80e, 0, false)]             // no DFR
    [InlineData(0x80f, 0x1ff, true)]
    [InlineData(0x80f, 0x1_0000_01ff, false)]
    [InlineData(0x828, 0, true)]
    [InlineData(0x828, 1, false)]
    [InlineData(0x82f, 0, false)]             // no CMCI
    [InlineData(0x830, 0x1_0000_4050, true)]
    [InlineData(0x830, 0x2050, false)]        // reserved bit 13
    [InlineData(0x830, 0x10_0050, false)]
    [InlineData(0x831, 0, false)]             // no ICR2
    [InlineData(0x832, 0x20, true)]
    [InlineData(0x838, 1, true)]
    [InlineData(0x839, 0, false)]             // current count
    [InlineData(0x83e, 0xb, true)]
    [InlineData(0x83f, 0x40, true)]
    [InlineData(0x83f, 0x140, false)]
    [InlineData(0x840, 0, false)]
    [InlineData(0x8ff, 0, false)]
    public void X2Apic_WriteRules(uint msr, ulong value, bool allowed) => Assert.Equal(allowed, new Rig().UseX2Apic().Apics[0].WriteMsr(msr, value));

    [Theory]
    [InlineData(0x802, true)]
    [InlineData(0x803, true)]
    [InlineData(0x804, false)]
    [InlineData(0x80a, true)]
    [InlineData(0x80b, false)]
    [InlineData(0x80c, false)]
    [InlineData(0x80e, false)]
    [InlineData(0x810, true)]
    [InlineData(0x827, true)]
    [InlineData(0x830, true)]
    [InlineData(0x831, false)]
    [InlineData(0x839, true)]
    [InlineData(0x83f, false)]
    [InlineData(0x840, false)]
    public void X2Apic_ReadRules(uint msr, bool allowed)
    {
        Assert.Equal(allowed, new Rig().UseX2Apic().Apics[0].ReadMsr(msr, out _));
        Assert.False(new Rig().Apics[0].ReadMsr(msr, out _));
    }

    [Fact]
    public void PvEoi_OnlyWhenNobodyElseNeedsTheEoi()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        rig.Ipi(0, 0x40000 | Fixed | 0x50);
        Assert.False(apic.CanUsePvEoi);
        _ = apic.AckInterrupt();
        Assert.True(apic.CanUsePvEoi);
        rig.Ipi(0, 0x40000 | Fixed | 0x30);
        Assert.False(apic.CanUsePvEoi);
        apic.SetEoi();
        Assert.Equal(0x30, apic.AckInterrupt());
    }

    [Fact]
    public void Init_KeepsIdAndMode()
    {
        var rig = new Rig(2).UseX2Apic();
        rig.Apics[1].Tpr = 0x30;
        rig.Apics[1].Reset(init: true);
        Assert.True(rig.Apics[1].X2ApicEnabled);
        Assert.False(rig.Apics[1].SoftwareEnabled);
        Assert.True(rig.Apics[1].ReadMsr(0x802, out ulong id) && id == 1);
        Assert.True(rig.Apics[1].ReadMsr(0x80d, out ulong ldr) && ldr == 2);
        Assert.Equal(0u, rig.Apics[1].Tpr);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void State_RoundTrips(bool x2)
    {
        var rig = new Rig(3, id: i => (uint)i);
        if (x2)
            _ = rig.UseX2Apic();
        Lapic from = rig.Apics[2];
        _ = rig.Chip.Bus.Deliver(null, new LapicInterrupt { Vector = 0x61, Assert = true, Dest = 2 });
        _ = rig.Chip.Bus.Deliver(null, new LapicInterrupt { Vector = 0x42, Assert = true, Level = true, Dest = 2 });
        _ = from.AckInterrupt();
        var page = new byte[Lapic.StateSize];
        from.GetState(page);
        Assert.Equal(2, page[0x23]);
        var other = new Rig(3);
        if (x2)
            _ = other.UseX2Apic();
        Assert.True(other.Apics[2].SetState(page));
        var again = new byte[Lapic.StateSize];
        other.Apics[2].GetState(again);
        Assert.Equal(page, again);
        Assert.Equal(0x60u, other.Apics[2].Ppr);
        Assert.Equal(0x42, other.Apics[2].HighestIrr);
        other.Apics[2].SetEoi();
        Assert.Equal(0x42, other.Apics[2].AckInterrupt());
    }

    [Fact]
    public async Task Accept_FromManyThreads_LosesNothing()
    {
        var rig = new Rig();
        Lapic apic = rig.Apics[0];
        const int perThread = 20_000, threads = 3;
        long sent = 0;
        var acked = 0;
        Task[] senders = Enumerable.Range(0, threads).Select(t => Task.Run(() =>
        {
            for (int i = 0; i < perThread; i++)
            {
                byte vector = (byte)(32 + (i * 7 + t * 50) % 200);
                if (rig.Chip.Bus.Deliver(null, new LapicInterrupt { Vector = vector, Assert = true, Dest = 0 }) == 1)
                    Interlocked.Increment(ref sent);
            }
        })).ToArray();
        Task all = Task.WhenAll(senders);
        while (!all.IsCompleted || apic.IrrPending)
        {
            if (apic.AckInterrupt() < 0)
                continue;
            acked++;
            apic.SetEoi();
        }
        await all;
        Assert.Equal(-1, apic.HighestIrr);
        Assert.Equal(perThread * threads, sent);
        Assert.InRange(acked, 1, (int)sent);
        Assert.True(rig.Vcpus[0].Notified >= acked / 200);
    }
}

namespace Ring3.Irqchip.Tests;

public class IpiTests
{
    private const uint V = 0x4000 | 0x50, Logical = 1 << 11, Lowest = 1 << 8;

    /// <summary>Eight vCPUs, xAPIC, flat logical ids 1 shl n. Sender is vCPU 1.</summary>
    [Theory]
    [InlineData(V, 3, 0b0000_1000)]                          // physical
    [InlineData(V, 0x0f, 0)]                                 // nobody
    [InlineData(V, 0xff, 0b1111_1111)]                       // physical broadcast includes the sender
    [InlineData(V | Logical, 0b1010_0001, 0b1010_0001)]      // flat
    [InlineData(V | Logical, 0xff, 0b1111_1111)]
    [InlineData(V | Logical, 0, 0)]
    [InlineData(V | 1 << 18, 0, 0b0000_0010)]                // self
    [InlineData(V | 2 << 18, 0, 0b1111_1111)]                // all including self
    [InlineData(V | 3 << 18, 0, 0b1111_1101)]                // all excluding self
    [InlineData(V | Lowest | Logical, 0b0001_1100, 0b0001_0000)] // 0x50 % 3 = 2: the third candidate
    [InlineData(V | Lowest, 4, 0b0001_0000)]
    [InlineData((V & 0xff) | 1 << 15, 4, 0)]                 // level de-assert
    public void XApic_Flat(uint icr, uint dest, uint expected)
    {
        var rig = new Rig(8);
        for (int i = 0; i < 8; i++)
            rig.Write(i, ApicRegister.LDR, 1u << (24 + i));
        rig.Ipi(1, icr, dest);
        Assert.Equal(expected, rig.Requested(0x50));
    }

    /// <summary>Cluster model: vCPU n is member n % 4 of cluster n / 4.</summary>
    [Theory]
    [InlineData(0x01, 0b0000_0001)]
    [InlineData(0x0f, 0b0000_1111)]
    [InlineData(0x16, 0b0110_0000)]
    [InlineData(0x2f, 0)]
    [InlineData(0xff, 0b1111_1111)]
    public void XApic_Cluster(uint dest, uint expected)
    {
        var rig = new Rig(8);
        for (int i = 0; i < 8; i++)
        {
            rig.Write(i, ApicRegister.DFR, 0x0fff_ffff);
            rig.Write(i, ApicRegister.LDR, ((uint)(i / 4) << 4 | 1u << (i % 4)) << 24);
        }
        rig.Ipi(0, V | Logical, dest);
        Assert.Equal(expected, rig.Requested(0x50));
    }

    /// <summary>x2APIC ids 0, 15, 16, 17, 300: clusters 0, 0, 1, 1, 18.</summary>
    [Theory]
    [InlineData(V, 16, 0b00100)]
    [InlineData(V, 300, 0b10000)]
    [InlineData(V, 0xff, 0)]                                 // no broadcast from an x2APIC sender
    [InlineData(V, 0xffff_ffff, 0b11111)]
    [InlineData(V, 0x7fff_ffff, 0)]
    [InlineData(V | Logical, 0x0000_8001, 0b00011)]
    [InlineData(V | Logical, 0x0001_0003, 0b01100)]
    [InlineData(V | Logical, 0x0012_1000, 0b10000)]
    [InlineData(V | Logical, 0x7fff_ffff, 0)]
    [InlineData(V | Logical, 0xffff_ffff, 0b11111)]
    [InlineData(V | Lowest | Logical, 0x0001_0003, 0b00100)]
    [InlineData(V | 3 << 18, 0, 0b11101)]
    public void X2Apic_Destinations(uint icr, uint dest, uint expected)
    {
        uint[] ids = [0, 15, 16, 17, 300];
        Rig rig = new Rig(5, id: i => ids[i]).UseX2Apic();
        Assert.True(rig.Apics[1].WriteMsr(0x830, icr | (ulong)dest << 32));
        Assert.Equal(expected, rig.Requested(0x50));
    }

    [Fact]
    public void SelfIpiMsr_SetsIrr()
    {
        Rig rig = new Rig(2).UseX2Apic();
        Assert.True(rig.Apics[1].WriteMsr(0x83f, 0x77));
        Assert.Equal(0b10u, rig.Requested(0x77));
    }

    [Fact]
    public void IrregularIds_AreMatchedOneByOne()
    {
        var rig = new Rig(4);
        // Two vCPUs with the same physical id, and a flat logical id of two bits.
        rig.Write(2, ApicRegister.ID, 1 << 24);
        rig.Write(0, ApicRegister.LDR, 0x03 << 24);
        rig.Write(3, ApicRegister.LDR, 0x08 << 24);
        rig.Ipi(0, V, 1);
        Assert.Equal(0b0110u, rig.Requested(0x50));
        rig.Ipi(0, 0x4000 | 0x51 | Logical, 0x02);
        Assert.Equal(0b0001u, rig.Requested(0x51));
        rig.Ipi(0, 0x4000 | 0x52 | Logical, 0x0a);
        Assert.Equal(0b1001u, rig.Requested(0x52));
        rig.Ipi(0, 0x4000 | 0x60 | Logical | Lowest, 0x0a);
        Assert.Equal(0b0001u, rig.Requested(0x60));
    }

    [Fact]
    public void MixedModes_MatchEachInItsOwn()
    {
        var rig = new Rig(4);
        rig.Write(0, ApicRegister.LDR, 1 << 24);
        Assert.True(rig.Apics[3].SetBase(rig.Apics[3].Base | ApicBase.EXTD, false));
        rig.Ipi(0, V | Logical, 1);
        // xAPIC flat 0x01 matches vCPU 0; x2APIC cluster 0 member 0 is not vCPU 3.
        Assert.Equal(0b0001u, rig.Requested(0x50));
        rig.Ipi(0, 0x4000 | 0x51, 3);
        Assert.Equal(0b1000u, rig.Requested(0x51));
    }

    [Fact]
    public void NonFixedModes_ReachTheSink()
    {
        var rig = new Rig(3);
        rig.Ipi(0, 0x4200, 1);
        rig.Ipi(0, 0x4400, 1);
        rig.Ipi(0, 0x4500, 1);
        rig.Ipi(0, 0x8500, 1); // INIT level de-assert: no effect
        rig.Ipi(0, 0x469a, 1);
        FakeVcpu v = rig.Vcpus[1];
        Assert.Equal((1, 1, 1), (v.Smis, v.Nmis, v.Inits));
        Assert.Equal([0x9a], v.Sipis);
        rig.Ipi(0, 0xc4500, 0);
        Assert.Equal((0, 2, 1), (rig.Vcpus[0].Inits, rig.Vcpus[1].Inits, rig.Vcpus[2].Inits));
    }

    [Fact]
    public void RemoteRead_ReturnsTheRegister()
    {
        var rig = new Rig(2);
        rig.Write(1, ApicRegister.TPR, 0x35);
        rig.Ipi(0, 0x4300 | ApicRegister.TPR >> 4, 1);
        Assert.Equal(0x35u, rig.Read(0, ApicRegister.RRD));
        Assert.Equal(2u, rig.Read(0, ApicRegister.ICR) >> 16 & 3);
    }

    [Fact]
    public void LowestPriority_RoundRobinWithoutHashing()
    {
        var rig = new Rig(4);
        rig.Chip.Bus.VectorHashing = false;
        for (int i = 0; i < 4; i++)
            rig.Write(i, ApicRegister.LDR, 1u << (24 + i));
        var seen = new List<uint>();
        for (uint i = 0; i < 4; i++)
        {
            rig.Ipi(0, 0x4000 | Logical | Lowest | 0x50 + i, 0xf);
            seen.Add(rig.Requested((int)(0x50 + i)));
        }
        Assert.Equal([1u, 2u, 4u, 8u], seen);
    }

    [Fact]
    public void LowestPriority_SkipsDisabledApics()
    {
        var rig = new Rig(4);
        for (int i = 0; i < 4; i++)
            rig.Write(i, ApicRegister.LDR, 1u << (24 + i));
        rig.Write(1, ApicRegister.SVR, 0xff);
        for (uint i = 0; i < 6; i++)
            rig.Ipi(0, 0x4000 | Logical | Lowest | 0x50 + i, 0x6);
        for (int i = 0; i < 6; i++)
            Assert.Equal(0b100u, rig.Requested(0x50 + i));
    }
}

namespace Ring3.Virtio.Tests;

/// <summary>Both layouts from the driver's side.</summary>
public class RingTests
{
    private const ulong In = 0x8_0000, Out = 0x9_0000;

    public static TheoryData<ulong, bool> Kinds
    {
        get
        {
            var kinds = new TheoryData<ulong, bool>();
            foreach (ulong ring in (ulong[])[0, VirtioFeature.PackedRing])
                foreach (ulong index in (ulong[])[0, VirtioFeature.EventIndex])
                    foreach (bool table in new[] { false, true })
                        kinds.Add(VirtioFeature.Version1 | ring | index | (table ? VirtioFeature.IndirectDescriptors : 0), table);
            return kinds;
        }
    }

    private static Bench Inverting(ushort size = 16) => new(m => new InvertingDevice(m, size));

    [Theory, MemberData(nameof(Kinds))]
    public void Chains_AreServedAcrossEveryWrap(ulong features, bool table)
    {
        using Bench bench = Inverting();
        Driver driver = Driver.Create(bench, 16, features);
        bench.Serve();
        // More than the 16-bit indices hold.
        for (uint i = 0; i < 70_000; i++)
        {
            bench.Write(In, i * 2654435761);
            bench.Write(In + 0x100, (byte)i);
            driver.Offer(table, new Piece(In, 4, false), new Piece(In + 0x100, 1, false), new Piece(Out, 2, true), new Piece(Out + 0x200, 3, true));
            Assert.True(driver.MustNotify);
            bench.Serve();
            (ushort _, uint written) = driver.Take() ?? throw new InvalidOperationException($"chain {i} was not given back");
            Assert.Equal(5u, written);
            Assert.Equal((ushort)~(i * 2654435761), bench.Read<ushort>(Out));
            Assert.Equal((byte)~i, bench.Read<byte>(Out + 0x202));
            Assert.Null(driver.Take());
        }
    }

    [Theory, MemberData(nameof(Kinds))]
    public void AFullQueue_IsServedInOrder(ulong features, bool table)
    {
        using Bench bench = Inverting();
        Driver driver = Driver.Create(bench, 16, features);
        for (int round = 0; round < 5; round++)
        {
            int chains = table ? 16 : 5;
            for (uint i = 0; i < chains; i++)
            {
                bench.Write(In + 16 * i, i + 1);
                driver.Offer(table, new Piece(In + 16 * i, 4, false), new Piece(Out + 16 * i, 4, true), new Piece(Out + 16 * i + 8, 4, true));
            }
            bench.Serve();
            for (uint i = 0; i < chains; i++)
            {
                Assert.Equal(4u, driver.Take()?.Written);
                Assert.Equal(~(i + 1), bench.Read<uint>(Out + 16 * i));
            }
            Assert.Null(driver.Take());
        }
    }

    [Theory, MemberData(nameof(Kinds))]
    public void Interrupts_ComeWhenTheyAreWanted(ulong features, bool table)
    {
        using Bench bench = Inverting();
        Driver driver = Driver.Create(bench, 16, features);
        bool index = (features & VirtioFeature.EventIndex) != 0;
        for (int round = 0; round < 20; round++)
        {
            int Interrupts(int chains)
            {
                int n = 0;
                for (int i = 0; i < chains; i++)
                {
                    driver.Offer(table, new Piece(In, 4, false));
                    bench.Serve();
                    n += (int)bench.Get(VirtioTransport.IsrAt, 1);
                }
                for (int i = 0; i < chains; i++)
                    Assert.NotNull(driver.Take());
                return n;
            }
            driver.WantInterrupt(0);
            Assert.Equal(index ? 1 : 3, Interrupts(3));
            driver.WantNoInterrupt();
            Assert.Equal(0, Interrupts(3));
            driver.WantInterrupt(2);
            Assert.Equal(index ? 0 : 2, Interrupts(2));
            Assert.Equal(1, Interrupts(1));
        }
    }

    [Fact]
    public void ARing_OfASizeThatIsNoPowerOfTwo_IsPackedOnly()
    {
        using Bench bench = Inverting();
        Driver driver = Driver.Create(bench, 7, VirtioFeature.Version1 | VirtioFeature.PackedRing);
        for (int i = 0; i < 50; i++)
        {
            driver.Offer(false, new Piece(In, 4, false), new Piece(Out, 4, true), new Piece(Out + 8, 4, true));
            bench.Serve();
            Assert.Equal(4u, driver.Take()?.Written);
        }
        bench.Negotiate(VirtioFeature.Version1);
        bench.Enable(0, 7, Driver.Descriptors, Driver.DriverArea, Driver.DeviceArea);
        Assert.NotEqual(0, bench.Status & VirtioStatus.NeedsReset);
    }

    private static void Broken(Bench bench, int served = 0)
    {
        bench.Serve();
        Assert.NotEqual(0, bench.Status & VirtioStatus.NeedsReset);
        Assert.Single(bench.Messages);
        // The change is announced: bit 1 of the ISR.
        Assert.Equal(2u, bench.Get(VirtioTransport.IsrAt, 1) & 2);
        Assert.Equal(served, ((InvertingDevice)bench.Device).Served);
        // Nothing is served until the reset, after which everything works.
        bench.Messages.Clear();
        Driver driver = Driver.Create(bench, 16, VirtioFeature.Version1);
        bench.Write(Driver.DriverArea + 2, (ushort)0);
        bench.Write(Driver.DeviceArea + 2, (ushort)0);
        driver.Offer(false, new Piece(In, 4, false), new Piece(Out, 4, true));
        bench.Serve();
        Assert.Equal(4u, driver.Take()?.Written);
        Assert.Empty(bench.Messages);
    }

    public static TheoryData<ulong> Layouts => [VirtioFeature.Version1, VirtioFeature.Version1 | VirtioFeature.PackedRing];

    private const ulong Tables = VirtioFeature.IndirectDescriptors;

    [Theory, MemberData(nameof(Layouts))]
    public void WildBuffers_StopTheDevice(ulong layout)
    {
        foreach (Piece wild in new[] { new Piece(Bench.RamBytes, 4, false), new Piece(ulong.MaxValue - 1, 4, false), new Piece(1UL << 51, 4, false),
            new Piece(Bench.RamBytes - 2, 4, false) })
        {
            using Bench bench = Inverting();
            Driver driver = Driver.Create(bench, 16, layout);
            driver.Offer(false, wild, new Piece(Out, 4, true));
            Broken(bench, wild.Gpa > ulong.MaxValue - 4 ? 0 : 1);
        }
    }

    [Theory, MemberData(nameof(Layouts))]
    public void AReadableBufferBehindAWritableOne_StopsTheDevice(ulong layout)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, layout).Offer(false, new Piece(Out, 4, true), new Piece(In, 4, false));
        Broken(bench);
    }

    [Theory, MemberData(nameof(Layouts))]
    public void ATableThatWasNotAgreedOn_StopsTheDevice(ulong layout)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, layout).Offer(true, new Piece(In, 4, false));
        Broken(bench);
    }

    [Theory, MemberData(nameof(Layouts))]
    public void ATableInATable_StopsTheDevice(ulong layout)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, layout | Tables).Offer(true, new Piece(In, 16, false));
        int flagsAt = (layout & VirtioFeature.PackedRing) != 0 ? 14 : 12;
        bench.Write(Driver.Tables + (ulong)flagsAt, (ushort)4);
        Broken(bench);
    }

    [Theory, MemberData(nameof(Layouts))]
    public void ATableOfAWrongSize_StopsTheDevice(ulong layout)
    {
        foreach (uint size in new uint[] { 0, 15, 17, uint.MaxValue, 16 * 17 })
        {
            using Bench bench = Inverting();
            Driver.Create(bench, 16, layout | Tables).Offer(true, new Piece(In, 4, false));
            for (ulong i = 0; i < 17; i++)
                bench.Write(Driver.Tables + 16 * i + 12, (layout & VirtioFeature.PackedRing) != 0 ? 0u : 1 | (uint)(i + 1) << 16);
            bench.Write(Driver.Descriptors + 8, size);
            Broken(bench);
        }
    }

    [Theory, MemberData(nameof(Layouts))]
    public void MoreThanFourGigabytes_StopTheDevice(ulong layout)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, layout).Offer(false, new Piece(In, uint.MaxValue, true), new Piece(In, 2, true));
        Broken(bench);
    }

    [Fact]
    public void ALoop_StopsTheDevice()
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, VirtioFeature.Version1).Offer(false, new Piece(In, 4, false), new Piece(In, 4, false));
        bench.Write(Driver.Descriptors + 16 + 12, (ushort)1);
        bench.Write(Driver.Descriptors + 16 + 14, (ushort)0);
        Broken(bench);
    }

    [Fact]
    public void APackedRingWithoutAnEnd_StopsTheDevice()
    {
        using Bench bench = Inverting();
        Driver driver = Driver.Create(bench, 16, VirtioFeature.Version1 | VirtioFeature.PackedRing);
        for (ulong i = 0; i < 16; i++)
        {
            driver.Offer(false, new Piece(In, 4, false));
            bench.Write(Driver.Descriptors + 16 * i + 14, (ushort)(1 << 7 | 1));
        }
        Broken(bench);
    }

    [Theory, InlineData(16), InlineData(0xffff)]
    public void ANumberOutsideTheQueue_StopsTheDevice(int head)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, VirtioFeature.Version1).Offer(false, new Piece(In, 4, false));
        bench.Write(Driver.DriverArea + 4, (ushort)head);
        Broken(bench);
    }

    [Theory, InlineData(17), InlineData(0x8000), InlineData(0xffff)]
    public void AnIndexThatJumps_StopsTheDevice(int index)
    {
        using Bench bench = Inverting();
        Driver.Create(bench, 16, VirtioFeature.Version1);
        bench.Write(Driver.DriverArea + 2, (ushort)index);
        Broken(bench);
    }

    [Theory, MemberData(nameof(Layouts))]
    public void ARingThatIsNoMemory_StopsTheDevice(ulong layout)
    {
        foreach (ulong place in new[] { Bench.RamBytes, Bench.RamBytes - 16, ulong.MaxValue & ~15UL, 1UL << 52 })
        {
            using Bench bench = Inverting();
            bench.Negotiate(layout);
            bench.Enable(0, 16, place, place, Driver.DeviceArea);
            bench.Ready();
            // Where the ring begins in memory there is something to do.
            bench.Write(Bench.RamBytes - 14, (ushort)16);
            bench.Write(Bench.RamBytes - 2, (ushort)0x80);
            bench.Serve();
            Assert.NotEqual(0, bench.Status & VirtioStatus.NeedsReset);
        }
    }
}

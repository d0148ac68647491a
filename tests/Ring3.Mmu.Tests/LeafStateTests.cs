using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using static Ring3.Mmu.Tests.LeafStateScene;

namespace Ring3.Mmu.Tests;

/// <summary>Dirty and Accessed bits of leaves that are removed reach whoever tracks them, and leaves that nobody tracks are not looked at.</summary>
public unsafe class LeafStateTests
{
    private const ulong M = 1 << 20, P = 4096;

    private sealed class Tracker(ulong start, ulong end) : IAccessTracker
    {
        public readonly HashSet<ulong> Accessed = [];
        public int Questions;

        public bool TracksAccesses(ulong s, ulong e, int asId)
        {
            Questions++;
            return asId == 0 && s < end && start < e;
        }

        public void MarkAccessed(ulong firstGfn, ulong bits, int asId)
        {
            for (int i = 0; i < 64; i++)
                if ((bits >> i & 1) != 0)
                    Accessed.Add(firstGfn + (ulong)i);
        }
    }

    [Theory]
    [InlineData(RootZapPolicy.Inline)]
    [InlineData(RootZapPolicy.Sync)]
    [InlineData(RootZapPolicy.Worker)]
    public void ZappingRoots_ForAnotherSlotsDeletion_KeepsDirtyBits(RootZapPolicy policy)
    {
        (MmuFixture f, DirtyBitmap log, GuestRam _) = Logged(policy);
        using MmuFixture fixture = f;
        f.Delete(1);
        AssertSevenths(log);
    }

    [Fact]
    public void DefunctRoot_KeepsDirtyBits()
    {
        (MmuFixture f, DirtyBitmap log, GuestRam _) = Logged();
        using MmuFixture fixture = f;
        f.Tdp.TrimRoots();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        AssertSevenths(log);
    }

    [Fact]
    public void MovedSlot_KeepsDirtyBits()
    {
        (MmuFixture f, DirtyBitmap log, GuestRam ram) = Logged();
        using MmuFixture fixture = f;
        Assert.Equal(0, f.Slots.SetRegion(0, KvmApi.KVM_MEM_LOG_DIRTY_PAGES, 128 * M, 8 * M, ram.Hva));
        Assert.Same(log, f.Slots.Set(0).ById(0)!.DirtyBitmap);
        AssertSevenths(log);
    }

    [Theory]
    [InlineData(0UL, 4096UL)]
    [InlineData(100UL, 1500UL)]
    public void ZappedRange_KeepsDirtyBits(ulong start, ulong end)
    {
        (MmuFixture f, DirtyBitmap log, GuestRam _) = Logged();
        using MmuFixture fixture = f;
        f.Tdp.ZapGfnRange(start, end);
        for (ulong page = 0; page < 2048; page++)
            Assert.Equal(page % 7 == 0 && page + 37 >= start && page + 37 < end, log.IsSet(page));
    }

    [Fact]
    public void Notifier_KeepsDirtyBits()
    {
        (MmuFixture f, DirtyBitmap log, GuestRam ram) = Logged();
        using MmuFixture fixture = f;
        ram.Discard(0, 8 * M, f.Slots.Notifier);
        AssertSevenths(log);
    }

    /// <summary>A processor that still has the table may set D until the flush: the state is taken after it.</summary>
    [Fact]
    public void DirtyBits_SetBetweenUnlinkAndFlush_AreKept()
    {
        (MmuFixture f, DirtyBitmap log, GuestRam _) = Logged();
        using MmuFixture fixture = f;
        ulong* table = (ulong*)f.V.Mmu.RootHva;
        for (int level = 4; level > 1; level--)
            table = (ulong*)Spte.Address(table[PgLevel.Index(1024, level)]);
        f.Host.OnFlush = () => Interlocked.Or(ref table[3], Spte.D);
        f.Tdp.ZapGfnRange(1024, 1536);
        Assert.True(log.IsSet(1024 + 3 - 37));
    }

    [Fact]
    public void AccessedPages_AreReported_OnlyWhereTracked()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M, 0, 0x1000);
        for (ulong page = 0; page < 4096; page++)
            f.V.Access(page * P, false);
        ulong[] young = new ulong[64];
        f.Tdp.TestClearYoung(0, 4096, young);
        for (ulong page = 0; page < 4096; page += 5)
            SetBits(f, page * P, Spte.A);
        var tracker = new Tracker(0, 1024);
        f.Tdp.AccessTracker = tracker;
        f.Tdp.ZapGfnRange(0, 512);
        f.Tdp.ZapGfnRange(600, 601);
        f.Tdp.ZapGfnRange(700, 701);
        f.Tdp.ZapGfnRange(2048, 4096);
        Assert.Equal(103 + 2, tracker.Accessed.Count);
        Assert.All(tracker.Accessed, gfn => Assert.Equal(0UL, gfn % 5));
        Assert.All(tracker.Accessed, gfn => Assert.True(gfn < 1024));
        Assert.InRange(tracker.Questions, 4, 8);
    }

    [Fact]
    public void HugeLeaf_ReportsAllItsPages()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M);
        f.V.Access(2 * M, true);
        var tracker = new Tracker(0, 4096);
        f.Tdp.AccessTracker = tracker;
        f.Tdp.TrimRoots();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        Assert.Equal(512, tracker.Accessed.Count);
        Assert.Equal((512UL, 1023UL), (tracker.Accessed.Min(), tracker.Accessed.Max()));
    }
}

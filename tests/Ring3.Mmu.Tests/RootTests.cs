namespace Ring3.Mmu.Tests;

public class RootTests
{
    private const ulong M = 1 << 20;

    [Theory]
    [InlineData(RootZapPolicy.Inline)]
    [InlineData(RootZapPolicy.Sync)]
    [InlineData(RootZapPolicy.Worker)]
    public void SlotDeletion_MakesRootsObsoleteAndFreesTheirTables(RootZapPolicy policy)
    {
        using var f = new MmuFixture(2, policy);
        f.AddRam(0, 0, 64 * M, 0, 0x1000);
        f.AddRam(1, 1UL << 32, 4 * M);
        for (ulong gpa = 0; gpa < 64 * M; gpa += 0x10000)
            f.Vcpus[(int)(gpa >> 16) % 2].Access(gpa, true);
        ulong root = f.V.Mmu.RootHva;
        uint asid = f.V.Mmu.Asid;
        f.Delete(0);
        Assert.Equal(1, f.Host.ObsoleteRequests);
        Assert.Equal(MmuResult.Mmio, f.V.Access(0x10000, true));
        Assert.Equal(MmuResult.Fixed, f.V.Access(1UL << 32, true));
        Assert.NotEqual(asid, f.V.Mmu.Asid);
        Assert.True(f.Tdp.GetStats().RootsZapped >= 1);
        f.Vcpus[1].HandleRequests();
        f.Queue.Drain();
        MmuStats stats = f.Tdp.GetStats();
        Assert.Equal((1, 0), (stats.Roots, stats.InvalidRoots));
        Assert.Equal(0UL, stats.Pages4K);
        Assert.NotEqual(0UL, root);
    }

    [Fact]
    public void ObsoleteRoot_StaysUntilTheLastVcpuDropsIt()
    {
        using var f = new MmuFixture(2);
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0, true);
        f.Vcpus[1].Access(0, true);
        ulong old = f.Vcpus[1].Mmu.RootHva;
        f.Delete(0);
        f.V.HandleRequests();
        f.Queue.Drain();
        MmuStats stats = f.Tdp.GetStats();
        Assert.Equal((1, 1), (stats.Roots, stats.InvalidRoots));
        Assert.Equal(old, f.Vcpus[1].Mmu.RootHva);
        f.Vcpus[1].HandleRequests();
        f.Queue.Drain();
        Assert.Equal(0, f.Tdp.GetStats().Roots);
    }

    [Fact]
    public void FreeingARoot_FlushesNothing_LoadingAssignsACleanAsid()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0, true);
        uint asid = f.V.Mmu.Asid;
        f.V.Mmu.FreeRoots();
        f.V.Access(0, true);
        Assert.NotEqual(asid, f.V.Mmu.Asid);
        Assert.Equal(0, f.Host.Flushes);
        Assert.Equal(1, f.Tdp.GetStats().Roots);
        // The MMU's own reference kept the root and its mappings.
        Assert.Equal(1UL, f.V.Mmu.Stats.PfTaken);
    }

    [Fact]
    public void LastPut_OfARootWithoutTheMmusReference_QueuesItsZap()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M, 0, 0x1000);
        for (ulong gpa = 0; gpa < 16 * M; gpa += 0x1000)
            f.V.Access(gpa, true);
        f.Tdp.TrimRoots();
        Assert.Equal((1, 0), (f.Tdp.GetStats().Roots, f.Tdp.GetStats().InvalidRoots));
        f.Tdp.CheckInvariants();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        MmuStats stats = f.Tdp.GetStats();
        Assert.Equal((0, 1UL), (stats.Roots, stats.RootsZapped));
        Assert.Equal(0, f.Tdp.Allocator.CountState(TablePageState.Live));
        Assert.Equal(0, f.Host.Flushes);
    }

    [Fact]
    public void TrimRoots_WithoutUsers_FreesThem()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0, true);
        f.V.Mmu.FreeRoots();
        f.Tdp.TrimRoots();
        f.Queue.Drain();
        Assert.Equal(0, f.Tdp.GetStats().Roots);
    }

    [Fact]
    public void ZapAllFast_Twice_ZapsEachRootOnce()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0, true);
        using (f.Slots.SlotsLock.Enter())
        {
            f.Tdp.ZapAllFast();
            f.Tdp.ZapAllFast();
        }
        Assert.Equal(1UL, f.Tdp.GetStats().RootsZapped);
        f.V.Access(0, true);
    }

    [Fact]
    public void Teardown_WithALoadedRoot_IsRefused()
    {
        var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0, true);
        Assert.Throws<InvalidOperationException>(f.Tdp.Dispose);
    }

    /// <summary>A table that nobody accounts for is reported at teardown, and its memory given back all the same.</summary>
    [Fact]
    public unsafe void Dispose_WithALostTable_GivesItsMemoryBack()
    {
        var f = new MmuFixture();
        Assert.True(f.Tdp.Allocator.Allocate() != null);
        f.V.Dispose();
        Assert.Throws<InvalidOperationException>(f.Tdp.Dispose);
        f.Queue.Dispose();
        f.Tdp.FreeTables();
        Assert.Equal(0ul, f.Tdp.Allocator.ReservedBytes);
    }
}

using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public unsafe class PreFaultTests
{
    private const ulong M = 1 << 20, P = 4096;

    private static int PreFaultAll(MmuFixture f, ulong start, ulong end)
    {
        Assert.True(f.V.Mmu.LoadRoot());
        int calls = 0;
        for (ulong gpa = start; gpa < end; calls++)
            Assert.Equal(MmuResult.Fixed, f.Tdp.PreFault(f.V.Mmu, gpa, end, out gpa));
        return calls;
    }

    [Fact]
    public void SmallPages_AreMappedATableAtATime_ExactlyUpToTheLimit()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 3 * P, 8 * M, 0, P * 2);
        Assert.Equal(5, PreFaultAll(f, 5 * P, 8 * M + P));
        Assert.Equal(8 * M / P + 1 - 5, f.Tdp.GetStats().Pages4K);
        Assert.False(Spte.IsPresent(f.V.Leaf(4 * P, out _)) || Spte.IsPresent(f.V.Leaf(8 * M + P, out _)));
        f.Tdp.CheckInvariants(quiet: true);
        ulong taken = f.V.Mmu.Stats.PfTaken;
        for (ulong gpa = 5 * P; gpa < 8 * M; gpa += P)
            f.V.Access(gpa, true);
        Assert.Equal(taken, f.V.Mmu.Stats.PfTaken);
    }

    [Fact]
    public void ExistingEntries_AreKept_AndHugePagesStayHuge()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M, 0, P);
        f.AddRam(1, 64 * M, 4 * M);
        f.V.Access(7 * P, true);
        ulong before = f.V.Leaf(7 * P, out _);
        Assert.Equal(2, PreFaultAll(f, 0, 4 * M));
        Assert.Equal(before, f.V.Leaf(7 * P, out _));
        Assert.Equal(2, PreFaultAll(f, 64 * M, 68 * M));
        Assert.Equal((4 * M / P, 2UL), (f.Tdp.GetStats().Pages4K, f.Tdp.GetStats().Pages2M));
        f.Tdp.CheckInvariants(quiet: true);
    }

    [Fact]
    public void LoggedByWriteProtection_WritesStillFault()
    {
        using var f = new MmuFixture();
        f.Slots.DirtyTracking = DirtyTracking.WriteProtect;
        f.AddRam(0, 0, 4 * M, KvmApi.KVM_MEM_LOG_DIRTY_PAGES);
        PreFaultAll(f, 0, 4 * M);
        Assert.Equal(0UL, f.GetDirtyLog(0)[0]);
        f.V.Access(9 * P, true);
        Assert.Equal(1UL << 9, f.GetDirtyLog(0)[0]);
    }

    [Fact]
    public void UnreadablePage_IsMetAfterWhatComesBeforeIt()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 4 * M, 0, P);
        HostMemory.Protect((void*)(ram.Hva + P + 20 * P), (nuint)P, read: false, write: false);
        Assert.True(f.V.Mmu.LoadRoot());
        ulong gpa = 0;
        MmuResult result;
        while ((result = f.Tdp.PreFault(f.V.Mmu, gpa, 4 * M, out ulong end)) == MmuResult.Fixed)
            gpa = end;
        Assert.Equal((MmuResult.MemoryFault, 20 * P), (result, gpa));
        Assert.Equal(20UL, f.Tdp.GetStats().Pages4K);
        f.Tdp.CheckInvariants(quiet: true);
    }

    [Fact]
    public void WhileHostMemoryChanges_NothingIsMapped()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 4 * M, 0, P);
        Assert.True(f.V.Mmu.LoadRoot());
        ulong start = ram.Hva + P + 10 * P;
        f.Slots.Notifier.InvalidateRangeStart(start, start + P);
        Assert.Equal(MmuResult.Fixed, f.Tdp.PreFault(f.V.Mmu, 9 * P, 2 * M, out ulong end));
        Assert.Equal(10 * P, end);
        Assert.Equal(MmuResult.Retry, f.Tdp.PreFault(f.V.Mmu, 10 * P, 2 * M, out _));
        f.Slots.Notifier.InvalidateRangeEnd(start, start + P);
        Assert.Equal(1UL, f.Tdp.GetStats().Pages4K);
    }
}

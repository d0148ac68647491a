using Ring3.Abi;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public unsafe class DirtyLogTests
{
    private const ulong M = 1 << 20;
    private const uint Log = KvmApi.KVM_MEM_LOG_DIRTY_PAGES;

    private static ulong[] Pages(ulong[] bitmap) => Enumerable.Range(0, bitmap.Length * 64).Where(i => (bitmap[i / 64] >> (i % 64) & 1) != 0).Select(i =>
        (ulong)i).ToArray();

    [Theory]
    [InlineData(true, DirtyTracking.WriteProtect)]
    [InlineData(false, DirtyTracking.WriteProtect)]
    [InlineData(true, DirtyTracking.DirtyLog)]
    [InlineData(false, DirtyTracking.DirtyLog)]
    [InlineData(true, DirtyTracking.DirtyScan)]
    [InlineData(false, DirtyTracking.DirtyScan)]
    public void Log_SeesFirstWriteOfEachRound_AndNothingElse(bool eagerSplit, DirtyTracking tracking)
    {
        using var f = new MmuFixture(2);
        f.Tdp.EagerSplit = eagerSplit;
        f.Slots.DirtyTracking = tracking;
        f.AddRam(0, 16 * M, 8 * M);
        f.V.Access(16 * M, true);
        f.SetFlags(0, Log);
        Assert.Empty(Pages(f.GetDirtyLog(0)));
        f.V.Access(16 * M + 0x3000, true);
        f.V.Access(16 * M + 0x3000, true);
        f.Vcpus[1].Access(16 * M + 0x5000, false);
        f.Vcpus[1].Access(16 * M + 0x6000, true);
        Assert.Equal([3UL, 6UL], Pages(f.GetDirtyLog(0)));
        Assert.Empty(Pages(f.GetDirtyLog(0)));
        f.V.Access(16 * M + 0x3000, true);
        Assert.Equal([3UL], Pages(f.GetDirtyLog(0)));
        if (tracking == DirtyTracking.WriteProtect)
            Assert.True(f.V.Mmu.Stats is { PfFast: >= 1, PagesLogged: 0 });
        else
            Assert.True(f.V.Mmu.Stats.PfFast == 0 && f.V.Mmu.Stats.PagesLogged != 0 == (tracking == DirtyTracking.DirtyLog));
        Assert.Equal(512UL, f.Tdp.GetStats().Pages4K);
    }

    /// <summary>With D bits a logged page that was read is writable: its first write is logged by the processor and faults nowhere.</summary>
    [Fact]
    public void DirtyBits_CostNoFault()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, Log, 0x1000);
        f.V.Access(0x3000, false);
        ulong faults = f.V.Mmu.Stats.PfTaken;
        f.V.Access(0x3000, true);
        Assert.Equal(faults, f.V.Mmu.Stats.PfTaken);
        Assert.Equal([3UL], Pages(f.GetDirtyLog(0)));
        f.V.Access(0x3000, true);
        Assert.Equal(faults, f.V.Mmu.Stats.PfTaken);
        Assert.Equal([3UL], Pages(f.GetDirtyLog(0)));
    }

    /// <summary>A mapping may go at any time: what the guest wrote through it is in the log already.</summary>
    [Theory]
    [InlineData(DirtyTracking.WriteProtect)]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    public void ZappedPages_StayInTheLog(DirtyTracking tracking)
    {
        using var f = new MmuFixture();
        f.Slots.DirtyTracking = tracking;
        f.AddRam(0, 0, 4 * M, Log);
        f.V.Access(0x3000, false);
        f.V.Access(0x3000, true);
        f.Tdp.ZapGfnRange(0, 1024);
        using (f.Slots.SlotsLock.Enter())
            f.Tdp.ZapAllFast();
        f.V.Access(0x3000, false);
        Assert.Equal([3UL], Pages(f.GetDirtyLog(0)));
        f.V.Access(0x3000, true);
        Assert.Equal([3UL], Pages(f.GetDirtyLog(0)));
    }

    /// <summary>
    /// The control of <see cref="WritersAgainstLog_LoseNothing"/>: processors whose log is not taken, and flushes that are not done, lose writes.
    /// </summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Control_WithoutLogOrFlush_WritesAreLost(bool keepLog)
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, Log, 0x1000);
        f.V.Access(0x3000, true);
        f.V.KeepDirtyLog = keepLog;
        f.Host.IgnoreFlushes = !keepLog;
        f.GetDirtyLog(0);
        f.V.Access(0x3000, true);
        Assert.Empty(Pages(f.GetDirtyLog(0)));
    }

    /// <summary>
    /// Two vCPUs count pages up while the log is read. A copy of memory that takes each page after its bit was reported is equal to the memory in the
    /// end, and mappings that go meanwhile do not matter.
    /// </summary>
    [Theory]
    [InlineData(DirtyTracking.WriteProtect, false)]
    [InlineData(DirtyTracking.DirtyLog, false)]
    [InlineData(DirtyTracking.DirtyLog, true)]
    [InlineData(DirtyTracking.DirtyScan, false)]
    [InlineData(DirtyTracking.DirtyScan, true)]
    public void WritersAgainstLog_LoseNothing(DirtyTracking tracking, bool manual)
    {
        const int pages = 128, rounds = 150;
        using var f = new MmuFixture(2);
        f.Slots.DirtyTracking = tracking;
        f.Slots.ManualDirtyLogProtect = manual ? KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE : 0;
        GuestRam ram = f.AddRam(0, 0, pages * 4096, Log, 0x1000);
        ulong hva = f.Slots.Find(0)!.UserspaceAddr;
        using var stop = new CancellationTokenSource();
        Thread[] writers = [.. f.Vcpus.Select((v, n) => new Thread(() =>
        {
            var random = new Random(n);
            while (!stop.IsCancellationRequested)
            {
                bool write = random.Next(4) != 0;
                v.Access((ulong)random.Next(pages) * 4096, write, write ? static at => Interlocked.Increment(ref *(long*)at) : null);
            }
        }))];
        long[] copy = new long[pages];
        Array.ForEach(writers, static t => t.Start());
        for (int round = 0; round < rounds; round++)
            Collect(f, manual, hva, copy, round % 10 == 9);
        stop.Cancel();
        Array.ForEach(writers, static t => t.Join());
        Collect(f, manual, hva, copy, false);
        for (int i = 0; i < pages; i++)
            Assert.Equal(*(long*)(hva + (ulong)i * 4096), copy[i]);
    }

    private static void Collect(MmuFixture f, bool manual, ulong hva, long[] copy, bool zap)
    {
        if (zap)
            f.Tdp.ZapGfnRange(0, (ulong)copy.Length);
        ulong[] bitmap = f.GetDirtyLog(0);
        if (manual)
            fixed (ulong* b = bitmap)
                Assert.Equal(0, f.Tdp.ClearDirtyLog(0, 0, (uint)copy.Length, (ulong)b));
        foreach (ulong page in Pages(bitmap))
            copy[page] = Volatile.Read(ref *(long*)(hva + page * 4096));
    }

    [Fact]
    public void Log_SeesHostWrites()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, Log);
        var memory = new Ring3.Memory.GuestMemory(f.Slots);
        Assert.True(memory.Write(0x1ffe, new byte[4]));
        Assert.Equal([1UL, 2UL], Pages(f.GetDirtyLog(0)));
    }

    [Theory]
    [InlineData(DirtyTracking.WriteProtect)]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    public void DisablingLog_FormsHugePagesAgain(DirtyTracking tracking)
    {
        using var f = new MmuFixture();
        f.Slots.DirtyTracking = tracking;
        f.AddRam(0, 0, 8 * M);
        f.V.Access(0, true);
        f.SetFlags(0, Log);
        f.V.Access(0x3000, true);
        f.V.Access(4 * M, true);
        Assert.Equal(0UL, f.Tdp.GetStats().Pages2M);
        f.SetFlags(0, 0);
        f.Tdp.CheckInvariants();
        Assert.Equal(2UL, f.Tdp.GetStats().Pages2M);
        Assert.Equal(2UL, f.Tdp.GetStats().HugeRecoveries);
        f.V.Access(0x3000, true);
        Assert.Equal(0UL, f.Tdp.GetStats().Pages4K);
    }

    [Theory]
    [InlineData(DirtyTracking.WriteProtect)]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    public void ManualProtect_ClearsOnlyWhatIsAsked(DirtyTracking tracking)
    {
        using var f = new MmuFixture();
        f.Slots.DirtyTracking = tracking;
        f.Slots.ManualDirtyLogProtect = KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
        f.AddRam(0, 0, M, Log);
        f.V.Access(0x1000, true);
        f.V.Access(0x41000, true);
        Assert.Equal([1UL, 0x41UL], Pages(f.GetDirtyLog(0)));
        Assert.Equal([1UL, 0x41UL], Pages(f.GetDirtyLog(0)));
        ulong mask = ~0UL;
        Assert.Equal(0, f.Tdp.ClearDirtyLog(0, 0x40, 64, (ulong)&mask));
        Assert.Equal([1UL], Pages(f.GetDirtyLog(0)));
        f.V.Access(0x41000, true);
        Assert.Equal([1UL, 0x41UL], Pages(f.GetDirtyLog(0)));
    }

    [Theory]
    [InlineData(DirtyTracking.WriteProtect)]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    public void InitiallySet_StartsFull_AndClearProtects(DirtyTracking tracking)
    {
        using var f = new MmuFixture();
        f.Slots.DirtyTracking = tracking;
        f.Slots.ManualDirtyLogProtect = KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KvmApi.KVM_DIRTY_LOG_INITIALLY_SET;
        f.AddRam(0, 0, 2 * M);
        f.V.Access(0x1000, true);
        f.SetFlags(0, Log);
        Assert.Equal(512, Pages(f.GetDirtyLog(0)).Length);
        ulong[] all = Enumerable.Repeat(~0UL, 8).ToArray();
        fixed (ulong* a = all)
            Assert.Equal(0, f.Tdp.ClearDirtyLog(0, 0, 512, (ulong)a));
        Assert.Empty(Pages(f.GetDirtyLog(0)));
        f.V.Access(0x7000, true);
        Assert.Equal([7UL], Pages(f.GetDirtyLog(0)));
    }

    [Theory]
    [InlineData(0u, 1UL, 64u, -Errno.EINVAL)]
    [InlineData(0u, 0UL, 65u, -Errno.EINVAL)]
    [InlineData(0u, 0UL, 100u, 0)]
    [InlineData(0u, 64UL, 36u, 0)]
    [InlineData(0u, 64UL, 37u, -Errno.EINVAL)]
    [InlineData(0u, 128UL, 0u, -Errno.EINVAL)]
    [InlineData(5u, 0UL, 64u, -Errno.ENOENT)]
    [InlineData(1u, 0UL, 64u, -Errno.ENOENT)]
    [InlineData(0x20000u, 0UL, 64u, -Errno.EINVAL)]
    [InlineData(32764u, 0UL, 64u, -Errno.EINVAL)]
    public void ClearDirtyLog_Errors(uint slot, ulong first, uint pages, int expected)
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 100 * 4096, Log);
        f.AddRam(1, M, M);
        ulong* bitmap = stackalloc ulong[4];
        Assert.Equal(expected, f.Tdp.ClearDirtyLog(slot, first, pages, (ulong)bitmap));
    }

    [Fact]
    public void HarvestDirty_FindsWritesOnly_AndSeesTheNextOne()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x1000, false);
        f.V.Access(0x2000, true);
        ulong[] bitmap = new ulong[4];
        Assert.Equal(1UL, f.Tdp.HarvestDirty(0, 256, bitmap));
        Assert.Equal(4UL, bitmap[0]);
        Assert.Equal(0UL, f.Tdp.HarvestDirty(0, 256, bitmap));
        f.V.Access(0x2000, true);
        Assert.Equal(1UL, f.Tdp.HarvestDirty(0, 256, bitmap));
    }
}

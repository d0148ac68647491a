using Ring3.Abi;

namespace Ring3.Mmu.Tests;

public unsafe class DirtyLogTests
{
    private const ulong M = 1 << 20;
    private const uint Log = KvmApi.KVM_MEM_LOG_DIRTY_PAGES;

    private static ulong[] Pages(ulong[] bitmap) => Enumerable.Range(0, bitmap.Length * 64).Where(i => (bitmap[i / 64] >> (i % 64) & 1) != 0).Select(i => (ulong)i).ToArray();

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Log_SeesFirstWriteOfEachRound_AndNothingElse(bool eagerSplit)
    {
        using var f = new MmuFixture(2);
        f.Tdp.EagerSplit = eagerSplit;
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
        Assert.True(f.V.Mmu.Stats.PfFast >= 1);
        Assert.Equal(eagerSplit ? 512UL : 512UL, f.Tdp.GetStats().Pages4K);
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

    [Fact]
    public void DisablingLog_FormsHugePagesAgain()
    {
        using var f = new MmuFixture();
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

    [Fact]
    public void ManualProtect_ClearsOnlyWhatIsAsked()
    {
        using var f = new MmuFixture();
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

    [Fact]
    public void InitiallySet_StartsFull_AndClearProtects()
    {
        using var f = new MmuFixture();
        f.Slots.ManualDirtyLogProtect = KvmApi.KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KvmApi.KVM_DIRTY_LOG_INITIALLY_SET;
        f.AddRam(0, 0, 2 * M);
        f.V.Access(0x1000, true);
        f.SetFlags(0, Log);
        Assert.Equal(512, Pages(f.GetDirtyLog(0)).Length);
        ulong[] all = Enumerable.Repeat(~0UL, 8).ToArray();
        fixed (ulong* a = all)
            Assert.Equal(0, f.Tdp.ClearDirtyLog(0, 0, 512, (ulong)a));
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

using Ring3.Abi;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public class AgeTests
{
    private const ulong M = 1 << 20;

    [Fact]
    public void TestClearYoung_ReportsAndClears()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x1000, false);
        f.V.Access(0x45000, true);
        ulong[] bitmap = new ulong[4];
        Assert.True(f.Tdp.TestClearYoung(0, 256, bitmap));
        Assert.Equal([2UL, 32UL, 0, 0], bitmap);
        Array.Clear(bitmap);
        f.Tdp.TestClearYoung(0, 256, bitmap);
        Assert.Equal([0UL, 0, 0, 0], bitmap);
        Assert.Equal(0, f.Host.Flushes);
        // Dirty and the mapping survive.
        ulong spte = f.V.Leaf(0x45000, out _);
        Assert.True(Spte.IsPresent(spte) && Spte.IsDirty(spte) && !Spte.IsAccessed(spte));
    }

    [Fact]
    public void TestClearYoung_OffsetAndHugePage()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 8 * M);
        f.V.Access(2 * M, true);
        ulong[] bitmap = new ulong[2];
        f.Tdp.TestClearYoung(0x1ff, 0x1ff + 66, bitmap);
        Assert.Equal([~1UL, 3UL], bitmap);
    }

    [Fact]
    public void Notifier_AgesByHostAddress()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x3000, false);
        ulong hva = ram.Hva + 0x1000 + 0x3000;
        Assert.True(f.Slots.Notifier.TestYoung(hva, hva + 1));
        Assert.False(f.Slots.Notifier.TestYoung(hva + 0x1000, hva + 0x2000));
        Assert.True(f.Slots.Notifier.ClearYoung(hva, hva + 1));
        Assert.False(f.Slots.Notifier.TestYoung(hva, hva + 1));
    }

    [Theory]
    [InlineData(AgingPolicy.Lockless)]
    [InlineData(AgingPolicy.Locked)]
    public void HarvestYoung_EveryOffset_AgreesWithTheAccesses(AgingPolicy policy)
    {
        using var f = new MmuFixture();
        f.Tdp.Aging = policy;
        f.AddRam(0, 0, 8 * M, 0, 0x1000);
        var random = new Random(5);
        ulong[] bitmap = new ulong[33], expected = new ulong[33];
        // The first access makes a page young too: start with everything mapped and old.
        for (ulong gfn = 0; gfn < 2048; gfn++)
            f.V.Access(gfn << 12, false);
        f.Tdp.HarvestYoung(0, 2048, bitmap);
        Assert.All(bitmap[..32], w => Assert.Equal(ulong.MaxValue, w));
        for (int round = 0; round < 200; round++)
        {
            ulong start = (ulong)random.Next(2040), end = start + 1 + (ulong)random.Next((int)(2048 - start));
            Array.Clear(bitmap);
            Array.Clear(expected);
            f.Host.FlushRemoteTlbs();
            for (int i = random.Next(20); i >= 0; i--)
            {
                ulong gfn = (ulong)random.Next(2048);
                f.V.Access(gfn << 12, random.Next(2) == 0);
                if (gfn >= start && gfn < end)
                    expected[(gfn - start) / 64] |= 1UL << (int)((gfn - start) % 64);
            }
            f.Tdp.HarvestYoung(start, end, bitmap);
            Assert.Equal(expected, bitmap);
            Array.Clear(bitmap);
            f.Tdp.HarvestYoung(start, end, bitmap);
            Assert.All(bitmap, w => Assert.Equal(0UL, w));
            // Young pages outside the range would be found by a later round.
            f.Tdp.HarvestYoung(0, 2048, bitmap);
        }
    }

    [Fact]
    public void TestClearYoung_SkipsTablesThatNobodyHasWalked()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M, 0, 0x1000);
        f.V.Access(0x5000, true);
        ulong[] bitmap = new ulong[8];
        f.Tdp.TestClearYoung(0, 512, bitmap);
        Assert.Equal(1UL << 5, bitmap[0]);
        // A leaf that becomes young without a walk is not seen: the table was skipped. A walk through it, to any page, makes both visible.
        f.V.SetLeafBits(0x5000, Spte.A);
        Array.Clear(bitmap);
        f.Tdp.TestClearYoung(0, 512, bitmap);
        Assert.Equal(0UL, bitmap[0]);
        f.V.Access(0x6000, false);
        f.Tdp.TestClearYoung(0, 512, bitmap);
        Assert.Equal(3UL << 5, bitmap[0]);
    }

    [Fact]
    public void WithoutAccessedBits_LocklessAgingIsNotHandled_LockedTakesPermissions()
    {
        using var f = new MmuFixture(accessedBits: false);
        f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x1000, true);
        f.V.Access(0x2000, false);
        ulong[] bitmap = new ulong[4];
        Assert.False(f.Tdp.TestClearYoung(0, 256, bitmap));
        Assert.Equal([0UL, 0, 0, 0], bitmap);
        int flushes = f.Host.Flushes;
        f.Tdp.HarvestYoung(0, 256, bitmap);
        Assert.Equal([6UL, 0, 0, 0], bitmap);
        Assert.Equal(flushes + 1, f.Host.Flushes);
        ulong old = f.V.Leaf(0x1000, out _);
        Assert.True(Spte.IsPresent(old) && (old & Spte.RWX) == 0 && Spte.IsWellFormed(old, 1));
        // The next access faults once, without mmu_lock, and makes the page young again.
        ulong fast = f.V.Mmu.Stats.PfFast;
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x1000, true));
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x2000, false));
        Assert.Equal(fast + 2, f.V.Mmu.Stats.PfFast);
        Assert.Equal(Spte.RWX, f.V.Leaf(0x1000, out _) & Spte.RWX);
        Array.Clear(bitmap);
        f.Tdp.HarvestYoung(0, 256, bitmap);
        Assert.Equal([6UL, 0, 0, 0], bitmap);
    }

    /// <summary>
    /// Aging takes W with the rest. The log that protects the page next owes no flush, for it finds no W: so aging itself must have flushed, or the
    /// processor goes on writing through what it has cached.
    /// </summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void WithoutAccessedBits_WritesAfterAgingAreLogged(bool withoutFlush)
    {
        using var f = new MmuFixture(accessedBits: false);
        f.AddRam(0, 0, M, KvmApi.KVM_MEM_LOG_DIRTY_PAGES, 0x1000);
        f.V.Access(0x3000, true);
        f.Host.IgnoreFlushes = withoutFlush;
        f.Tdp.HarvestYoung(0, 256, new ulong[4]);
        f.Host.IgnoreFlushes = false;
        f.GetDirtyLog(0);
        f.V.Access(0x3000, true);
        Assert.Equal(!withoutFlush, (f.GetDirtyLog(0)[0] & 8) != 0);
    }

    [Fact]
    public void WithoutAccessedBits_NotifierAgesUnderTheLock()
    {
        using var f = new MmuFixture(accessedBits: false);
        GuestRam ram = f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x3000, false);
        ulong hva = ram.Hva + 0x1000 + 0x3000;
        Assert.True(f.Slots.Notifier.ClearYoung(hva, hva + 1));
        Assert.False(f.Slots.Notifier.TestYoung(hva, hva + 1));
        f.V.Access(0x3000, false);
        Assert.True(f.Slots.Notifier.TestYoung(hva, hva + 1));
    }
}

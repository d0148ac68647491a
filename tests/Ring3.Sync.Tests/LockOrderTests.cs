using Ring3.Host;

namespace Ring3.Sync.Tests;

/// <summary>What keeps the order of locks says what is wrong before a thread waits.</summary>
public class LockOrderTests
{
    [Fact]
    public void Tests_AreChecked() => Assert.True(LockOrder.IsChecked);

    [Fact]
    public void InnerThenOuter_IsRefused()
    {
        var inner = new RankedLock(LockRank.Ioapic);
        var outer = new FutexMutex(LockRank.SlotsLock);
        using (inner.Enter())
            Assert.Contains("SlotsLock is waited for under Ioapic", Assert.Throws<LockOrderException>(() => outer.Enter()).Message);
        using (outer.Enter())
        using (inner.Enter())
        using (inner.Enter())
            outer.AssertHeld();
        Assert.Throws<LockOrderException>(outer.AssertHeld);
    }

    [Fact]
    public void EqualRanks_AreRefused_AndTryingIsNot()
    {
        MmuLock a = new(LockRank.Gpc), b = new(LockRank.Gpc);
        a.EnterRead();
        Assert.Throws<LockOrderException>(b.EnterRead);
        Assert.True(b.TryEnterRead());
        Assert.Throws<LockOrderException>(() => b.TryEnterRead());
        b.ExitRead();
        a.AssertHeldRead();
        Assert.Throws<LockOrderException>(a.AssertHeldWrite);
        a.ExitRead();
        Assert.Throws<LockOrderException>(a.ExitRead);
    }

    [Fact]
    public void GracePeriods_AreWaitedForOutsideSectionsAndInnerLocks()
    {
        var mmu = new MmuLock(LockRank.MmuLock);
        var slots = new FutexMutex(LockRank.SlotsLock);
        using (Rcu.Read())
        {
            Assert.Throws<LockOrderException>(Rcu.Synchronize);
            Assert.Throws<LockOrderException>(() => slots.Enter());
            using (mmu.Read())
                Rcu.AssertInSection();
        }
        Assert.Throws<LockOrderException>(Rcu.AssertInSection);
        using (mmu.Write())
            Assert.Throws<LockOrderException>(Rcu.Synchronize);
        using (slots.Enter())
            Rcu.Synchronize();
    }

    [Fact]
    public void ALockWithoutRank_IsRefused()
    {
        TinyLock none = default;
        Assert.Throws<LockOrderException>(() => none.Enter());
    }
}

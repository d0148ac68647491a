using Ring3.Mmu;
using Ring3.Mmu.Tests;

namespace Ring3.Mutants.Tests;

/// <summary>Each mistake of the protocol of roots is seen by the observation that is about it.</summary>
[Collection(nameof(Defects))]
public sealed class RootDefectTests : IDisposable
{
    public RootDefectTests() => Defects.None();

    public void Dispose() => Defects.None();

    [Fact]
    public void WithoutDefects_EverythingHolds()
    {
        Assert.True(RootProtocol.SchedulesBeforeUnlock());
        Assert.True(RootProtocol.SchedulesNoRootTwice());
        Assert.True(RootProtocol.ZapAllFastWaitsForRootsThatItSkipped(RootZapPolicy.Worker));
        Assert.True(RootProtocol.InvalidRootsStayReachableForNotifiersUntilZapped());
        Assert.True(RootProtocol.TeardownFlushesBeforeItChecks());
    }

    [Fact]
    public void QueueAfterUnlock()
    {
        Defects.Root = RootDefect.QueueAfterUnlock;
        Assert.False(RootProtocol.SchedulesBeforeUnlock());
    }

    [Fact]
    public void QueueTwice()
    {
        Defects.Root = RootDefect.QueueTwice;
        Assert.False(RootProtocol.SchedulesNoRootTwice());
    }

    [Fact]
    public void IgnoreSkipped()
    {
        Defects.Root = RootDefect.IgnoreSkipped;
        Assert.False(RootProtocol.ZapAllFastWaitsForRootsThatItSkipped(RootZapPolicy.Worker));
    }

    [Fact]
    public void PutBeforeZap()
    {
        Defects.Root = RootDefect.PutBeforeZap;
        Assert.False(RootProtocol.InvalidRootsStayReachableForNotifiersUntilZapped());
    }

    [Fact]
    public void CheckBeforeFlush()
    {
        Defects.Root = RootDefect.CheckBeforeFlush;
        Assert.False(RootProtocol.TeardownFlushesBeforeItChecks(flushes: false));
    }

    [Fact]
    public void DropState()
    {
        Assert.NotEqual(0UL, LeafStateScene.DirtyPagesAfterAnotherSlotsDeletion());
        Defects.Root = RootDefect.DropState;
        Assert.Equal(0UL, LeafStateScene.DirtyPagesAfterAnotherSlotsDeletion());
    }
}

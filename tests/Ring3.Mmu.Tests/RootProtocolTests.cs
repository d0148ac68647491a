namespace Ring3.Mmu.Tests;

/// <summary>
/// The invariants of roots hold. Their controls, the same observations of the protocol with the mistakes that they forbid, are in Ring3.Mutants.Tests.
/// </summary>
public class RootProtocolTests
{
    [Fact]
    public void Zaps_AreScheduledBeforeUnlock() => Assert.True(RootProtocol.SchedulesBeforeUnlock());

    [Fact]
    public void NoRootIsScheduledTwice() => Assert.True(RootProtocol.SchedulesNoRootTwice());

    [Theory]
    [InlineData(RootZapPolicy.Worker)]
    [InlineData(RootZapPolicy.Sync)]
    [InlineData(RootZapPolicy.Inline)]
    public void ZapAllFast_WaitsForRootsThatItSkipped(RootZapPolicy policy) => Assert.True(RootProtocol.ZapAllFastWaitsForRootsThatItSkipped(policy));

    [Fact]
    public void InvalidRoots_StayReachableForNotifiers_UntilZapped() => Assert.True(RootProtocol.InvalidRootsStayReachableForNotifiersUntilZapped());

    /// <summary>The control is the policy that says it should.</summary>
    [Theory]
    [InlineData(RootZapPolicy.Worker, true)]
    [InlineData(RootZapPolicy.Sync, false)]
    [InlineData(RootZapPolicy.Inline, false)]
    public void LastPut_NeverZaps(RootZapPolicy policy, bool holds) => Assert.Equal(holds, RootProtocol.LastPutNeverZaps(policy));

    [Fact]
    public void Teardown_FlushesBeforeItChecks() => Assert.True(RootProtocol.TeardownFlushesBeforeItChecks());

    /// <summary>
    /// References are gifts: at every point exactly one of each vCPU that has the root, one of the MMU until invalidation, one of the zap until its
    /// end.
    /// </summary>
    [Fact]
    public void References_AreExactlyAccountedFor()
    {
        using MmuFixture f = RootProtocol.Populated(vcpus: 3);
        f.Tdp.CheckInvariants(quiet: true);
        f.Vcpus[0].Mmu.FreeRoots();
        f.Tdp.CheckInvariants(quiet: true);
        f.Tdp.TrimRoots();
        f.Tdp.CheckInvariants(quiet: true);
        using var gate = new ManualResetEventSlim();
        using var arrived = new ManualResetEventSlim();
        f.Tdp.BeforeZapHold = () =>
        {
            arrived.Set();
            gate.Wait();
        };
        var deleter = new Thread(() => f.Delete(1));
        deleter.Start();
        arrived.Wait();
        gate.Set();
        deleter.Join();
        f.Tdp.BeforeZapHold = null;
        f.Queue.Drain();
        f.Tdp.CheckInvariants(quiet: true);
        f.Vcpus[1].HandleRequests();
        f.Tdp.CheckInvariants(quiet: true);
        Assert.Equal(1, f.Tdp.GetStats().Roots);
        f.Vcpus[2].HandleRequests();
        f.Queue.Drain();
        Assert.Equal(0, f.Tdp.GetStats().Roots);
    }
}

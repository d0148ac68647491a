using Ring3.Sync;

namespace Ring3.Mmu.Tests;

/// <summary>The invariants of roots, one by one (docs/tdp-mmu.md), each with a control: the same observation of the protocol with the mistake that the invariant forbids.</summary>
public unsafe class RootProtocolTests
{
    private const ulong M = 1 << 20, P = 4096;

    private static MmuFixture Populated(RootDefect defect, RootZapPolicy policy = RootZapPolicy.Worker, int vcpus = 1)
    {
        var f = new MmuFixture(vcpus, policy);
        f.Tdp.Defect = defect;
        f.AddRam(0, 0, 4 * M, 0, P);
        f.AddRam(1, 64 * M, 4 * M);
        foreach (FakeVcpu v in f.Vcpus)
            for (ulong gpa = 0; gpa < 4 * M; gpa += P)
                v.Access(gpa, true);
        return f;
    }

    private static void ZapAllFast(MmuFixture f)
    {
        using (f.Slots.SlotsLock.Enter())
            f.Tdp.ZapAllFast();
    }

    /// <summary>Whoever turns Invalid on has scheduled the zap when mmu_lock is released.</summary>
    [Theory]
    [InlineData(RootDefect.None, true)]
    [InlineData(RootDefect.QueueAfterUnlock, false)]
    internal void QueueBeforeUnlock(RootDefect defect, bool holds)
    {
        using MmuFixture f = Populated(defect);
        bool? scheduled = null;
        f.Host.OnObsolete = () => scheduled ??= f.Tdp.ZapsAreScheduled;
        f.Delete(1);
        Assert.Equal(holds, scheduled);
        f.Tdp.Defect = RootDefect.None;
    }

    /// <summary>A root that is invalid already is not scheduled again: that zap's reference would never be dropped.</summary>
    [Theory]
    [InlineData(RootDefect.None, true)]
    [InlineData(RootDefect.QueueTwice, false)]
    internal void NoRootIsQueuedTwice(RootDefect defect, bool holds)
    {
        MmuFixture f = Populated(defect);
        ZapAllFast(f);
        ZapAllFast(f);
        f.Queue.Drain();
        f.Vcpus[0].Mmu.FreeRoots();
        f.Queue.Drain();
        Exception? leak = Record.Exception(() => f.Tdp.CheckInvariants(quiet: true));
        Assert.Equal(holds, leak is null);
        Assert.Equal(holds ? 0 : 1, f.Tdp.GetStats().Roots);
        if (holds)
            f.Dispose();
    }

    /// <summary>"Zap all fast" returns when the roots that it skipped, because somebody else had made them invalid, have been zapped too.</summary>
    [Theory]
    [InlineData(RootDefect.None, RootZapPolicy.Worker, true)]
    [InlineData(RootDefect.None, RootZapPolicy.Sync, true)]
    [InlineData(RootDefect.None, RootZapPolicy.Inline, true)]
    [InlineData(RootDefect.IgnoreSkipped, RootZapPolicy.Worker, false)]
    internal void ZapAllFast_WaitsForRootsThatItSkipped(RootDefect defect, RootZapPolicy policy, bool holds)
    {
        using MmuFixture f = Populated(defect, policy);
        using var returned = new ManualResetEventSlim();
        using var zapping = new ManualResetEventSlim();
        int first = 0;
        f.Tdp.BeforeZapHold = () =>
        {
            if (Interlocked.Exchange(ref first, 1) != 0)
                return;
            zapping.Set();
            // The zap stands still until the other thread has come back. With the invariant it does not, so this wait ends by time, and no result depends on how long it was.
            returned.Wait(200);
        };
        f.Tdp.TrimRoots();
        var putter = new Thread(() => f.V.Mmu.FreeRoots());
        putter.Start();
        zapping.Wait();
        ZapAllFast(f);
        ulong zapped = f.Tdp.GetStats().RootsZapped;
        returned.Set();
        putter.Join();
        Assert.Equal(holds ? 1UL : 0UL, zapped);
    }

    /// <summary>An invalid root is found by notifiers until it has been zapped: memory that they take away is mapped nowhere.</summary>
    [Theory]
    [InlineData(RootDefect.None, true)]
    [InlineData(RootDefect.PutBeforeZap, false)]
    internal void InvalidRoots_StayReachableForNotifiers_UntilZapped(RootDefect defect, bool holds)
    {
        MmuFixture f = Populated(defect);
        ulong hva = f.Slots.Set(0).ById(0)!.UserspaceAddr;
        ulong* table = (ulong*)f.V.Mmu.RootHva;
        for (int level = 4; level > 1; level--)
            table = (ulong*)Spte.Address(table[0]);
        ulong page = 0;
        bool everGone = true;
        f.Tdp.BeforeZapHold = () =>
        {
            ulong at = hva + page * P;
            Assert.True(f.Slots.Notifier.InvalidateRangeStart(at, at + P));
            everGone &= !Spte.IsPresent(table[page++]);
            f.Slots.Notifier.InvalidateRangeEnd(at, at + P);
        };
        f.Tdp.TrimRoots();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        Assert.True(page >= 1);
        Assert.Equal(holds, everGone);
        if (holds)
            f.Dispose();
    }

    /// <summary>The thread that drops the last reference does not zap; the control is the policy that says it should.</summary>
    [Theory]
    [InlineData(RootZapPolicy.Worker, true)]
    [InlineData(RootZapPolicy.Sync, false)]
    [InlineData(RootZapPolicy.Inline, false)]
    public void LastPut_NeverZaps(RootZapPolicy policy, bool holds)
    {
        using MmuFixture f = Populated(RootDefect.None, policy);
        var zappers = new HashSet<int>();
        f.Tdp.BeforeZapHold = () => zappers.Add(Environment.CurrentManagedThreadId);
        f.Tdp.TrimRoots();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        Assert.Single(zappers);
        Assert.Equal(holds, !zappers.Contains(Environment.CurrentManagedThreadId));
    }

    /// <summary>Teardown flushes the queue before it looks whether anything is left. A reader holds back the grace period that the last tables wait for.</summary>
    [Theory]
    [InlineData(RootDefect.None, true)]
    [InlineData(RootDefect.CheckBeforeFlush, false)]
    internal void Teardown_FlushesBeforeItChecks(RootDefect defect, bool holds)
    {
        MmuFixture f = Populated(defect);
        using var reading = new ManualResetEventSlim();
        using var release = new ManualResetEventSlim();
        var reader = new Thread(() =>
        {
            using var _ = Rcu.Read();
            reading.Set();
            release.Wait();
        });
        reader.Start();
        reading.Wait();
        f.V.Dispose();
        f.Host.OnObsolete = () =>
        {
            if (holds)
                release.Set();
        };
        Exception? refused = Record.Exception(f.Tdp.Dispose);
        release.Set();
        reader.Join();
        f.Queue.Dispose();
        Assert.Equal(holds, refused is null);
    }

    /// <summary>References are gifts: at every point exactly one of each vCPU that has the root, one of the MMU until invalidation, one of the zap until its end.</summary>
    [Fact]
    public void References_AreExactlyAccountedFor()
    {
        using MmuFixture f = Populated(RootDefect.None, vcpus: 3);
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

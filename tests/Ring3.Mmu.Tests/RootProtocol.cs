using Ring3.Sync;

namespace Ring3.Mmu.Tests;

/// <summary>
/// The invariants of roots, one by one (docs/tdp-mmu.md), as observations: each says whether the invariant holds. Ring3.Mutants.Tests makes the same of
/// a copy with the mistakes that they forbid.
/// </summary>
internal static unsafe class RootProtocol
{
    private const ulong M = 1 << 20, P = 4096;

    internal static MmuFixture Populated(RootZapPolicy policy = RootZapPolicy.Worker, int vcpus = 1)
    {
        var f = new MmuFixture(vcpus, policy);
        f.AddRam(0, 0, 4 * M, 0, P);
        f.AddRam(1, 64 * M, 4 * M);
        foreach (FakeVcpu v in f.Vcpus)
            for (ulong gpa = 0; gpa < 4 * M; gpa += P)
                v.Access(gpa, true);
        return f;
    }

    internal static void ZapAllFast(MmuFixture f)
    {
        using (f.Slots.SlotsLock.Enter())
            f.Tdp.ZapAllFast();
    }

    /// <summary>Whoever turns Invalid on has scheduled the zap when mmu_lock is released.</summary>
    internal static bool SchedulesBeforeUnlock()
    {
        using MmuFixture f = Populated();
        bool? scheduled = null;
        f.Host.OnObsolete = () => scheduled ??= f.Tdp.ZapsAreScheduled;
        f.Delete(1);
        return scheduled!.Value;
    }

    /// <summary>A root that is invalid already is not scheduled again: that zap's reference would never be dropped.</summary>
    internal static bool SchedulesNoRootTwice()
    {
        MmuFixture f = Populated();
        ZapAllFast(f);
        ZapAllFast(f);
        f.Queue.Drain();
        f.Vcpus[0].Mmu.FreeRoots();
        f.Queue.Drain();
        Exception? leak = Record.Exception(() => f.Tdp.CheckInvariants(quiet: true));
        bool holds = leak is null;
        Assert.Equal(holds ? 0 : 1, f.Tdp.GetStats().Roots);
        if (holds)
            f.Dispose();
        return holds;
    }

    /// <summary>"Zap all fast" returns when the roots that it skipped, because somebody else had made them invalid, have been zapped too.</summary>
    internal static bool ZapAllFastWaitsForRootsThatItSkipped(RootZapPolicy policy)
    {
        using MmuFixture f = Populated(policy);
        using var returned = new ManualResetEventSlim();
        using var zapping = new ManualResetEventSlim();
        int first = 0;
        f.Tdp.BeforeZapHold = () =>
        {
            if (Interlocked.Exchange(ref first, 1) != 0)
                return;
            zapping.Set();
            // The zap stands still until the other thread has come back. With the invariant it does not, so this wait ends by time, and no result
            // depends on how long it was.
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
        return zapped == 1;
    }

    /// <summary>An invalid root is found by notifiers until it has been zapped: memory that they take away is mapped nowhere.</summary>
    internal static bool InvalidRootsStayReachableForNotifiersUntilZapped()
    {
        MmuFixture f = Populated();
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
        if (everGone)
            f.Dispose();
        return everGone;
    }

    /// <summary>The thread that drops the last reference does not zap.</summary>
    internal static bool LastPutNeverZaps(RootZapPolicy policy)
    {
        using MmuFixture f = Populated(policy);
        var zappers = new HashSet<int>();
        f.Tdp.BeforeZapHold = () => zappers.Add(Environment.CurrentManagedThreadId);
        f.Tdp.TrimRoots();
        f.V.Mmu.FreeRoots();
        f.Queue.Drain();
        Assert.Single(zappers);
        return !zappers.Contains(Environment.CurrentManagedThreadId);
    }

    /// <summary>
    /// Teardown flushes the queue before it looks whether anything is left. A reader holds back the grace period that the last tables wait for.
    /// </summary>
    /// <param name="flushes">False: do not let the reader go while teardown is under way, which a teardown that flushes would wait for.</param>
    internal static bool TeardownFlushesBeforeItChecks(bool flushes = true)
    {
        MmuFixture f = Populated();
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
            if (flushes)
                release.Set();
        };
        Exception? refused = Record.Exception(f.Tdp.Dispose);
        release.Set();
        reader.Join();
        f.Queue.Dispose();
        return refused is null;
    }
}

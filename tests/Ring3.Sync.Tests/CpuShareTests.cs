namespace Ring3.Sync.Tests;

/// <summary>The worker's share of a processor, with clocks that the tests move.</summary>
public class CpuShareTests
{
    private sealed class TestClock : IShareClock
    {
        private long _wall, _cpu;
        public long WallNs => Volatile.Read(ref _wall);
        public long ThreadCpuNs => Volatile.Read(ref _cpu);

        /// <summary>The thread works; the host lets it run <paramref name="cpuNs"/> out of <paramref name="wallNs"/>.</summary>
        public void Work(long cpuNs, long wallNs)
        {
            Interlocked.Add(ref _cpu, cpuNs);
            Interlocked.Add(ref _wall, wallNs);
        }

        public void Rest(long ns) => Interlocked.Add(ref _wall, ns);
    }

    /// <summary>
    /// Seeded steps of up to 200 us, at every wait exactly as much rest as asked for. Returns the largest excess over share * t + burst + step that any
    /// interval from the start showed.
    /// </summary>
    private static long WorstExcess(int percent, bool obey, out long used, out long wall)
    {
        const long MaxStep = 200_000;
        var clock = new TestClock();
        var share = new CpuShare(clock) { Percent = percent };
        var random = new Random(percent);
        long worst = long.MinValue;
        share.Begin();
        for (int i = 0; i < 20_000; i++)
        {
            long cpu = random.Next(1, (int)MaxStep);
            // Sometimes the host takes the processor away: that is not the worker's time.
            clock.Work(cpu, cpu + (random.Next(4) == 0 ? random.Next(500_000) : 0));
            worst = Math.Max(worst, clock.ThreadCpuNs - (clock.WallNs * percent / 100 + CpuShare.BurstNs + MaxStep));
            if (share.MayGoOn() || !obey)
                continue;
            clock.Rest(share.WaitNs());
            share.Begin();
        }
        (used, wall) = (share.UsedNs, clock.WallNs);
        return worst;
    }

    [Theory]
    [InlineData(1)]
    [InlineData(10)]
    [InlineData(25)]
    [InlineData(50)]
    [InlineData(99)]
    public void Share_IsNeverExceeded_AndIsUsed(int percent)
    {
        Assert.InRange(WorstExcess(percent, obey: true, out long used, out long wall), long.MinValue, 0);
        // A worker with enough to do gets what it is entitled to.
        if (percent <= 50)
            Assert.InRange((double)used / wall, percent * 0.0095, percent * 0.0101 + 0.001);
    }

    [Fact]
    public void Control_WorkerThatDoesNotWait_ExceedsIt() => Assert.True(WorstExcess(25, obey: false, out long _, out long _) > 0);

    [Fact]
    public void HundredPercent_NeverWaits()
    {
        var clock = new TestClock();
        var share = new CpuShare(clock);
        for (int i = 0; i < 100; i++)
        {
            Assert.Equal(0, share.WaitNs());
            share.Begin();
            clock.Work(10_000_000, 10_000_000);
            Assert.True(share.MayGoOn());
        }
        Assert.Equal((1_000_000_000, 0), (share.UsedNs, share.Pauses));
    }

    [Theory]
    [InlineData(0)]
    [InlineData(101)]
    [InlineData(-5)]
    public void Percent_OutOfRange_IsRefused(int percent) => Assert.Throws<ArgumentOutOfRangeException>(() =>
        new CpuShare(new TestClock()) { Percent = percent });

    private sealed class Bulk(WorkQueue queue, TestClock clock, int steps, Action<int>? each = null) : BulkWorkItem
    {
        public int Done, Slices;

        protected internal override bool RunSlice()
        {
            Slices++;
            while (Done < steps)
            {
                clock.Work(1_000_000, 1_000_000);
                each?.Invoke(Done);
                Done++;
                if (queue.ShouldYield)
                    return false;
            }
            return true;
        }
    }

    private sealed class Item(Action run) : WorkItem
    {
        protected internal override void Run() => run();
    }

    /// <summary>The real queue with a quarter of a processor: each pause lasts until the clock, which only the test moves, has gone on.</summary>
    [Fact]
    public void Queue_RestsWhenTheShareIsUsedUp_AndFinishes()
    {
        var clock = new TestClock();
        using var queue = new WorkQueue("test", clock);
        queue.Share.Percent = 25;
        var bulk = new Bulk(queue, clock, 30);
        queue.Queue(bulk);
        using var done = new ManualResetEventSlim();
        var ticker = new Thread(() =>
        {
            while (!done.IsSet)
            {
                clock.Rest(100_000);
                Thread.Yield();
            }
        });
        ticker.Start();
        queue.Flush();
        long cpu = clock.ThreadCpuNs, wall = clock.WallNs;
        done.Set();
        ticker.Join();
        Assert.Equal(30, bulk.Done);
        Assert.True(queue.Share.Pauses > 5 && bulk.Slices > 5);
        Assert.True(cpu <= wall / 4 + CpuShare.BurstNs + 1_000_000, $"{cpu} of {wall}");
        Assert.Equal(30_000_000, queue.Share.UsedNs);
    }

    /// <summary>Ordinary work that is queued while bulk work runs is done at its next step, and Flush still waits for the bulk work's end.</summary>
    [Fact]
    public void BulkWork_GivesWayToOrdinaryWork()
    {
        var clock = new TestClock();
        using var queue = new WorkQueue("test", clock);
        int at = -1;
        Bulk? bulk = null;
        var item = new Item(() => at = bulk!.Done);
        bulk = new Bulk(queue, clock, 50, n =>
        {
            if (n == 7)
                queue.Queue(item);
        });
        queue.Queue(bulk);
        queue.Flush();
        Assert.Equal((8, 50, 2), (at, bulk.Done, bulk.Slices));
        Assert.Equal((1, 2), (queue.Yields, queue.Completed));
    }

    /// <summary>A bulk item that is queued again while it runs keeps its place: who waits for the first queueing waits for its end.</summary>
    [Fact]
    public void BulkWork_QueuedAgainWhileItRuns_StillAnswersTheFirstQueueing()
    {
        var clock = new TestClock();
        using var queue = new WorkQueue("test", clock);
        var item = new Item(() => { });
        Bulk? bulk = null;
        bulk = new Bulk(queue, clock, 20, n =>
        {
            if (n == 3)
            {
                Assert.True(queue.Queue(bulk!));
                queue.Queue(item);
            }
        });
        queue.Queue(bulk);
        queue.Flush();
        Assert.Equal(20, bulk.Done);
    }
}

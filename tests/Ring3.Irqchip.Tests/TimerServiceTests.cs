using Ring3.Irqchip.Timers;

namespace Ring3.Irqchip.Tests;

public class TimerServiceTests
{
    private sealed class Callback : ITimerCallback
    {
        internal readonly ManualResetEventSlim Fired = new();
        internal long AtNs;

        public void TimerExpired(HostTimer timer, long nowNs)
        {
            AtNs = nowNs;
            Fired.Set();
        }
    }

    private sealed class Nothing : ITimerCallback
    {
        public void TimerExpired(HostTimer timer, long nowNs) { }
    }

    [Fact]
    public void Queue_PopsInOrderUnderRandomArmsAndCancels()
    {
        var random = new Random(7);
        var queue = new TimerQueue();
        HostTimer[] timers = Enumerable.Range(0, 100).Select(_ => new HostTimer(new Nothing()) { Failed = e => throw e }).ToArray();
        var armed = new Dictionary<HostTimer, long>();
        for (int i = 0; i < 10_000; i++)
        {
            HostTimer t = timers[random.Next(timers.Length)];
            if (random.Next(3) == 0)
            {
                Assert.Equal(armed.Remove(t), queue.Cancel(t));
            }
            else
            {
                armed[t] = random.Next(1000);
                queue.Arm(t, armed[t]);
            }
            Assert.Equal(armed.Count == 0 ? long.MaxValue : armed.Values.Min(), queue.NextDeadlineNs);
            if (random.Next(10) == 0 && queue.PopExpired(500) is { } popped)
                Assert.True(armed.Remove(popped, out long deadline) && deadline <= 500);
        }
    }

    [Fact]
    public void Service_FiresLaterThenEarlierArmsInTime()
    {
        using var service = new TimerService();
        var late = new Callback();
        var soon = new Callback();
        var never = new Callback();
        var cancelled = new HostTimer(never) { Failed = e => throw e };
        long start = service.NowNs;
        service.Arm(new HostTimer(late) { Failed = e => throw e }, start + 60_000_000);
        service.Arm(cancelled, start + 10_000_000);
        service.Arm(new HostTimer(soon) { Failed = e => throw e }, start + 20_000_000);
        service.Cancel(cancelled);
        Assert.True(soon.Fired.Wait(10_000));
        Assert.True(late.Fired.Wait(10_000));
        Assert.True(soon.AtNs >= start + 20_000_000);
        Assert.True(late.AtNs >= start + 60_000_000);
        Assert.False(never.Fired.IsSet);
    }

    [Fact]
    public void Arm_AllocatesNothing()
    {
        using var service = new TimerService();
        var timer = new HostTimer(new Nothing()) { Failed = e => throw e };
        service.Arm(timer, long.MaxValue - 1);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 1000; i++)
            service.Arm(timer, long.MaxValue - 2 - i);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    private sealed class Thrower : ITimerCallback
    {
        public void TimerExpired(HostTimer timer, long nowNs) => throw new InvalidOperationException("broken");
    }

    /// <summary>The service's thread may be in somebody else's process: a callback that throws is its owner's business, and the timers behind it still fire.</summary>
    [Fact]
    public void Service_OutlivesACallbackThatThrows()
    {
        using var service = new TimerService();
        Exception? failure = null;
        var after = new Callback();
        service.Arm(new HostTimer(new Thrower()) { Failed = e => failure = e }, service.NowNs);
        service.Arm(new HostTimer(after) { Failed = e => throw e }, service.NowNs + 1_000_000);
        Assert.True(after.Fired.Wait(60_000));
        Assert.Equal("broken", failure?.Message);
    }
}

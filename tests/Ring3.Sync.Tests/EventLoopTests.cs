using Ring3.Host;

namespace Ring3.Sync.Tests;

public sealed class EventLoopTests
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
    public void Timers_FireLaterThenEarlierArmsInTime()
    {
        using var loop = new EventLoop();
        var late = new Callback();
        var soon = new Callback();
        var never = new Callback();
        var cancelled = new HostTimer(never) { Failed = e => throw e };
        long start = loop.NowNs;
        loop.Arm(new HostTimer(late) { Failed = e => throw e }, start + 60_000_000);
        loop.Arm(cancelled, start + 10_000_000);
        loop.Arm(new HostTimer(soon) { Failed = e => throw e }, start + 20_000_000);
        loop.Cancel(cancelled);
        Assert.True(soon.Fired.Wait(10_000));
        Assert.True(late.Fired.Wait(10_000));
        Assert.True(soon.AtNs >= start + 20_000_000);
        Assert.True(late.AtNs >= start + 60_000_000);
        Assert.False(never.Fired.IsSet);
    }

    [Fact]
    public void Arm_AllocatesNothing()
    {
        using var loop = new EventLoop();
        var timer = new HostTimer(new Nothing()) { Failed = e => throw e };
        loop.Arm(timer, long.MaxValue - 1);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (int i = 0; i < 1000; i++)
            loop.Arm(timer, long.MaxValue - 2 - i);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    private sealed class Thrower : ITimerCallback
    {
        public void TimerExpired(HostTimer timer, long nowNs) => throw new InvalidOperationException("broken");
    }

    /// <summary>
    /// The loop's thread may be in somebody else's process: a callback that throws is its owner's business, and the timers behind it still fire.
    /// </summary>
    [Fact]
    public void Loop_OutlivesACallbackThatThrows()
    {
        using var loop = new EventLoop();
        Exception? failure = null;
        var after = new Callback();
        loop.Arm(new HostTimer(new Thrower()) { Failed = e => failure = e }, loop.NowNs);
        loop.Arm(new HostTimer(after) { Failed = e => throw e }, loop.NowNs + 1_000_000);
        Assert.True(after.Fired.Wait(60_000));
        Assert.Equal("broken", failure?.Message);
    }

    /// <summary>An eventfd and what is done when it is signalled.</summary>
    private sealed class Member(Action<Member> signalled) : IPolled, IDisposable
    {
        internal readonly ManualResetEventSlim Told = new();
        internal Exception? Failure;
        internal int Calls;

        public int Fd { get; } = EventFd.Create();

        public void Signalled()
        {
            Interlocked.Increment(ref Calls);
            try { signalled(this); }
            finally { Told.Set(); }
        }

        public void Failed(Exception e)
        {
            Failure = e;
            Told.Set();
        }

        internal void Signal() => EventFd.Signal(Fd);

        internal void Drain() => EventFd.Drain(Fd);

        public void Dispose() => EventFd.Close(Fd);
    }

    [Fact]
    public void Descriptors_AreToldUntilTheyAreRead_AndNotAfterDetach()
    {
        using var loop = new EventLoop();
        using var member = new Member(m => { if (m.Calls >= 3) m.Drain(); });
        Assert.Equal(0, loop.Attach(member));
        member.Signal();
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref member.Calls) >= 3, 60_000));
        loop.Detach(member);
        member.Signal();
        using var other = new Member(m => m.Drain());
        Assert.Equal(0, loop.Attach(other));
        other.Signal();
        Assert.True(other.Told.Wait(60_000));
        Assert.Equal(3, member.Calls);
        // What is not attached is nobody's.
        loop.Detach(member);
        Assert.Equal(0, loop.Attach(member));
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref member.Calls) > 3, 60_000));
        loop.Detach(member);
    }

    [Fact]
    public void WhatIsNotPollable_IsRefused()
    {
        using var loop = new EventLoop();
        var member = new Member(_ => { });
        member.Dispose();
        Assert.True(loop.Attach(member) < 0);
        loop.Detach(member);
    }

    /// <summary>
    /// A member that takes its time keeps nobody from the loop's lock: others come, go and arm meanwhile. Only who detaches the member itself waits for
    /// it.
    /// </summary>
    [Fact]
    public void NobodyIsToldUnderALock_AndDetachWaits()
    {
        using var loop = new EventLoop();
        using ManualResetEventSlim entered = new(), leave = new();
        using var slow = new Member(m =>
        {
            m.Drain();
            entered.Set();
            leave.Wait();
        });
        using var other = new Member(m => m.Drain());
        Assert.Equal(0, loop.Attach(slow));
        slow.Signal();
        Assert.True(entered.Wait(60_000));
        Assert.Equal(0, loop.Attach(other));
        loop.Detach(other);
        var timer = new HostTimer(new Nothing()) { Failed = e => throw e };
        loop.Arm(timer, loop.NowNs + 1_000_000_000);
        loop.Cancel(timer);
        using var begun = new ManualResetEventSlim();
        bool left = false, waited = false;
        var detaches = new Thread(() =>
        {
            begun.Set();
            loop.Detach(slow);
            waited = Volatile.Read(ref left);
        });
        detaches.Start();
        Assert.True(begun.Wait(60_000));
        for (int i = 0; i < 100; i++)
        {
            Assert.Equal(0, loop.Attach(other));
            loop.Detach(other);
        }
        Volatile.Write(ref left, true);
        leave.Set();
        Assert.True(detaches.Join(60_000));
        Assert.True(waited);
        Assert.Equal(1, slow.Calls);
    }

    [Fact]
    public void AMember_MayDetachItself()
    {
        using var loop = new EventLoop();
        using var member = new Member(m => loop.Detach(m));
        Assert.Equal(0, loop.Attach(member));
        member.Signal();
        Assert.True(member.Told.Wait(60_000));
        using var other = new Member(m => m.Drain());
        Assert.Equal(0, loop.Attach(other));
        other.Signal();
        Assert.True(other.Told.Wait(60_000));
        Assert.Equal(1, member.Calls);
    }

    /// <summary>Neither a member that throws, nor one that throws when it is told of that, nor a timer of the kind ends the loop.</summary>
    [Fact]
    public void NothingThatThrows_EndsTheLoop()
    {
        using var loop = new EventLoop();
        using var throws = new Member(_ => throw new InvalidOperationException("broken"));
        Assert.Equal(0, loop.Attach(throws));
        throws.Signal();
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref throws.Failure) is not null, 60_000));
        Assert.Equal("broken", throws.Failure!.Message);
        var stubborn = new Stubborn();
        Assert.Equal(0, loop.Attach(stubborn));
        EventFd.Signal(stubborn.Fd);
        loop.Arm(new HostTimer(new Thrower()) { Failed = e => throw e }, 0);
        var after = new Callback();
        loop.Arm(new HostTimer(after) { Failed = e => throw e }, 1);
        Assert.True(after.Fired.Wait(60_000));
        using var other = new Member(m => m.Drain());
        Assert.Equal(0, loop.Attach(other));
        other.Signal();
        Assert.True(other.Told.Wait(60_000));
        Assert.Equal(1, throws.Calls);
        EventFd.Close(stubborn.Fd);
    }

    private sealed class Stubborn : IPolled
    {
        public int Fd { get; } = EventFd.Create();
        public void Signalled() => throw new InvalidOperationException("once");
        public void Failed(Exception e) => throw new InvalidOperationException("twice");
    }

    private sealed class Restless(EventLoop loop) : ITimerCallback
    {
        internal int Fired;

        public void TimerExpired(HostTimer timer, long nowNs)
        {
            Interlocked.Increment(ref Fired);
            loop.Arm(timer, 0);
        }
    }

    /// <summary>A timer that is always due and a descriptor that always has input leave each other, and everybody else, their turns.</summary>
    [Fact]
    public void NobodyStarves()
    {
        using var loop = new EventLoop();
        using var full = new Member(_ => { });
        var restless = new Restless(loop);
        Assert.Equal(0, loop.Attach(full));
        full.Signal();
        loop.Arm(new HostTimer(restless) { Failed = e => throw e }, 0);
        for (int i = 0; i < 20; i++)
        {
            using var member = new Member(m => m.Drain());
            var callback = new Callback();
            Assert.Equal(0, loop.Attach(member));
            member.Signal();
            loop.Arm(new HostTimer(callback) { Failed = e => throw e }, loop.NowNs);
            Assert.True(member.Told.Wait(60_000));
            Assert.True(callback.Fired.Wait(60_000));
            loop.Detach(member);
        }
        (int calls, int fired) = (Volatile.Read(ref full.Calls), Volatile.Read(ref restless.Fired));
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref full.Calls) > calls && Volatile.Read(ref restless.Fired) > fired, 60_000));
        loop.Detach(full);
    }

    private static HashSet<int> Epolls()
    {
        IEnumerable<int> open = Directory.EnumerateFiles("/proc/self/fd").Select(f =>
            int.Parse(Path.GetFileName(f), System.Globalization.CultureInfo.InvariantCulture));
        return [.. open.Where(fd => FileDescriptor.LinkTarget(fd) == "anon_inode:[eventpoll]")];
    }

    /// <summary>Descriptors closed behind the loop's back: everybody is told, nobody waits for ever, and the loop begins again with the next to come.</summary>
    [Fact]
    public void ALoopThatCannotGoOn_TellsEverybody_AndBeginsAgain()
    {
        HashSet<int> before = Epolls();
        using var loop = new EventLoop();
        using var member = new Member(_ => { });
        using var lost = new ManualResetEventSlim();
        Assert.Equal(0, loop.Attach(member));
        loop.Arm(new HostTimer(new Nothing()) { Failed = _ => lost.Set() }, long.MaxValue - 1);
        EventFd.Close(Assert.Single(Epolls().Except(before)));
        // Who is inside the kernel's wait finds out when he comes back.
        member.Signal();
        Assert.True(lost.Wait(60_000));
        Assert.True(SpinWait.SpinUntil(() => Volatile.Read(ref member.Failure) is not null, 60_000));
        Assert.IsType<HostCallException>(member.Failure);
        loop.Detach(member);
        using var other = new Member(m => m.Drain());
        Assert.Equal(0, loop.Attach(other));
        other.Signal();
        Assert.True(other.Told.Wait(60_000));
        var callback = new Callback();
        loop.Arm(new HostTimer(callback) { Failed = e => throw e }, loop.NowNs);
        Assert.True(callback.Fired.Wait(60_000));
    }
}

namespace Ring3.Host.Tests;

/// <summary>The native calls do what their summaries say.</summary>
public unsafe class HostTests
{
    [Fact]
    public void ExecutableMemory_RunsWhatWasAdded()
    {
        using ExecutableMemory memory = new(4096);
        nint next = memory.Next;
        // mov eax, edi; add eax, esi; ret
        nint at = memory.Add([0x89, 0xf8, 0x01, 0xf0, 0xc3]);
        Assert.Equal(next, at);
        Assert.Equal(42, ((delegate* unmanaged<int, int, int>)at)(40, 2));
    }

    [Fact]
    public void ExecutableMemory_IsNeverWritableAndExecutable()
    {
        using ExecutableMemory memory = new(4096);
        Assert.DoesNotContain(File.ReadLines("/proc/self/maps").Where(l => l.Contains("memfd:r3")), l => l.Split(' ')[1].Contains("wx"));
        Assert.Contains(File.ReadLines("/proc/self/maps"), l => l.Contains("memfd:r3") && l.Split(' ')[1].StartsWith("r-x", StringComparison.Ordinal));
    }

    [Fact]
    public void ExecutableMemory_Full_Refuses()
    {
        using ExecutableMemory memory = new(4096);
        memory.Add(new byte[4096]);
        Assert.Throws<OutOfMemoryException>(() => memory.Add([0xc3]));
    }

    [Fact]
    public void HostMemory_IsZeroed_AndDiscardZeroesAgain()
    {
        byte* p = HostMemory.Map(8192);
        Assert.Equal(0, p[5000]);
        p[5000] = 7;
        HostMemory.Discard(p, 8192);
        Assert.Equal(0, p[5000]);
        HostMemory.Unmap(p, 8192);
    }

    [Fact]
    public void HostMemory_TooLarge_IsOutOfMemory() => Assert.Throws<OutOfMemoryException>(() => HostMemory.Map(nuint.MaxValue / 2));

    [Fact]
    public void Clocks_RunForward()
    {
        long ns = HostClock.MonotonicNs();
        ulong tsc = HostClock.Tsc();
        Assert.True(HostClock.Tsc() > tsc);
        Assert.True(HostClock.MonotonicNs() >= ns);
        Assert.True(HostClock.BootNs() >= ns);
        Assert.InRange(HostClock.RealtimeNs() / 1_000_000_000, DateTimeOffset.UtcNow.ToUnixTimeSeconds() - 2, DateTimeOffset.UtcNow.ToUnixTimeSeconds() + 2);
    }

    [Fact]
    public void EventFd_CountsSignals_AndIsRecognised()
    {
        int fd = EventFd.Create();
        Assert.True(EventFd.IsEventFd(fd));
        Assert.True(EventFd.Signal(fd));
        Assert.True(EventFd.Signal(fd, 4));
        Assert.Equal(5UL, EventFd.Drain(fd));
        Assert.Equal(0UL, EventFd.Drain(fd));
        EventFd.Close(fd);
    }

    [Fact]
    public void Epoll_ReportsTheKeyOfTheSignalledFd()
    {
        int a = EventFd.Create(), b = EventFd.Create();
        using Epoll epoll = new();
        Assert.Equal(0, epoll.Add(a, 11));
        Assert.Equal(0, epoll.Add(b, 22));
        Span<ulong> keys = stackalloc ulong[4];
        Assert.Equal(0, epoll.Wait(keys, 0));
        EventFd.Signal(b);
        Assert.Equal(1, epoll.Wait(keys, -1));
        Assert.Equal(22UL, keys[0]);
        epoll.Remove(b);
        Assert.Equal(0, epoll.Wait(keys, 0));
        EventFd.Close(a);
        EventFd.Close(b);
    }

    [Fact]
    public void Futex_ChangedWord_DoesNotSleep()
    {
        int word = 1;
        Futex.Wait(&word, 0);
        Assert.Equal(1, word);
    }

    [Fact]
    public void Futex_Wake_EndsTheWait()
    {
        int* word = (int*)HostMemory.Map(4096);
        Thread sleeper = new(() =>
        {
            while (Volatile.Read(ref *word) == 0)
                Futex.Wait(word, 0);
        });
        sleeper.Start();
        Volatile.Write(ref *word, 1);
        Futex.Wake(word);
        Assert.True(sleeper.Join(TimeSpan.FromSeconds(30)));
        HostMemory.Unmap(word, 4096);
    }

    [Fact]
    public void TimerFd_PastDeadline_ExpiresAtOnce()
    {
        using TimerFd timer = new();
        using Epoll epoll = new();
        Assert.Equal(0, epoll.Add(timer.Fd, 7));
        ulong[] keys = new ulong[4];
        timer.Set(HostClock.MonotonicNs() - 1);
        Assert.Equal(1, epoll.Wait(keys, -1));
        Assert.Equal(7ul, keys[0]);
        long deadline = HostClock.MonotonicNs() + 2_000_000;
        // What has expired is forgotten when the timer is set again.
        timer.Set(deadline);
        Assert.Equal(1, epoll.Wait(keys, -1));
        Assert.True(HostClock.MonotonicNs() >= deadline);
        timer.Set(long.MaxValue);
        Assert.Equal(0, epoll.Wait(keys, 0));
        epoll.Dispose();
        Assert.True(epoll.Wait(keys, 0) < 0);
    }

    [Fact]
    public void TimeScale_AgreesWithTheClock()
    {
        uint khz = HostTimeScale.TscKhz();
        Assert.SkipWhen(khz == 0, "the host does not tell its TSC's frequency");
        (ulong tsc, long ns) = (HostClock.Tsc(), HostClock.MonotonicRawNs());
        while (HostClock.MonotonicRawNs() - ns < 50_000_000)
            Thread.SpinWait(1000);
        double measured = (HostClock.Tsc() - tsc) * 1e6 / (HostClock.MonotonicRawNs() - ns);
        // Being descheduled between the two reads of a sample costs precision, not a factor.
        Assert.InRange(khz / measured, 0.9, 1.1);
    }
}

using Ring3.Abi;
using Ring3.Host;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Races between a vCPU and requesters, each on the real protocol and, as its control, on a frozen copy with the bug that the protocol exists to avoid.
/// A control that finds nothing fails: its detector would prove nothing.
/// </summary>
public sealed unsafe class RequestLitmusTests : IDisposable
{
    private const long SecondNs = 1_000_000_000, ControlLimitNs = 120 * SecondNs;

    private readonly int* _exits = (int*)HostMemory.Map(4096);
    private readonly VcpuRequests[] _qs;

    public RequestLitmusTests() => _qs = [new(_exits), new(_exits + 16)];

    public void Dispose() => HostMemory.Unmap(_exits, 4096);

    private static void SpinWhile(Func<bool> condition)
    {
        for (int n = 0; condition(); n++)
        {
            if (n < 10_000)
                Thread.SpinWait(1);
            else
                Thread.Yield();
        }
    }

    private static Thread Start(Action body)
    {
        Thread t = new(() => body());
        t.Start();
        return t;
    }

    // ---- Lost request: the Dekker pair ---------------------------------------------------------------------------------

    /// <summary>
    /// Both sides take one step at the same time, again and again. Returns the rounds in which the vCPU is in the guest with a request that nobody will
    /// tell it of. The vCPU's stores to cold lines before its entry keep the store of the
    /// mode in the store buffer for a while: that is the window.
    /// </summary>
    private static int LostRequests(Func<bool> tryEnter, Action leave, Func<bool> told, Func<bool> pending, Action take, Action make, long durationNs,
        bool untilFound)
    {
        int round = 0, entered = 0, made = 0, lost = 0;
        bool stop = false;
        byte[] cold = new byte[64 << 20];
        Thread requester = Start(() =>
        {
            for (int i = 1; ; i++)
            {
                SpinWhile(() => Volatile.Read(ref round) < i && !Volatile.Read(ref stop));
                if (Volatile.Read(ref stop))
                    return;
                for (int delay = i & 31; delay > 0; delay--)
                    _ = Volatile.Read(ref entered);
                make();
                Volatile.Write(ref made, i);
            }
        });
        long end = HostClock.MonotonicNs() + durationNs;
        for (int i = 1; HostClock.MonotonicNs() < end && !(untilFound && lost > 0); i++)
        {
            Volatile.Write(ref round, i);
            for (int line = 0; line < 24; line++)
                cold[(int)((uint)(i * 24 + line) * 4160 % (uint)cold.Length)] = 1;
            bool inside = tryEnter();
            Volatile.Write(ref entered, i);
            int step = i;
            SpinWhile(() => Volatile.Read(ref made) < step);
            if (inside)
            {
                lost += pending() && !told() ? 1 : 0;
                leave();
            }
            take();
        }
        Volatile.Write(ref stop, true);
        requester.Join();
        return lost;
    }

    [Fact]
    public void Dekker_NoRequestIsLost()
    {
        VcpuRequests q = _qs[0];
        Assert.Equal(0, LostRequests(q.TryEnterGuestMode, q.LeaveGuestMode, () => Volatile.Read(ref *_exits) != 0, () => q.AnyPending, () =>
            q.Check(VcpuRequest.Event), () => q.Make(VcpuRequest.Event), 2 * SecondNs, untilFound: false));
    }

    [Fact]
    public void Dekker_Control_WithoutTheFenceRequestsAreLost()
    {
        Assert.SkipWhen(Environment.ProcessorCount == 1, "a processor sees its own stores in order: with one of them there is nothing to find");
        using FrozenRequests f = new(FrozenRequests.Bug.NoFence);
        Assert.NotEqual(0, LostRequests(f.TryEnter, f.Leave, () => Volatile.Read(ref f.PollWord(0)) != 0, () => f.AnyPending, f.TakeAll, () =>
            f.Make(wait: false), ControlLimitNs, untilFound: true));
    }

    /// <summary>A vCPU that stays in until it is kicked gets every request, whatever comes between.</summary>
    [Fact]
    public void NoRequestIsLost()
    {
        VcpuRequests q = _qs[0];
        int made = 0, taken = 0, stop = 0;
        Thread vcpu = Start(() =>
        {
            while (Volatile.Read(ref stop) == 0 || q.AnyPending)
            {
                if (q.Check(VcpuRequest.Event))
                    Interlocked.Exchange(ref taken, Volatile.Read(ref made));
                if (!q.TryEnterGuestMode())
                    continue;
                SpinWhile(() => Volatile.Read(ref *_exits) == 0 && Volatile.Read(ref stop) == 0);
                q.LeaveGuestMode();
            }
        });
        long end = HostClock.MonotonicNs() + 2 * SecondNs;
        int rounds = 0;
        while (HostClock.MonotonicNs() < end)
        {
            int i = ++rounds;
            Volatile.Write(ref made, i);
            q.Make(VcpuRequest.Event);
            long deadline = HostClock.MonotonicNs() + 20 * SecondNs;
            SpinWhile(() => Volatile.Read(ref taken) < i && HostClock.MonotonicNs() < deadline);
            Assert.True(Volatile.Read(ref taken) >= i, $"request {i} was lost in mode {q.Mode}");
        }
        Volatile.Write(ref stop, 1);
        vcpu.Join();
        RequestCounters c = q.Counters;
        Assert.True(c.Kicks <= q.Exits, "more kicks than exits");
        Assert.Equal(rounds, c.Requests);
    }

    // ---- The missed synchronisation of the mail -------------------------------------------------------------------------

    /// <summary>
    /// A vCPU uses a cell while it is in the guest, also for a while after it has been kicked, as a block of guest code goes on to its end. One thread
    /// kicks it all the time; another makes waiting requests and then takes the cell away.
    /// Returns the uses of cells that were taken away.
    /// </summary>
    private static int UsesAfterFree(Func<bool> tryEnter, Action leave, Func<bool> told, Action take, Action notice, Action flush, long durationNs,
        bool untilFound)
    {
        long[] cells = [0, 1];
        long current = 0;
        int stop = 0, violations = 0;
        Thread vcpu = Start(() =>
        {
            while (Volatile.Read(ref stop) == 0)
            {
                take();
                if (!tryEnter())
                    continue;
                long mine = Volatile.Read(ref current);
                for (int left = 300; left > 0; left -= told() || Volatile.Read(ref stop) != 0 ? 1 : 0)
                    if (Volatile.Read(ref cells[mine & 1]) != mine)
                        Volatile.Write(ref violations, violations + 1);
                leave();
            }
        });
        Thread kicker = Start(() =>
        {
            while (Volatile.Read(ref stop) == 0)
            {
                notice();
                for (int i = 0; i < 20; i++)
                    Thread.SpinWait(1);
            }
        });
        long end = HostClock.MonotonicNs() + durationNs;
        for (long i = 1; HostClock.MonotonicNs() < end && !(untilFound && Volatile.Read(ref violations) != 0); i++)
        {
            Volatile.Write(ref cells[i & 1], i);
            Volatile.Write(ref current, i);
            flush();
            Volatile.Write(ref cells[(i - 1) & 1], -1);
        }
        Volatile.Write(ref stop, 1);
        vcpu.Join();
        kicker.Join();
        return violations;
    }

    [Fact]
    public void WaitingRequest_EndsEveryUseOfTheOldValue_AlsoWhenSomebodyElseKicked()
    {
        VcpuRequests q = _qs[0];
        void Take()
        {
            _ = q.Check(VcpuRequest.TlbFlush);
            _ = q.Check(VcpuRequest.Event);
        }
        Assert.Equal(0, UsesAfterFree(q.TryEnterGuestMode, q.LeaveGuestMode, () => Volatile.Read(ref *_exits) != 0, Take, () => q.Make(VcpuRequest.Event),
            () => q.Make(VcpuRequest.TlbFlush), 2 * SecondNs, untilFound: false));
    }

    [Fact]
    public void WaitingRequest_Control_TrustingTheOthersKickUsesWhatWasFreed()
    {
        using FrozenRequests f = new(FrozenRequests.Bug.KickIsAcknowledgement);
        Assert.NotEqual(0, UsesAfterFree(f.TryEnter, f.Leave, () => Volatile.Read(ref f.PollWord(0)) != 0, f.TakeAll, () => f.Make(wait: false), () =>
            f.Make(wait: true), ControlLimitNs, untilFound: true));
    }

    /// <summary>Two vCPUs that both make waiting requests to all vCPUs do not wait for each other.</summary>
    [Fact]
    public void TwoVcpusThatWaitForAll_DoNotDeadlock()
    {
        int done = 0;
        Thread[] vcpus = new Thread[2];
        for (int n = 0; n < 2; n++)
        {
            int me = n;
            vcpus[n] = Start(() =>
            {
                for (int i = 0; i < 3_000; i++)
                {
                    while (!_qs[me].TryEnterGuestMode())
                        _ = _qs[me].Check(VcpuRequest.TlbFlush);
                    // A short stay, then an exit whose handling flushes everybody.
                    for (int spin = 0; spin < 20 && Volatile.Read(ref _exits[16 * me]) == 0; spin++)
                        Thread.SpinWait(1);
                    _qs[me].LeaveGuestMode();
                    VcpuRequests.MakeAll(_qs, VcpuRequest.TlbFlush);
                }
                Interlocked.Increment(ref done);
            });
        }
        foreach (Thread t in vcpus)
            Assert.True(t.Join(TimeSpan.FromSeconds(60)), "the vCPUs wait for each other");
        Assert.Equal(2, done);
    }

    // ---- Readers of tables ------------------------------------------------------------------------------------------------

    /// <summary>
    /// A thread reads tables outside the guest; another unlinks one, makes a request and frees it. Returns whether the reader met freed tables.
    /// </summary>
    private bool ReaderMeetsFreedTable(VcpuRequest request)
    {
        VcpuRequests q = _qs[0];
        int table = 1, freed = 0, reading = 0, requested = 0;
        bool met = false;
        Thread reader = Start(() =>
        {
            q.BeginReadingShadowPageTables();
            int mine = Volatile.Read(ref table);
            Volatile.Write(ref reading, 1);
            // The window: the reader has its pointer and goes on until the requester has returned, or is seen to wait.
            SpinWhile(() => Volatile.Read(ref requested) == 0 && q.Counters.Waits == 0);
            met = mine == Volatile.Read(ref freed);
            q.LeaveGuestMode();
        });
        SpinWhile(() => Volatile.Read(ref reading) == 0);
        Volatile.Write(ref table, 2);
        q.Make(request);
        Volatile.Write(ref freed, 1);
        Volatile.Write(ref requested, 1);
        reader.Join();
        return met;
    }

    [Fact]
    public void ReaderOfTables_IsWaitedFor() => Assert.False(ReaderMeetsFreedTable(VcpuRequest.TlbFlush));

    [Fact]
    public void ReaderOfTables_Control_AMaskWithoutTheModeFreesUnderIt() => Assert.True(ReaderMeetsFreedTable(VcpuRequest.OutsideGuestMode));

    // ---- Kick across halt ---------------------------------------------------------------------------------------------------

    /// <summary>A request that comes between the vCPU's last look and its sleep. Returns whether the vCPU slept through it.</summary>
    private static bool SleepsThrough(FrozenRequests.Bug bug)
    {
        using FrozenRequests f = new(bug);
        int window = 0, made = 0;
        f.Window = () =>
        {
            Volatile.Write(ref window, 1);
            SpinWhile(() => Volatile.Read(ref made) == 0);
        };
        bool woken = true;
        Thread vcpu = Start(() => woken = f.Sleep(SecondNs / 2));
        SpinWhile(() => Volatile.Read(ref window) == 0);
        f.Make(wait: false);
        Volatile.Write(ref made, 1);
        vcpu.Join();
        return !woken && f.AnyPending;
    }

    [Fact]
    public void Halt_Control_WithoutTheSecondLookTheVcpuSleepsOn() => Assert.True(SleepsThrough(FrozenRequests.Bug.NoSecondLook));

    /// <summary>The control's window and detector, without the bug.</summary>
    [Fact]
    public void Halt_TheSecondLookSeesTheRequest() => Assert.False(SleepsThrough(FrozenRequests.Bug.NoFence));

    /// <summary>The same window on the real protocol: the request comes after the vCPU has declared itself blocked, or before; it never sleeps on.</summary>
    [Fact]
    public void Halt_NoRequestIsSleptThrough()
    {
        VcpuRequests q = _qs[0];
        for (int place = 0; place < 3; place++)
        {
            for (int i = 0; i < 200; i++)
            {
                int window = 0, made = 0, at = place;
                void Open(int here)
                {
                    if (here != at)
                        return;
                    Volatile.Write(ref window, 1);
                    SpinWhile(() => Volatile.Read(ref made) == 0);
                }
                bool slept = false;
                Thread vcpu = Start(() =>
                {
                    Open(0);
                    int token = q.BeginBlock();
                    Open(1);
                    if (!q.Test(VcpuRequest.Unblock))
                    {
                        Open(2);
                        long start = HostClock.MonotonicNs();
                        while (!q.Test(VcpuRequest.Unblock) && HostClock.MonotonicNs() - start < 5 * SecondNs)
                        {
                            q.Sleep(token, 5 * SecondNs);
                            token = q.WakeToken;
                        }
                        slept = HostClock.MonotonicNs() - start >= 5 * SecondNs;
                    }
                    q.EndBlock();
                });
                SpinWhile(() => Volatile.Read(ref window) == 0);
                q.Make(VcpuRequest.Unblock);
                Volatile.Write(ref made, 1);
                vcpu.Join();
                Assert.False(slept, $"slept through the request at place {place}");
                Assert.True(q.Check(VcpuRequest.Unblock));
            }
        }
    }

    /// <summary>A guest that halts all the time: every kick ends KVM_RUN, whether it comes in the guest, in HLT, or on the way between them.</summary>
    [Fact]
    public void Halt_EveryKickEndsTheRun()
    {
        using TestGuest g = new(irqchip: true);
        // again: mov ecx, 50; loop: dec ecx; jnz loop; hlt; jmp again, with interrupts off: only kicks wake it.
        g.Load(0xb9, 50, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xf4, 0xeb, 0xf4);
        KickRounds(g, threads: 1);
    }

    // ---- A vCPU that changes threads --------------------------------------------------------------------------------------

    /// <summary>Kicks a vCPU that is run by one thread after another; each kick must end exactly one run. Waiting requests go to it at the same time.</summary>
    private static void KickRounds(TestGuest g, int threads)
    {
        int kicks = 0, ended = 0, stop = 0, turn = 0;
        string? failure = null;
        Thread[] runners = new Thread[threads];
        for (int n = 0; n < threads; n++)
        {
            int me = n;
            runners[n] = Start(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    SpinWhile(() => Volatile.Read(ref turn) != me && Volatile.Read(ref stop) == 0);
                    if (Volatile.Read(ref stop) != 0)
                        return;
                    int r = g.Cpu.Run();
                    if (r != -Errno.EINTR)
                        failure ??= $"KVM_RUN gave {r}, exit {g.Cpu.KvmRun->exit_reason}";
                    Volatile.Write(ref turn, (me + 1) % threads);
                    Volatile.Write(ref ended, ended + 1);
                }
            });
        }
        Thread flusher = Start(() =>
        {
            while (Volatile.Read(ref stop) == 0)
            {
                g.Vm.MakeAllRequest(VcpuRequest.TlbFlush);
                g.Vm.EnsureOutsideGuestMode();
                Thread.Yield();
            }
        });
        long end = HostClock.MonotonicNs() + 2 * SecondNs;
        while (HostClock.MonotonicNs() < end && failure is null)
        {
            int i = ++kicks;
            for (int delay = i * 7 % 400; delay > 0; delay--)
                Thread.SpinWait(1);
            g.Cpu.Kick();
            long deadline = HostClock.MonotonicNs() + 20 * SecondNs;
            SpinWhile(() => Volatile.Read(ref ended) < i && HostClock.MonotonicNs() < deadline);
            if (Volatile.Read(ref ended) != i)
                failure ??= $"kick {i} ended {ended - i + 1} runs in mode {g.Cpu.Requests.Mode}";
        }
        Volatile.Write(ref stop, 1);
        g.Cpu.Kick();
        foreach (Thread t in runners)
            t.Join();
        flusher.Join();
        Assert.Null(failure);
    }

    [Fact]
    public void ChangingThreads_EveryKickEndsOneRun()
    {
        using TestGuest g = new();
        // again: inc ecx; jmp again
        g.Load(0xff, 0xc1, 0xeb, 0xfc);
        KickRounds(g, threads: 2);
    }

    /// <summary>A request while the vCPU leaves one thread and enters on another. Returns whether the new thread runs on, not told.</summary>
    private static bool KickGoesToTheOldThread(FrozenRequests.Bug bug)
    {
        using FrozenRequests f = new(bug);
        int window = 0, moved = 0;
        f.Window = () =>
        {
            Volatile.Write(ref window, 1);
            SpinWhile(() => Volatile.Read(ref moved) == 0);
        };
        Assert.True(f.TryEnter());
        Thread requester = Start(() => f.Make(wait: false));
        if (bug == FrozenRequests.Bug.KicksTheOldThread)
            SpinWhile(() => Volatile.Read(ref window) == 0);
        // The vCPU leaves, answers, and is run by the other thread.
        Thread second = Start(() =>
        {
            f.Leave();
            f.TakeAll();
            Volatile.Write(ref f.Thread, 1);
            // It enters, and what was posted meanwhile is answered first.
            while (!f.TryEnter())
                f.TakeAll();
        });
        second.Join();
        Volatile.Write(ref moved, 1);
        requester.Join();
        // The requester has returned: whoever is in the guest with its request pending, or in ExitingGuestMode, must have been told.
        bool told = Volatile.Read(ref f.PollWord(1)) != 0, kickWentOut = Volatile.Read(ref f.PollWord(0)) != 0 || told;
        return kickWentOut && !told && !f.CanBeKicked;
    }

    [Fact]
    public void ChangingThreads_Control_KickingTheThreadNotedBeforeIsLost() => Assert.True(KickGoesToTheOldThread(FrozenRequests.Bug.KicksTheOldThread));
}

using Ring3.Host;

namespace Ring3.Kvm.Tests;

/// <summary>The protocol between vCPU and requester, without a processor: the test thread plays the guest by polling the exit word.</summary>
public sealed unsafe class RequestTests : IDisposable
{
    [Fact]
    public void RequestNumbers_AreUnique()
    {
        var numbers = typeof(VcpuRequest).GetFields(System.Reflection.BindingFlags.Public | System.Reflection.BindingFlags.Static).Where(f =>
            f.FieldType == typeof(VcpuRequest)).Select(f => (VcpuRequest)f.GetValue(null)!)
            .Where(r => !r.Has(VcpuRequest.NoAction)).Select(r => r.Number).ToList();
        Assert.True(numbers.Count > 10);
        Assert.Equal(numbers.Count, numbers.Distinct().Count());
    }

    private readonly int* _exit = (int*)HostMemory.Map(4096);
    private readonly VcpuRequests _q;

    public RequestTests() => _q = new VcpuRequests(_exit);

    public void Dispose()
    {
        HostMemory.Unmap(_exit, 4096);
    }

    [Fact]
    public void Flags_AreAsInLinux()
    {
        Assert.Equal((0xffu, 1u << 8, 1u << 9, 1u << 10), (VcpuRequest.NumberMask, VcpuRequest.NoWakeup, VcpuRequest.Wait, VcpuRequest.NoAction));
        Assert.Equal(0, VcpuRequest.TlbFlush.Number);
        Assert.Equal(1, VcpuRequest.VmDead.Number);
        Assert.True(VcpuRequest.TlbFlush.Has(VcpuRequest.Wait) && VcpuRequest.TlbFlush.Has(VcpuRequest.NoWakeup));
    }

    [Theory]
    [InlineData(0u, (int)VcpuMode.OutsideGuestMode, false)]
    [InlineData(0u, (int)VcpuMode.InGuestMode, true)]
    [InlineData(0u, (int)VcpuMode.ExitingGuestMode, false)]
    [InlineData(0u, (int)VcpuMode.ReadingShadowPageTables, false)]
    [InlineData(VcpuRequest.Wait, (int)VcpuMode.ExitingGuestMode, true)]
    [InlineData(VcpuRequest.Wait, (int)VcpuMode.ReadingShadowPageTables, true)]
    [InlineData(VcpuRequest.Wait, (int)VcpuMode.OutsideGuestMode, false)]
    [InlineData(VcpuRequest.Wait | VcpuRequest.WhenInGuest | VcpuRequest.WhenExiting, (int)VcpuMode.ReadingShadowPageTables, false)]
    [InlineData(VcpuRequest.Wait | VcpuRequest.WhenInGuest | VcpuRequest.WhenExiting, (int)VcpuMode.ExitingGuestMode, true)]
    public void ModeMask_SaysWhenTheVcpuIsConcerned(uint request, int mode, bool concerned) =>
        Assert.Equal(concerned, new VcpuRequest(request).Concerns((VcpuMode)mode));

    [Fact]
    public void RequestBeforeEntry_IsSeenAndNotKicked()
    {
        Assert.False(_q.Make(VcpuRequest.Event));
        Assert.False(_q.TryEnterGuestMode());
        Assert.Equal(VcpuMode.OutsideGuestMode, _q.Mode);
        Assert.True(_q.Check(VcpuRequest.Event));
        Assert.False(_q.Check(VcpuRequest.Event));
        Assert.True(_q.TryEnterGuestMode());
        Assert.Equal(0, _q.Counters.Kicks);
    }

    [Fact]
    public void SecondRequest_SendsNoSecondKick()
    {
        Assert.True(_q.TryEnterGuestMode());
        Assert.True(_q.Make(VcpuRequest.Event));
        Assert.Equal((VcpuMode.ExitingGuestMode, 1), (_q.Mode, *_exit));
        Assert.False(_q.Make(VcpuRequest.ClockUpdate));
        Assert.False(_q.Make(VcpuRequest.Event));
        Assert.Equal((1L, 2L, 3L), (_q.Counters.Kicks, _q.Counters.KicksElided, _q.Counters.Requests));
        _q.LeaveGuestMode();
        Assert.True(_q.Check(VcpuRequest.Event) && _q.Check(VcpuRequest.ClockUpdate));
    }

    [Fact]
    public void Wait_ReturnsOnlyAfterTheExit_EvenWhenSomebodyElseKicked()
    {
        Assert.True(_q.TryEnterGuestMode());
        Assert.True(_q.Make(VcpuRequest.Event));
        bool returned = false;
        Thread waiter = new(() =>
        {
            _q.Make(VcpuRequest.TlbFlush);
            Volatile.Write(ref returned, true);
        });
        waiter.Start();
        SpinWait.SpinUntil(() => _q.Counters.Waits != 0);
        Assert.False(Volatile.Read(ref returned));
        _q.LeaveGuestMode();
        waiter.Join();
        Assert.True(_q.Check(VcpuRequest.TlbFlush));
    }

    [Fact]
    public void NoAction_WaitsAndLeavesNothingToDo()
    {
        Assert.True(_q.TryEnterGuestMode());
        Thread waiter = new(() => _q.Make(VcpuRequest.OutsideGuestMode));
        waiter.Start();
        SpinWait.SpinUntil(() => Volatile.Read(ref *_exit) != 0);
        Assert.False(_q.AnyPending);
        _q.LeaveGuestMode();
        waiter.Join();
        Assert.True(_q.TryEnterGuestMode());
    }

    [Fact]
    public void ReadingTables_HoldsBackATlbFlushAndNothingElse()
    {
        _q.BeginReadingShadowPageTables();
        _q.Make(VcpuRequest.OutsideGuestMode);
        _q.Make(VcpuRequest.Event);
        Thread waiter = new(() => _q.Make(VcpuRequest.TlbFlush));
        waiter.Start();
        SpinWait.SpinUntil(() => _q.Counters.Waits != 0);
        _q.LeaveGuestMode();
        waiter.Join();
    }

    [Fact]
    public void Wakeup_ReachesASleeper_AndNoWakeupDoesNot()
    {
        using ManualResetEventSlim asleep = new();
        Thread sleeper = new(() =>
        {
            int token = _q.BeginBlock();
            asleep.Set();
            while (!_q.Test(VcpuRequest.Unblock))
            {
                _q.Sleep(token);
                token = _q.WakeToken;
            }
            _q.EndBlock();
        });
        sleeper.Start();
        asleep.Wait();
        _q.Make(VcpuRequest.ClockUpdate);
        Assert.Equal(0, _q.Counters.Wakeups);
        _q.Make(VcpuRequest.Unblock);
        sleeper.Join();
        Assert.Equal(1, _q.Counters.Wakeups);
    }

    [Fact]
    public void EveryRequest_IsAKickOrAWakeupOrNeither()
    {
        _q.Make(VcpuRequest.Event);
        _q.Make(VcpuRequest.OutsideGuestMode);
        _q.Clear(VcpuRequest.Event);
        Assert.True(_q.TryEnterGuestMode());
        _q.Make(VcpuRequest.Event);
        _q.Make(VcpuRequest.Nmi);
        Assert.False(_q.Kick());
        _q.LeaveGuestMode();
        _ = _q.BeginBlock();
        _q.Make(VcpuRequest.ClockUpdate);
        _q.Make(VcpuRequest.Unblock);
        Assert.True(_q.Kick());
        _q.EndBlock();
        RequestCounters c = _q.Counters;
        Assert.Equal((8L, 1L, 5L, 2L, 0L, 0L), (c.Requests, c.Kicks, c.KicksElided, c.Wakeups, c.Waits, c.Sleeps));
        Assert.Equal(1u, _q.Exits);
    }

    [Fact]
    public void SomeVcpus_AreAskedAndTheOthersAreNot()
    {
        using TestGuest g = new(cpus: 3);
        Assert.False(g.Vm.MakeRequest(VcpuRequest.ScanIoapic, []));
        Assert.False(g.Vm.MakeRequest(VcpuRequest.ScanIoapic, [0b101]));
        Assert.Equal([true, false, true], g.Vm.Vcpus.ToArray().Select(v => v.Requests.Test(VcpuRequest.ScanIoapic)));
        g.Vm.EnsureOutsideGuestMode();
        VmStats s = g.Vm.Stats;
        Assert.Equal((s.kicks + s.kicks_elided + s.wakeups, 0L, 0L), (s.requests, s.kicks, s.request_waits));
        Assert.Equal((ulong)s.requests, VmStats.All.Single(d => d.Name == "vm_requests").Read(g.Vm, 0));
        Assert.Equal((ulong)s.requests, g.Vm.Vcpus.ToArray().Select(v => VcpuStats.All(v).Single(x => x.Name == "requests").Value).Aggregate((a, b) => a + b));
    }

    [Fact]
    public void EnsureOutsideGuestMode_WaitsForAGuestThatRuns()
    {
        using TestGuest g = new();
        // again: inc dword [0x20000]; jmp again
        g.Load(0xff, 0x04, 0x25, 0, 0, 2, 0, 0xeb, 0xf7);
        Thread vcpu = new(() => Assert.Equal(-Ring3.Abi.Errno.EINTR, g.Cpu.Run()));
        vcpu.Start();
        for (int i = 0; i < 100; i++)
        {
            SpinWait.SpinUntil(() => g.Cpu.Requests.Mode == VcpuMode.InGuestMode);
            uint before = g.Cpu.Requests.Exits;
            VcpuMode mode = g.Cpu.Requests.Mode;
            g.Vm.EnsureOutsideGuestMode();
            Assert.True(mode != VcpuMode.InGuestMode || g.Cpu.Requests.Exits != before, "it was in and has not left");
        }
        g.Cpu.Kick();
        vcpu.Join();
    }
}

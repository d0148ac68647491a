using System.Diagnostics;
using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers into the fixture's guest memory, which lives as long as it.
namespace Ring3.Xen.Tests;

/// <summary>
/// Races on the real code, each with a control: a frozen copy that contains the mistake and must be caught, or the detector proves nothing. Controls
/// widen their own window, by sleeping in it, so that they fail on any machine, also where all threads share one processor.
/// </summary>
public sealed unsafe class LitmusTests
{
    private const ulong Shared = XenFixture.SharedGpa, Info = XenFixture.VcpuInfoGpa;

    // ---- 1. Pending bit lost between shadow merge and delivery ----

    [Fact]
    public void ShadowMerge_LosesNothing() => Assert.Equal(-1, RunShadow(v => v.MergePendingEvents()));

    [Fact]
    public void Control_ClearingTheWholeShadow_LosesAnEvent() => Assert.True(RunShadow(v =>
    {
        ulong bits = Volatile.Read(ref v.Shadow);
        if (bits == 0 || XenVm.Acquire(v.VcpuInfo, XenAbi.VcpuInfo.Size) != 0)
            return;
        GuestBits.Or64(v.VcpuInfo.Hva + 8, bits, out _);
        UserCopy.TryWrite1(v.VcpuInfo.Hva, 1);
        v.VcpuInfo.Lock.ExitRead();
        Thread.Sleep(1);
        Volatile.Write(ref v.Shadow, 0);
    }, 60) >= 0, "the detector is blind");

    /// <summary>
    /// Two senders whose events have selectors of their own, a page that comes and goes, and a vCPU that merges and serves. Returns the round in which
    /// an event stayed unserved, or -1.
    /// </summary>
    private static int RunShadow(Action<XenVcpu> merge, double seconds = 4)
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        int stop = 0, lost = -1;
        long[] served = new long[2];
        var threads = new List<Thread>
        {
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    f.Invalidate(Info);
                    Thread.SpinWait(200);
                }
            }),
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    merge(v);
                    ServeGuest(f, port => Interlocked.Increment(ref served[port / 64 - 1]));
                    Thread.Yield();
                }
            }),
        };
        for (int s = 0; s < 2; s++)
        {
            int me = s;
            threads.Add(new(() =>
            {
                for (int round = 1; Volatile.Read(ref stop) == 0; round++)
                {
                    f.Vm.Send(f.To(0, (uint)(me + 1) * 64));
                    long start = Stopwatch.GetTimestamp();
                    while (Volatile.Read(ref served[me]) < round && Volatile.Read(ref stop) == 0)
                    {
                        if (Stopwatch.GetElapsedTime(start).TotalSeconds > 3)
                        {
                            Volatile.Write(ref lost, round);
                            Volatile.Write(ref stop, 1);
                        }
                        Thread.Yield();
                    }
                }
            }));
        }
        Run(threads, ref stop, () => Volatile.Read(ref lost) >= 0, seconds);
        return lost;
    }

    /// <summary>The guest's handler: flag, selector, bits.</summary>
    private static void ServeGuest(XenFixture f, Action<uint> serve)
    {
        if (Volatile.Read(ref f.Byte(Info)) == 0)
            return;
        Volatile.Write(ref f.Byte(Info), 0);
        Interlocked.MemoryBarrier();
        ulong sel = Interlocked.Exchange(ref f.Word(Info + 8), 0);
        for (uint w = 0; w < 64; w++)
        {
            if ((sel >> (int)w & 1) == 0)
                continue;
            ulong bits = Interlocked.Exchange(ref f.Word(Shared + XenAbi.SharedInfo.Pending + w * 8), 0);
            for (uint b = 0; b < 64; b++)
                if ((bits >> (int)b & 1) != 0)
                    serve(w * 64 + b);
        }
    }

    // ---- 2. Delivery racing with the invalidation of the cache ----

    [Fact]
    public void Invalidation_NobodyWritesAfterItsStart() => Assert.False(RunInvalidation((f, port) => f.Vm.TrySend(f.To(0, port))));

    [Fact]
    public void Control_CheckingBeforeTheLock_WritesToThePageThatIsGone() => Assert.True(RunInvalidation((f, port) =>
    {
        var gpc = f.Vm.SharedInfo;
        gpc.Lock.EnterRead();
        bool ok = gpc.Check(4096);
        ulong hva = gpc.Hva;
        gpc.Lock.ExitRead();
        Thread.Sleep(1);
        if (ok)
            GuestBits.Or64(hva + XenAbi.SharedInfo.Pending + port / 64 * 8, 1UL << (int)(port & 63), out _);
    }, 60), "the detector is blind");

    private static bool RunInvalidation(Action<XenFixture, uint> send, double seconds = 1.5)
    {
        using var f = new XenFixture();
        int stop = 0, violated = 0;
        ulong start = f.Ram.Hva + Shared;
        var threads = new List<Thread>
        {
            new(() =>
            {
                for (uint port = 1; Volatile.Read(ref stop) == 0; port = port % 4095 + 1)
                {
                    send(f, port);
                    if (port % 8 == 0)
                        Thread.Yield();
                }
            }),
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    _ = f.Vm.SharedInfo.Refresh(4096);
                    Thread.SpinWait(500);
                    f.Slots.Notifier.InvalidateRangeStart(start, start + 4096);
                    for (uint w = 0; w < 64; w++)
                        Volatile.Write(ref f.Word(Shared + XenAbi.SharedInfo.Pending + w * 8), 0);
                    Thread.SpinWait(3000);
                    Thread.Yield();
                    for (uint w = 0; w < 64; w++)
                        if (Volatile.Read(ref f.Word(Shared + XenAbi.SharedInfo.Pending + w * 8)) != 0)
                            Volatile.Write(ref violated, 1);
                    f.Slots.Notifier.InvalidateRangeEnd(start, start + 4096);
                }
            }),
        };
        Run(threads, ref stop, () => Volatile.Read(ref violated) != 0, seconds);
        return violated != 0;
    }

    // ---- 3. Mask and unmask ----

    [Fact]
    public void Unmask_NeverLeavesAnEventUnannounced() => Assert.False(RunUnmask(f => f.Vm.TrySend(f.To(0, 5))));

    [Fact]
    public void Control_LookingAtTheMaskFirst_LeavesAnEventUnannounced() => Assert.True(RunUnmask(f =>
    {
        bool masked = (Volatile.Read(ref f.Word(Shared + XenAbi.SharedInfo.Mask64)) & 32) != 0;
        Thread.Sleep(1);
        Interlocked.Or(ref f.Word(Shared + XenAbi.SharedInfo.Pending), 32);
        if (!masked)
            f.Processors[0].Xen.MarkPending(0, true);
    }, 60), "the detector is blind");

    private static bool RunUnmask(Action<XenFixture> send, double seconds = 1.5)
    {
        using var f = new XenFixture();
        int stop = 0, round = 0, ready = 0;
        bool violated = false;
        var sender = new Thread(() =>
        {
            for (int i = 1; ; i++)
            {
                while (Volatile.Read(ref round) < i)
                {
                    if (Volatile.Read(ref stop) != 0)
                        return;
                    Thread.SpinWait(1);
                }
                send(f);
                Volatile.Write(ref ready, i);
            }
        });
        sender.Start();
        var watch = Stopwatch.StartNew();
        var random = new Random(7);
        for (int i = 1; watch.Elapsed.TotalSeconds < seconds && !violated; i++)
        {
            f.Word(Shared + XenAbi.SharedInfo.Pending) = 0;
            f.Word(Shared + XenAbi.SharedInfo.Mask64) = 32;
            f.Word(Info + 8) = 0;
            f.Byte(Info) = 0;
            Volatile.Write(ref round, i);
            Thread.SpinWait(random.Next(60));
            if (i % 4 == 0)
                Thread.Yield();
            // The guest's unmask, and EVTCHNOP_unmask's answer to a pending port.
            Interlocked.And(ref f.Word(Shared + XenAbi.SharedInfo.Mask64), ~32UL);
            bool mine = (Volatile.Read(ref f.Word(Shared + XenAbi.SharedInfo.Pending)) & 32) != 0;
            while (Volatile.Read(ref ready) < i)
                Thread.Yield();
            violated = !mine && f.Byte(Info) == 0;
        }
        Volatile.Write(ref stop, 1);
        sender.Join();
        return violated;
    }

    // ---- 4. The wrong vCPU ----

    [Fact]
    public void Ids_NoOtherVcpuIsEverTold() => Assert.False(RunIds((f, kvmId) => f.Vm.TrySend(new(9, kvmId, XenFixture.TwoLevel))));

    [Fact]
    public void Control_TakingTheXenId_TellsAnother() => Assert.True(RunIds((f, kvmId) =>
    {
        XenVcpu? v = f.Processors.Find(p => p.Xen.XenId == kvmId)?.Xen;
        v?.MarkPending(0, true);
    }), "the detector is blind");

    private static bool RunIds(Action<XenFixture, uint> send)
    {
        using var f = new XenFixture(vcpus: 3);
        int stop = 0, violated = 0;
        var threads = new List<Thread>
        {
            new(() =>
            {
                var random = new Random(1);
                while (Volatile.Read(ref stop) == 0)
                    foreach (FakeProcessor p in f.Processors)
                        p.Xen.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, vcpu_id = (uint)random.Next(14) });
            }),
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    send(f, 11);
                    if (f.Word(XenFixture.InfoGpa(0) + 8) != 0 || f.Word(XenFixture.InfoGpa(2) + 8) != 0 || f.Processors[0].Xen.HasShadowEvents
                        || f.Processors[2].Xen.HasShadowEvents)
                        Volatile.Write(ref violated, 1);
                    f.Word(Shared + XenAbi.SharedInfo.Pending) = 0;
                    f.Word(XenFixture.InfoGpa(1) + 8) = 0;
                }
            }),
        };
        Run(threads, ref stop, () => Volatile.Read(ref violated) != 0, 0.5);
        return violated != 0;
    }

    // ---- 5. Torn run state ----

    [Fact]
    public void Runstate_ASnapshotAddsUp_AlsoAcrossAPage() => Assert.False(RunRunstate(XenFixture.RunstateGpa + 4096 - 20, updateFlag: true));

    [Fact]
    public void Control_WithoutTheUpdateFlag_ASnapshotIsTorn() => Assert.True(RunRunstate(XenFixture.RunstateGpa + 4096 - 20, updateFlag: false),
        "the detector is blind");

    private static bool RunRunstate(ulong gpa, bool updateFlag)
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_RUNSTATE_UPDATE_FLAG, runstate_update_flag = updateFlag ? (byte)1 : (byte)0 });
        v.UpdateRunstate(XenAbi.RUNSTATE_running);
        Assert.Equal(0, v.SetAttribute(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa = gpa }));
        int stop = 0, torn = 0;
        var threads = new List<Thread>
        {
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    f.Now += 977;
                    v.UpdateRunstate(f.Now % 2 == 0 ? XenAbi.RUNSTATE_running : XenAbi.RUNSTATE_blocked);
                }
            }),
            new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    // The guest's snapshot.
                    ulong entry = Volatile.Read(ref f.Word(gpa + 8));
                    ulong a = Volatile.Read(ref f.Word(gpa + 16)), b = Volatile.Read(ref f.Word(gpa + 24)), c = Volatile.Read(ref f.Word(gpa + 32)),
                        d = Volatile.Read(ref f.Word(gpa + 40));
                    if (Volatile.Read(ref f.Word(gpa + 8)) == entry && (entry & XenAbi.XEN_RUNSTATE_UPDATE) == 0 && a + b + c + d != entry)
                        Volatile.Write(ref torn, 1);
                }
            }),
        };
        Run(threads, ref stop, () => Volatile.Read(ref torn) != 0, updateFlag ? 1.5 : 10);
        return torn != 0;
    }

    private static void Run(List<Thread> threads, ref int stop, Func<bool> ended, double seconds = 1.5)
    {
        threads.ForEach(t => t.Start());
        var watch = Stopwatch.StartNew();
        while (!ended() && watch.Elapsed.TotalSeconds < seconds && Volatile.Read(ref stop) == 0)
            Thread.Sleep(10);
        Volatile.Write(ref stop, 1);
        threads.ForEach(t => t.Join());
    }
}

using System.Diagnostics;
using Ring3.Abi;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers into the fixture's guest memory, which lives as long as it.
namespace Ring3.Xen.Tests;

public sealed unsafe class FifoTests
{
    private const ulong Control = XenFixture.ControlGpa, Array = XenFixture.ArrayGpa, Info = XenFixture.VcpuInfoGpa;
    private const uint Linked = 1u << 29, Masked = 1u << 30, Pending = 1u << 31, LinkMask = (1u << 17) - 1;

    private static int Fifo(XenFixture f, uint command, ulong gfn = 0) =>
        f.Vm.SetAttribute(new kvm_xen_hvm_attr { type = RING3_XEN_ATTR_TYPE_FIFO, fifo = new() { command = command, gfn = gfn } });

    private static XenFixture Make()
    {
        var f = new XenFixture();
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_ON));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_EXPAND, Array >> 12));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_EXPAND, (Array >> 12) + 1));
        Assert.Equal(0, f.Processors[0].Xen.SetAttribute(new() { type = RING3_XEN_VCPU_ATTR_TYPE_FIFO_CONTROL, gpa = Control }));
        return f;
    }

    private static ref uint Event(XenFixture f, uint port) => ref f.Half(Array + port * 4);

    /// <summary>Index of the guest's own ready word among its heads.</summary>
    private const int LocalReady = 16;

    /// <summary>
    /// The guest's side, as Linux does it: takes the head of the highest-priority ready queue. 0: none. Ready bits are moved out of the control block
    /// before the queues are looked at, and cleared only in the guest's own word:
    /// a bit that is set again meanwhile is not lost.
    /// </summary>
    private static uint Take(XenFixture f, uint[] heads)
    {
        heads[LocalReady] |= Interlocked.Exchange(ref f.Half(Control), 0);
        uint ready = heads[LocalReady];
        if (ready == 0)
            return 0;
        int q = System.Numerics.BitOperations.TrailingZeroCount(ready);
        uint head = heads[q];
        if (head == 0)
        {
            Interlocked.MemoryBarrier();
            head = Volatile.Read(ref f.Half(Control + 8 + (ulong)q * 4));
        }
        uint old, seen = Volatile.Read(ref Event(f, head));
        do
        {
            old = seen;
            seen = Interlocked.CompareExchange(ref Event(f, head), old & ~(Linked | LinkMask), old);
        }
        while (seen != old);
        heads[q] = old & LinkMask;
        if (heads[q] == 0)
            heads[LocalReady] &= ~(1u << q);
        return head;
    }

    private static bool Consume(XenFixture f, uint port) => (Interlocked.And(ref Event(f, port), ~Pending) & Pending) != 0;

    [Fact]
    public void OffByDefault_AndAPriorityIsRefusedThen()
    {
        using var f = new XenFixture();
        Assert.Equal(-Errno.EINVAL, Fifo(f, RING3_XEN_FIFO_EXPAND, 8));
        Assert.Equal(-Errno.EINVAL, f.Vm.ValidateRoute(new() { port = 1, vcpu = 10, priority = 3 }));
        Assert.Equal(-Errno.EINVAL, f.Vm.TrySend(f.To(0, 5000)));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_ON));
        Assert.Equal(0, f.Vm.ValidateRoute(new() { port = 1, vcpu = 10, priority = 3 }));
        Assert.Equal(-Errno.EINVAL, f.Vm.ValidateRoute(new() { port = 1, vcpu = 10, priority = 16 }));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_OFF));
        Assert.Equal(1, f.Vm.TrySend(f.To(0, 50)));
    }

    /// <summary>Another hypervisor goes on with queues that are in the guest's memory.</summary>
    [Theory]
    [InlineData(true), InlineData(false)]
    public void Queues_GoOnFromTheirTails(bool told)
    {
        using var f = Make();
        XenVcpu v = f.Processors[0].Xen;
        uint id = f.Processors[0].Id;
        Assert.Equal(1, f.Vm.TrySend(new(10, id, 7)));
        Assert.Equal(1, f.Vm.TrySend(new(1500, id, 7)));
        kvm_xen_vcpu_attr tails = new() { type = RING3_XEN_VCPU_ATTR_TYPE_FIFO_TAILS };
        Assert.Equal(0, v.GetAttribute(ref tails));
        Assert.Equal((1500u, 0u), (tails.fifo_tails[7], tails.fifo_tails[6]));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_OFF));
        Assert.Equal(-Errno.EINVAL, v.GetAttribute(ref tails));
        Assert.Equal(-Errno.EINVAL, v.SetAttribute(tails));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_ON));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_EXPAND, Array >> 12));
        Assert.Equal(0, Fifo(f, RING3_XEN_FIFO_EXPAND, (Array >> 12) + 1));
        if (told)
            Assert.Equal(0, v.SetAttribute(tails));
        Assert.Equal(1, f.Vm.TrySend(new(12, id, 7)));
        var heads = new uint[LocalReady + 1];
        var order = new List<uint>();
        while (Take(f, heads) is not 0 and var port)
            order.Add(port);
        // Without them the queue would begin anew with the event that came.
        Assert.Equal(told ? [10u, 1500u, 12u] : [12u], order);
        tails.fifo_tails[3] = XenAbi.Fifo.Ports;
        Assert.Equal(-Errno.EINVAL, v.SetAttribute(tails));
    }

    /// <summary>Who asks where the pages are may copy them: nothing is on its way any more.</summary>
    [Fact]
    public void Events_AreInTheGuestsMemory_WhenTheirPagesAreAskedFor()
    {
        using var f = new XenFixture();
        XenVcpu v = f.Processors[0].Xen;
        f.Invalidate(Info);
        Assert.Equal(1, f.Vm.TrySend(f.To(0, 70)));
        Assert.Equal(2ul, v.Shadow);
        kvm_xen_vcpu_attr info = new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO };
        Assert.Equal(0, v.GetAttribute(ref info));
        Assert.Equal((0ul, 2ul, (byte)1), (v.Shadow, f.Word(Info + XenAbi.VcpuInfo.PendingSel64), f.Byte(Info)));
        f.Invalidate(XenFixture.SharedGpa);
        Assert.Equal(1, f.Vm.SendOrDefer(f.To(0, 140)));
        Assert.False(f.IsPending(140));
        kvm_xen_hvm_attr shared = new() { type = KVM_XEN_ATTR_TYPE_SHARED_INFO };
        Assert.Equal(0, f.Vm.GetAttribute(ref shared));
        Assert.True(f.IsPending(140));
    }

    [Fact]
    public void Events_ArriveInOrder_HighestPriorityFirst()
    {
        using var f = Make();
        uint id = f.Processors[0].Id;
        foreach (var (port, priority) in new[] { (10u, 7u), (1500u, 7u), (12u, 2u), (13u, 7u), (14u, 0u), (15u, 2u) })
            Assert.Equal(1, f.Vm.TrySend(new(port, id, priority)));
        Assert.Equal(0, f.Vm.TrySend(new(13, id, 7)));
        Assert.Equal(1, f.Byte(Info));
        Assert.Equal(1, f.Processors[0].Kicks);
        var heads = new uint[LocalReady + 1];
        var order = new List<uint>();
        while (Take(f, heads) is not 0 and var port)
        {
            Assert.True(Consume(f, port));
            order.Add(port);
        }
        Assert.Equal([14, 12, 15, 10, 1500, 13], order);
        Assert.Equal(0u, f.Half(Control));
        // The queue is empty: the next event starts it anew.
        f.Byte(Info) = 0;
        Assert.Equal(1, f.Vm.TrySend(new(10, id, 7)));
        Assert.Equal(10u, Take(f, heads));
        Assert.Equal(2, f.Processors[0].Kicks);
    }

    [Fact]
    public void Masked_IsNotQueued_UntilItIsSentAgain()
    {
        using var f = Make();
        Event(f, 20) = Masked;
        Assert.Equal(-Errno.ENOTCONN, f.Vm.TrySend(f.To(0, 20)));
        Assert.Equal(Masked | Pending, Event(f, 20));
        Event(f, 20) = Pending;
        // EVTCHNOP_unmask of a pending port.
        Assert.Equal(1, f.Vm.TrySend(f.To(0, 20)));
        Assert.Equal(20u, Take(f, new uint[LocalReady + 1]));
    }

    [Fact]
    public void PagesThatWentAway_WouldBlock_AndSendTranslatesThem()
    {
        using var f = Make();
        f.Invalidate(Array);
        Assert.Equal(XenVm.WouldBlock, f.Vm.TrySend(f.To(0, 20)));
        Assert.Equal(0u, Event(f, 20));
        Assert.Equal(1, f.Vm.Send(f.To(0, 20)));
        f.Invalidate(Control);
        Assert.Equal(1, f.Vm.Send(f.To(0, 21)));
        Assert.Equal(-Errno.EINVAL, f.Vm.Send(f.To(0, 3000)));
    }

    /// <summary>A guest that writes nonsense into its words harms itself only.</summary>
    [Fact]
    public void Nonsense_IsHarmless()
    {
        using var f = Make();
        var random = new Random(3);
        for (int i = 0; i < 50_000; i++)
        {
            Event(f, (uint)random.Next(2048)) = (uint)random.NextInt64();
            f.Half(Control + (ulong)random.Next(18) * 4) = (uint)random.NextInt64();
            _ = f.Vm.Send(new((uint)random.Next(2100), f.Processors[0].Id, (uint)random.Next(17)));
        }
    }

    /// <summary>Two senders against a guest that takes, masks and unmasks: every event sent is served at last.</summary>
    [Fact]
    public void Race_NoEventIsLost()
    {
        using var f = Make();
        uint id = f.Processors[0].Id;
        int stop = 0;
        long[] served = new long[4], sent = new long[4];
        var senders = new Thread[2];
        for (int s = 0; s < 2; s++)
        {
            int me = s;
            senders[s] = new(() =>
            {
                while (Volatile.Read(ref stop) == 0)
                {
                    for (int k = 0; k < 2; k++)
                    {
                        int n = me * 2 + k;
                        if (Volatile.Read(ref served[n]) == sent[n])
                        {
                            Volatile.Write(ref sent[n], sent[n] + 1);
                            f.Vm.Send(new((uint)(30 + n), id, 7));
                        }
                    }
                    Thread.Yield();
                }
            });
            senders[s].Start();
        }
        var heads = new uint[LocalReady + 1];
        var watch = Stopwatch.StartNew();
        long progress = watch.ElapsedMilliseconds;
        bool stuck = false;
        while (watch.Elapsed.TotalSeconds < 2 && !stuck)
        {
            uint port = Take(f, heads);
            if (port == 0)
            {
                stuck = watch.ElapsedMilliseconds - progress > 1000;
                Thread.Yield();
                continue;
            }
            progress = watch.ElapsedMilliseconds;
            if (Consume(f, port))
                Interlocked.Increment(ref served[port - 30]);
        }
        Volatile.Write(ref stop, 1);
        foreach (Thread t in senders)
            t.Join();
        Assert.False(stuck, $"sent {string.Join(' ', sent)}, served {string.Join(' ', served)}");
    }
}

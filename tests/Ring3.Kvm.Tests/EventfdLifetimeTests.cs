using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Descriptors of clients that the hypervisor signals: none is used after its close, when its number may be somebody else's.</summary>
public sealed class EventfdLifetimeTests
{
    private const ushort Port = 0x510;
    private static readonly kvm_ioeventfd s_doorbell = new() { addr = Port, len = 1, flags = KVM_IOEVENTFD_FLAG_PIO };

    [Fact]
    public void RemovedIoeventfd_IsNotThereForVcpus()
    {
        int client = EventFd.Create();
        IoBus bus = IoBus.OfPorts();
        Ioeventfd device = new(s_doorbell with { fd = client }, RcuEventFd.TryDuplicate(client)!);
        bus.Add(Port, 1, device, last: false);
        Assert.True(bus.Write(Port, [0]));
        Assert.Equal(1ul, EventFd.Drain(client));
        bus.Remove([device]);
        device.Close();
        int other = EventFd.Create();
        // The lowest free number is that of the closed one, unless another test was quicker.
        Assert.False(bus.Write(Port, [0]));
        Assert.Equal(0ul, EventFd.Drain(other));
        Assert.Equal(0ul, EventFd.Drain(client));
        EventFd.Close(other);
        EventFd.Close(client);
    }

    [Fact]
    public async Task Deassign_WaitsForWhoIsSignalling()
    {
        using Vm vm = Vm.Create();
        int client = EventFd.Create();
        Assert.Equal(0, vm.RegisterIoeventfd(s_doorbell with { fd = client }));
        using ManualResetEventSlim inside = new(), leave = new();
        Thread reader = new(() =>
        {
            using (Rcu.Read())
            {
                inside.Set();
                leave.Wait();
            }
        });
        reader.Start();
        inside.Wait();
        Task<int> deassign = Task.Run(() => vm.RegisterIoeventfd(s_doorbell with { fd = client, flags = KVM_IOEVENTFD_FLAG_PIO
            | KVM_IOEVENTFD_FLAG_DEASSIGN }));
        SpinWait.SpinUntil(() => !vm.Ports.MayClaim(Port));
        Assert.False(deassign.IsCompleted);
        leave.Set();
        Assert.Equal(0, await deassign);
        reader.Join();
        EventFd.Close(client);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void DoorbellUnderLoad_RingsNobodyElse(bool mmio)
    {
        DescriptorScenes.Result r = DescriptorScenes.Doorbell(mmio, 3_000);
        Assert.Equal((0, 0ul), (r.Screams, r.Late));
        Assert.NotEqual(0ul, r.Signals);
    }

    [Fact]
    public void IrqfdUnderLoad_ReadsNobodyElses()
    {
        DescriptorScenes.Result r = DescriptorScenes.Irqfd(3_000);
        Assert.Equal(0, r.Screams);
        Assert.NotEqual(0ul, r.Signals);
    }

    [Fact]
    public void ResampleUnderLoad_SignalsNobodyElse()
    {
        DescriptorScenes.Result r = DescriptorScenes.Resample(3_000);
        Assert.Equal((0, 0ul), (r.Screams, r.Late));
        Assert.NotEqual(0ul, r.Signals);
    }

    /// <summary>A client's eventfd whose counter is full does not stop the vCPU, as the kernel's own signals never wait.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(0x800)]
    public void FullCounter_StopsNobody(int flags)
    {
        using TestGuest g = new();
        g.Load(0x66, 0xba, 0x10, 0x05, 0xee, 0xb0, 0x07, 0xe6, 0xf4);
        int client = CreateEventfd(0, flags);
        Assert.True(EventFd.Signal(client, ulong.MaxValue - 1));
        Assert.Equal(0, g.Vm.RegisterIoeventfd(s_doorbell with { fd = client }));
        Assert.Equal(7, g.RunToEnd());
        Assert.Equal(ulong.MaxValue - 1, EventFd.Drain(client));
        EventFd.Close(client);
    }

    [System.Runtime.InteropServices.DllImport("libc", EntryPoint = "eventfd")]
    private static extern int CreateEventfd(uint initial, int flags);

    /// <summary>
    /// An acknowledgement that is on its way when its irqfd goes away touches neither the descriptor nor the line, which may be the next irqfd's.
    /// </summary>
    [Fact]
    public void RemovedResampleIrqfd_DoesNotLowerTheNextOnesLine()
    {
        using TestGuest g = new(irqchip: true);
        int irq = EventFd.Create(), resample = EventFd.Create();
        VmHealth health = new(new VcpuList(new RankedLock(LockRank.Shaping)));
        Irqfd old = new(health, g.Vm.Irqchip!, irq, EventFd.Duplicate(irq), 18, RcuEventFd.TryDuplicate(resample));
        Assert.True(old.TryDeliver(irq));
        Assert.NotEqual(0u, Level(g));
        old.Remove();
        old.Close();
        Assert.Equal(0u, Level(g));
        Irqfd next = new(health, g.Vm.Irqchip!, irq, EventFd.Duplicate(irq), 18, RcuEventFd.TryDuplicate(resample));
        Assert.True(next.TryDeliver(irq));
        old.Acked();
        Assert.NotEqual(0u, Level(g));
        Assert.Equal(0ul, EventFd.Drain(resample));
        g.Vm.Irqchip!.NotifyAckedGsi(18);
        Assert.Equal(0u, Level(g));
        Assert.Equal(1ul, EventFd.Drain(resample));
        next.Remove();
        next.Close();
        EventFd.Close(irq);
        EventFd.Close(resample);
    }

    private sealed class Thrower(Vm vm, int fd) : IPolled
    {
        public int Fd => fd;
        public void Signalled() => throw new InvalidOperationException("broken");
        public void Failed(Exception e) => vm.BugOn(true, e.ToString());
    }

    /// <summary>The event loop's thread serves every VM of a process that may not be ours: what throws there ends one VM.</summary>
    [Fact]
    public void PolledMemberThatThrows_EndsItsVmOnly()
    {
        using Vm broken = Vm.Create();
        using TestGuest g = new(irqchip: true);
        int bad = EventFd.Create(), irq = EventFd.Create();
        Thrower thrower = new(broken, bad);
        Assert.Equal(0, EventLoop.Shared.Attach(thrower));
        EventFd.Signal(bad);
        Assert.True(SpinWait.SpinUntil(() => broken.IsDead, 60_000));
        Assert.Contains("broken", broken.BugMessage, StringComparison.Ordinal);
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 18 }));
        EventFd.Signal(irq);
        Assert.True(SpinWait.SpinUntil(() => EventFd.Drain(irq) == 0, 60_000));
        Assert.False(g.Vm.IsDead);
        EventLoop.Shared.Detach(thrower);
        EventFd.Close(bad);
        EventFd.Close(irq);
    }

    private static uint Level(TestGuest g)
    {
        kvm_irqchip chip = new() { chip_id = KVM_IRQCHIP_IOAPIC };
        Assert.Equal(0, g.Vm.GetIrqchip(ref chip));
        return chip.ioapic.irr & 1u << 18;
    }
}

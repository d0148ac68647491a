using Ring3.Abi;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Kvm;

// SAFETY: guest memory is mapped until Dispose, after the virtual machine's; kvm_run lives as long as the vCPU.
namespace Ring3.Vmm.Tests.Xen;

/// <summary>Hypercalls as a guest makes them: the vCPU has paging off, so a linear address is a physical one.</summary>
public sealed unsafe class XenPlatformTests : IDisposable
{
    private const ulong Argument = 0x9000, Shared = 0x10000, Control = 0x11000, Array = 0x12000;
    private const int Bytes = 1 << 20, AcpiGsi = 9, SerialGsi = 4;
    private const ushort DomidSelf = 0x7ff0;
    private readonly byte* _ram = HostMemory.Map(Bytes);
    private readonly Vm _vm = Vm.Create();
    private readonly Vcpu _vcpu;
    private readonly XenPlatform _xen;

    private sealed class NoControl : IMachineControl
    {
        public void End(MachineEnd end, int value, string? detail) { }
    }

    public XenPlatformTests()
    {
        Assert.Equal(0, _vm.CreateIrqchip());
        Assert.Equal(0, _vm.SetGsiRouting(IrqRouting.PcWiring()));
        Assert.Equal(0, _vm.SetUserMemoryRegion(0, 0, 0, Bytes, (ulong)_ram));
        _vcpu = _vm.CreateVcpu(0);
        _xen = new XenPlatform(_vm, [_vcpu], new NoControl(), Bytes, fifo: true);
        // { domid, size, space 0, index 0, gpfn }
        Assert.Equal(0, Call(XenAbi.memory_op, 7, DomidSelf, 0UL, Shared >> 12));
        Assert.Equal(0, _vm.XenSetAttr(new kvm_xen_hvm_attr { type = KvmApi.KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = 0xf3 }));
    }

    public void Dispose()
    {
        _vm.Dispose();
        _xen.Dispose();
        HostMemory.Unmap(_ram, Bytes);
    }

    private ref T At<T>(ulong gpa) where T : unmanaged => ref *(T*)(_ram + gpa);

    /// <summary>A hypercall whose argument is a structure of 64-bit words.</summary>
    private long Call(uint number, uint command, params ReadOnlySpan<ulong> words)
    {
        for (int i = 0; i < words.Length; i++)
            At<ulong>(Argument + 8 * (ulong)i) = words[i];
        kvm_run* run = _vcpu.KvmRun;
        run->xen = default;
        (run->xen.longmode, run->xen.input, run->xen.@params[0], run->xen.@params[1], run->xen.@params[2]) = (1, number, command, Argument, 1);
        _xen.Serve(_vcpu);
        return (long)run->xen.result;
    }

    private static ulong Pair(uint low, uint high) => low | (ulong)high << 32;

    private uint MapPirq(int gsi, int pirq = -1)
    {
        Assert.Equal(0, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair((uint)gsi, (uint)pirq)));
        return At<uint>(Argument + 12);
    }

    private uint BindPirq(uint pirq)
    {
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_pirq, Pair(pirq, 0)));
        return At<uint>(Argument + 8);
    }

    private bool TakePending(uint port)
    {
        ref ulong word = ref At<ulong>(Shared + XenAbi.SharedInfo.Pending + port / 64 * 8);
        bool pending = (word >> (int)(port & 63) & 1) != 0;
        word &= ~(1UL << (int)(port & 63));
        return pending;
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void Close_TakesThePendingEventAlong(bool fifo)
    {
        ref uint word = ref At<uint>(Array + 4 * 3);
        if (fifo)
        {
            Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_init_control, Control >> 12, 0, 0));
            Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_expand_array, Array >> 12));
        }
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_ipi, 0));
        uint port = At<uint>(Argument + 4);
        Assert.Equal(3u, port);
        Assert.Equal(0, _vm.XenEvtchnSend(new() { port = port, vcpu = 0, priority = KvmApi.KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL }));
        Assert.True(fifo ? word >> XenAbi.Fifo.PendingBit != 0 : (At<ulong>(Shared + XenAbi.SharedInfo.Pending) >> 3 & 1) != 0);
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_close, port));
        Assert.Equal(0u, fifo ? word >> XenAbi.Fifo.PendingBit : (uint)(At<ulong>(Shared + XenAbi.SharedInfo.Pending) >> 3 & 1));
    }

    [Fact]
    public void EdgeOfAGsi_IsOneEvent_WhileThePirqIsBound()
    {
        uint pirq = MapPirq(SerialGsi);
        Assert.Equal(pirq, MapPirq(SerialGsi));
        _xen.SetGsi(SerialGsi, true);
        uint port = BindPirq(pirq);
        Assert.False(TakePending(port), "an edge that came before is the I/O APIC's");
        _xen.SetGsi(SerialGsi, false);
        _xen.SetGsi(SerialGsi, true);
        Assert.True(TakePending(port));
        _xen.SetGsi(SerialGsi, true);
        Assert.False(TakePending(port), "no edge, no event");
        Assert.Equal(0, Call(XenAbi.physdev_op, 5, pirq));
        Assert.Equal(0u, At<uint>(Argument + 4));
        Assert.Equal(0, Call(XenAbi.physdev_op, 12, pirq));
        Assert.False(TakePending(port), "an edge is not repeated");
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_close, port));
        _xen.SetGsi(SerialGsi, false);
        _xen.SetGsi(SerialGsi, true);
        Assert.False(TakePending(port), "unbound: the I/O APIC's again");
    }

    [Fact]
    public void LineThatStaysHigh_ComesAgainAfterTheEoi()
    {
        _xen.SetGsi(AcpiGsi, true);
        uint pirq = MapPirq(AcpiGsi), port = BindPirq(pirq);
        Assert.True(TakePending(port), "high when the guest begins to listen");
        Assert.Equal(0, Call(XenAbi.physdev_op, 5, pirq));
        Assert.Equal(1u, At<uint>(Argument + 4));
        Assert.Equal(0, Call(XenAbi.physdev_op, 12, pirq));
        Assert.True(TakePending(port), "still high");
        _xen.SetGsi(AcpiGsi, false);
        Assert.Equal(0, Call(XenAbi.physdev_op, 12, pirq));
        Assert.False(TakePending(port));
    }

    [Fact]
    public void MaskedPirq_IsSentWhenItIsUnmasked()
    {
        uint port = BindPirq(MapPirq(SerialGsi));
        At<ulong>(Shared + XenAbi.SharedInfo.Mask64) = 1UL << (int)port;
        _xen.SetGsi(SerialGsi, true);
        Assert.Equal(0ul, At<ulong>(Shared + XenAbi.VcpuInfo.PendingSel64));
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_unmask, port));
        Assert.True(TakePending(port));
        Assert.Equal(1ul, At<ulong>(Shared + XenAbi.VcpuInfo.PendingSel64));
    }

    [Fact]
    public void MessageOfADevice_GoesToThePortOfThePirqThatItNames()
    {
        // { type MSI, pirq out }
        Assert.Equal(0, Call(XenAbi.physdev_op, 23, 0));
        uint pirq = At<uint>(Argument + 4), port = BindPirq(pirq);
        ulong address = 0xfee0_0000 | pirq << 12;
        Assert.Equal(1, _vm.SignalMsi(address, 7 << 8));
        Assert.True(TakePending(port));
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_close, port));
        _ = _vm.SignalMsi(address, 7 << 8);
        Assert.False(TakePending(port));
    }

    [Fact]
    public void AnyHypercall_HasAnAnswer()
    {
        var random = new Random(7);
        uint[] numbers = [XenAbi.memory_op, XenAbi.xen_version, XenAbi.console_io, XenAbi.grant_table_op, XenAbi.vcpu_op, XenAbi.sched_op,
            XenAbi.event_channel_op, XenAbi.physdev_op, XenAbi.hvm_op];
        Span<ulong> words = stackalloc ulong[4];
        for (int i = 0; i < 100_000; i++)
        {
            foreach (ref ulong word in words)
                word = random.Next(4) switch
                {
                    0 => (ulong)random.NextInt64() >> random.Next(64),
                    1 => Pair(DomidSelf, (uint)random.Next(3)),
                    2 => Pair((uint)random.Next(64), (uint)random.Next(64)),
                    _ => (ulong)random.Next(Bytes >> 12),
                };
            _ = Call(numbers[random.Next(numbers.Length)], (uint)random.Next(26), words);
            _xen.SetGsi(random.Next(Ioapic.PinCount), random.Next(2) == 0);
        }
        Assert.Null(_vm.BugMessage);
    }

    [Fact]
    public void Pirqs_RefuseWhatTheyMust()
    {
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 0), Pair(4, uint.MaxValue)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair(Ioapic.PinCount, uint.MaxValue)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair(4, 256)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(3, 1), Pair(4, uint.MaxValue)));
        Assert.Equal(40u, MapPirq(SerialGsi, 40));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair(SerialGsi, 41)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair(5, 40)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_pirq, 99));
        uint port = BindPirq(40);
        Assert.Equal(-Errno.EEXIST, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_pirq, 40));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 14, Pair(DomidSelf, 40)));
        Assert.Equal(0, Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_close, port));
        Assert.Equal(0, Call(XenAbi.physdev_op, 14, Pair(DomidSelf, 40)));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.physdev_op, 12, 40));
    }

    [Fact]
    public void GrantTable_IsMappedOutsideOfRam_AndHoldsTheToolstacksGrants()
    {
        const ulong Gpfn = 0xc0000, Grants = Gpfn << 12;
        Assert.Equal(0, Call(XenAbi.grant_table_op, 6, DomidSelf));
        Assert.Equal((1u, 64u), (At<uint>(Argument + 4), At<uint>(Argument + 8)));
        Assert.Equal(0, Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 0, Gpfn));
        Assert.Equal(0, Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 3, Gpfn + 3));
        Assert.True(_vm.Memory.TryRead(Grants, out ulong console));
        Assert.True(_vm.Memory.TryRead(Grants + 8, out ulong store));
        Assert.Equal((1ul | 0xfeffdul << 32, 1ul | 0xfeffcul << 32), (console, store));
        Assert.True(_vm.Memory.TryWrite(Grants + 0x3ff8, 7ul));
        // The frame moves; what the guest has written stays.
        Assert.Equal(0, Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 3, Gpfn + 8));
        Assert.True(_vm.Memory.TryRead(Grants + 0x8ff8, out ulong moved) && moved == 7);
        Assert.False(_vm.Memory.TryRead(Grants + 0x3ff8, out moved));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 4, Shared >> 12));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 64, Gpfn));
        Assert.Equal(0, Call(XenAbi.grant_table_op, 8, 1));
        Assert.Equal(-Errno.EINVAL, Call(XenAbi.grant_table_op, 8, 2));
    }
}

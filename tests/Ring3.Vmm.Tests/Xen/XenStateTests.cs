using Ring3.Abi;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Kvm;
using static Ring3.Abi.KvmApi;

// SAFETY: guest memory is mapped until Dispose, after the virtual machine's; kvm_run lives as long as the vCPU.
namespace Ring3.Vmm.Tests.Xen;

/// <summary>A Xen guest's machine in a snapshot, and what a file that was made up does.</summary>
public sealed class XenStateTests
{
    private const ulong Argument = 0x9000, Shared = 0x10000, Control = 0x11000, Array = 0x12000, Areas = 0x14000, Gpfn = 0xc0000;
    private const int Bytes = 1 << 20, AcpiGsi = 9, SerialGsi = 4, Cpus = 2;
    private const ushort DomidSelf = 0x7ff0;
    private const uint LinkMask = XenAbi.Fifo.LinkMask;

    private sealed class NoControl : IMachineControl
    {
        public void End(MachineEnd end, int value, string? detail) { }
    }

    /// <summary>A VM whose guest makes hypercalls with paging off.</summary>
    private sealed unsafe class Host : IDisposable
    {
        private readonly byte* _ram = HostMemory.Map(Bytes);
        public Vm Vm { get; } = Vm.Create();
        public Vcpu[] Vcpus { get; }
        public XenPlatform Xen { get; }

        public Host(bool fifo)
        {
            Assert.Equal(0, Vm.CreateIrqchip());
            Assert.Equal(0, Vm.SetGsiRouting(IrqRouting.PcWiring()));
            Assert.Equal(0, Vm.SetUserMemoryRegion(0, 0, 0, Bytes, (ulong)_ram));
            Vcpus = [.. Enumerable.Range(0, Cpus).Select(i => Vm.CreateVcpu((uint)i))];
            Xen = new XenPlatform(Vm, Vcpus, new NoControl(), Bytes, fifo);
        }

        public Span<byte> Ram => new(_ram, Bytes);

        public ref T At<T>(ulong gpa) where T : unmanaged => ref *(T*)(_ram + gpa);

        public long Call(uint number, uint command, params ReadOnlySpan<ulong> words)
        {
            for (int i = 0; i < words.Length; i++)
                At<ulong>(Argument + 8 * (ulong)i) = words[i];
            kvm_run* run = Vcpus[0].KvmRun;
            run->xen = default;
            (run->xen.longmode, run->xen.input, run->xen.@params[0], run->xen.@params[1], run->xen.@params[2]) = (1, number, command, Argument, 1);
            Xen.Serve(Vcpus[0]);
            return (long)run->xen.result;
        }

        public bool TakePending(uint port)
        {
            Flush();
            ref ulong word = ref At<ulong>(Shared + XenAbi.SharedInfo.Pending + port / 64 * 8);
            bool pending = (word >> (int)(port & 63) & 1) != 0;
            word &= ~(1UL << (int)(port & 63));
            return pending;
        }

        /// <summary>Everything of the machine that concerns Xen, as its snapshot has it.</summary>
        public byte[] Save()
        {
            var state = new StateTransfer();
            Xen.Transfer(state);
            Xen.TransferHypervisor(state);
            return state.Written.ToArray();
        }

        /// <param name="from">Whose clock goes on, as in a clone.</param>
        /// <param name="bytes">The state.</param>
        public void Load(Host from, byte[] bytes)
        {
            SetClock(from);
            var state = new StateTransfer(bytes);
            Xen.Transfer(state);
            Xen.TransferHypervisor(state);
            Assert.True(state.IsAtEnd);
        }

        public void SetClock(Host from)
        {
            kvm_clock_data now = from.Vm.Clock.Get();
            Assert.Equal(0, Vm.Clock.Set(new() { clock = now.clock }));
        }

        /// <summary>Waits for the worker, which has events whose pages were not at hand.</summary>
        public void Flush()
        {
            var shared = new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO };
            Assert.Equal(0, Vm.XenGetAttr(ref shared));
        }

        public void Dispose()
        {
            Vm.Dispose();
            Xen.Dispose();
            HostMemory.Unmap(_ram, Bytes);
        }
    }

    private static ulong Pair(uint low, uint high) => low | (ulong)high << 32;

    private static kvm_xen_vcpu_attr Attribute(Vcpu vcpu, ushort type)
    {
        var attr = new kvm_xen_vcpu_attr { type = type };
        Assert.Equal(0, vcpu.XenGetAttr(ref attr));
        return attr;
    }

    private static (uint Port, ulong Expires) Timer(Host h) =>
        Attribute(h.Vcpus[1], KVM_XEN_VCPU_ATTR_TYPE_TIMER).timer is var timer ? (timer.port, timer.expires_ns) : default;

    private static (uint Line, uint Edge, uint Ipi) Busy(Host h, bool fifo)
    {
        Assert.Equal(0, h.Call(XenAbi.memory_op, 7, DomidSelf, 0UL, Shared >> 12));
        Assert.Equal(0, h.Call(XenAbi.memory_op, 7, Pair(DomidSelf, 1), 2, Gpfn));
        Assert.True(h.Vm.Memory.TryWrite(Gpfn << 12, 0x1234ul));
        Assert.Equal(0, h.Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_UPCALL_VECTOR, vector = 0xf3 }));
        Assert.Equal(0, h.Vcpus[1].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR, vector = 0x77 }));
        Assert.Equal(0, h.Vcpus[1].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, gpa = Areas + 64 }));
        Assert.Equal(0, h.Vcpus[0].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR, gpa = Areas + 4090 }));
        Assert.Equal(0, h.Vcpus[0].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_CURRENT, runstate = new() { state = 2 } }));
        Assert.Equal(0, h.Vcpus[1].XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER,
            timer = new() { port = 40, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, expires_ns = 1UL << 50 } }));
        if (fifo)
        {
            Assert.Equal(0, h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_init_control, Control >> 12, 0, 0));
            Assert.Equal(0, h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_expand_array, Array >> 12));
        }
        uint Bind(int gsi)
        {
            Assert.Equal(0, h.Call(XenAbi.physdev_op, 13, Pair(DomidSelf, 1), Pair((uint)gsi, uint.MaxValue)));
            Assert.Equal(0, h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_pirq, h.At<uint>(Argument + 12)));
            return h.At<uint>(Argument + 8);
        }
        Assert.Equal(0, h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_bind_ipi, 0));
        uint ipi = h.At<uint>(Argument + 4);
        h.Xen.SetGsi(AcpiGsi, true);
        return (Bind(AcpiGsi), Bind(SerialGsi), ipi);
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void Events_ComeFromWhereTheyCame(bool fifo)
    {
        using var one = new Host(fifo);
        using var other = new Host(fifo);
        var (line, edge, ipi) = Busy(one, fifo);
        byte[] state = one.Save();
        one.Ram.CopyTo(other.Ram);
        other.Load(one, state);
        foreach (int cpu in Enumerable.Range(0, Cpus))
            foreach (ushort type in (ushort[])[KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, KVM_XEN_VCPU_ATTR_TYPE_VCPU_TIME_INFO, KVM_XEN_VCPU_ATTR_TYPE_UPCALL_VECTOR])
                Assert.Equal(Attribute(one.Vcpus[cpu], type).gpa, Attribute(other.Vcpus[cpu], type).gpa);
        Assert.Equal(Areas + 4090, Attribute(other.Vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_ADDR).gpa);
        kvm_xen_vcpu_attr counted = Attribute(one.Vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA);
        Assert.Equal(counted.runstate, Attribute(other.Vcpus[0], KVM_XEN_VCPU_ATTR_TYPE_RUNSTATE_DATA).runstate);
        Assert.Equal((40u, 1UL << 50), Timer(other));
        // Watchdogs hear of the stop by the clock of vcpu_info.
        Assert.NotEqual(0, other.At<byte>(Shared + XenAbi.VcpuInfo.Time + 29) & KvmPara.PVCLOCK_GUEST_STOPPED);
        Assert.True(other.Vm.Memory.TryRead(Gpfn << 12, out ulong grant) && grant == 0x1234);
        Assert.Equal(-Errno.EEXIST, other.Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_EVTCHN,
            evtchn = new() { send_port = ipi, type = XenAbi.EVTCHNSTAT_ipi, port = ipi, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL } }));
        if (fifo)
        {
            // The line's event is the only one of its queue: the next is named in its word, not in the place of the queue's head.
            Assert.Equal(line, other.At<uint>(Control + 8 + 7 * 4));
            other.Xen.SetGsi(SerialGsi, true);
            other.Flush();
            Assert.Equal((line, edge), (other.At<uint>(Control + 8 + 7 * 4), other.At<uint>(Array + 4 * line) & LinkMask));
            return;
        }
        Assert.True(other.TakePending(line), "it was on its way");
        other.Xen.SetGsi(SerialGsi, true);
        Assert.True(other.TakePending(edge));
        Assert.Equal(0, other.Call(XenAbi.physdev_op, 12, 16));
        Assert.True(other.TakePending(line), "the line is high, and the guest has served it");
        other.Xen.SetGsi(AcpiGsi, false);
        Assert.Equal(0, other.Call(XenAbi.physdev_op, 12, 16));
        Assert.False(other.TakePending(line));
    }

    [Fact]
    public void DevicesThatGetTheirStateBack_SendNothing()
    {
        using var one = new Host(false);
        using var other = new Host(false);
        uint line = Busy(one, false).Line;
        Assert.True(one.TakePending(line));
        var state = new StateTransfer();
        one.Xen.Transfer(state);
        one.Xen.TransferHypervisor(state);
        one.Ram.CopyTo(other.Ram);
        other.SetClock(one);
        var back = new StateTransfer(state.Written.ToArray());
        other.Xen.Transfer(back);
        other.Xen.SetGsi(AcpiGsi, true);
        other.Xen.TransferHypervisor(back);
        Assert.False(other.TakePending(line));
        var chip = new kvm_irqchip { chip_id = KVM_IRQCHIP_IOAPIC };
        Assert.Equal(0, other.Vm.GetIrqchip(ref chip));
        Assert.Equal(0u, chip.ioapic.irr & 1u << AcpiGsi);
    }

    /// <summary>Tails of queues are the hypervisor's, the rest is in memory: nothing may be appended between the looks at both.</summary>
    [Fact]
    public void WhatIsHeld_SendsNothing_AndComesAfterwards()
    {
        using var one = new Host(false);
        using var other = new Host(false);
        var (_, edge, _) = Busy(one, false);
        one.Xen.Hold();
        one.Xen.SetGsi(SerialGsi, true);
        one.Flush();
        Assert.False(one.TakePending(edge));
        Assert.Equal((40u, 0ul), Timer(one));
        other.Load(one, one.Save());
        Assert.Equal((40u, 1UL << 50), Timer(other));
        one.Xen.Release();
        one.Flush();
        Assert.True(one.TakePending(edge));
        Assert.Equal((40u, 1UL << 50), Timer(one));
    }

    [Fact]
    public void AFileThatEndsTooSoon_IsRefused()
    {
        using var one = new Host(true);
        Busy(one, true);
        byte[] state = one.Save();
        foreach (int bytes in (int[])[0, 5, 600, 9000, state.Length / 2, state.Length - 100, state.Length - 1])
        {
            using var other = new Host(true);
            Assert.Throws<InvalidDataException>(() => other.Load(one, state[..bytes]));
        }
    }

    /// <summary>Checksums keep accidents out. Who makes up a file with the right ones gets a refusal, or a guest that is its own concern.</summary>
    [Theory]
    [InlineData(1), InlineData(2), InlineData(3), InlineData(4)]
    public void AnyState_IsRefusedOrHarmless(int seed)
    {
        var random = new Random(seed);
        bool fifo = seed % 2 == 0;
        using var one = new Host(fifo);
        Busy(one, fifo);
        byte[] good = one.Save();
        int hypervisor = good.AsSpan().LastIndexOf("xen hypervisor"u8) + 14, refused = 0;
        for (int round = 0; round < 60; round++)
        {
            byte[] bad = (byte[])good.Clone();
            for (int n = random.Next(1, 4); n > 0; n--)
            {
                int at = random.Next(3) == 0 ? random.Next(bad.Length) : random.Next(hypervisor, bad.Length);
                bad[at] = random.Next(3) switch { 0 => 0xff, 1 => (byte)(bad[at] ^ 1 << random.Next(8)), _ => (byte)random.Next(256) };
            }
            using var other = new Host(fifo);
            one.Ram.CopyTo(other.Ram);
            try { other.Load(one, bad); }
            catch (Exception e) when (e is InvalidDataException or BootException)
            {
                refused++;
                continue;
            }
            Exercise(other, random);
            Assert.Null(other.Vm.BugMessage);
        }
        Assert.NotEqual(0, refused);
    }

    private static void Exercise(Host h, Random random)
    {
        for (int gsi = 0; gsi < Ioapic.PinCount; gsi++)
            h.Xen.SetGsi(gsi, random.Next(2) == 0);
        for (uint port = 1; port < 64; port++)
        {
            _ = h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_send, port);
            _ = h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_unmask, port);
            _ = h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_status, Pair(DomidSelf, port));
        }
        _ = h.Xen.ConsoleInput("abc"u8);
        h.Save();
        _ = h.Call(XenAbi.event_channel_op, XenAbi.EVTCHNOP_reset, DomidSelf);
    }

    [Theory]
    [InlineData("ports", 0), InlineData("PIRQs", 1)]
    public void TablesThatDoNotFitEachOther_AreRefused(string what, int which)
    {
        using var one = new Host(false);
        using var other = new Host(false);
        uint line = Busy(one, false).Line;
        byte[] state = one.Save();
        // A port is { kind, vcpu, virq, priority } in 13 bytes, a PIRQ { used, gsi, port } in 9; the line's are the first of the kind 5 and the one behind 16.
        const int PortBytes = 13, PirqBytes = 9;
        const int FrameBytes = 4096 + 8, Frames = 3;
        // In front of a section's name are a byte and its length; in front of the frames their number.
        int frames = state.AsSpan().LastIndexOf("xen hypervisor"u8) - 5 - Frames * FrameBytes - 4;
        int pirqs = frames - 256 * PirqBytes, ports = pirqs - 4096 * PortBytes;
        Assert.Equal(Frames, state[frames]);
        Assert.Equal((5, line), (state[ports + (int)line * PortBytes], BitConverter.ToUInt32(state, pirqs + 16 * PirqBytes + 5)));
        if (which == 0)
            state[ports + (int)line * PortBytes + 5] = 17;
        else
            BitConverter.TryWriteBytes(state.AsSpan(pirqs + 17 * PirqBytes + 1), AcpiGsi);
        Assert.Contains(what, Assert.Throws<InvalidDataException>(() => other.Load(one, state)).Message);
    }
}

/// <summary>The store's answers to a guest that does not take them.</summary>
public sealed unsafe class XenStoreBoundTests
{
    [Fact]
    public void AGuestThatTakesNoAnswers_GetsNoMoreOfThem()
    {
        byte* page = HostMemory.Map(4096);
        try
        {
            var store = new XenStore(page, 1, 1 << 20);
            uint* index = (uint*)(page + 2048);
            // { DIRECTORY, request, transaction, 2 bytes, "/" }
            byte[] request = [1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, (byte)'/', 0];
            uint asked = 0;
            for (int i = 0; i < 100_000; i++)
            {
                if (index[1] + request.Length - index[0] > 1024)
                    break;
                foreach (byte b in request)
                    page[index[1]++ & 1023] = b;
                store.Serve();
                asked++;
            }
            Assert.InRange(asked, 1u, 10_000u);
            // What was asked is answered when there is room.
            for (int i = 0; i < 100_000 && index[2] != index[3]; i++)
            {
                index[2] = index[3];
                store.Serve();
            }
            Assert.Equal(index[1], index[0]);
        }
        finally { HostMemory.Unmap(page, 4096); }
    }
}

using Ring3.Abi;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Resampling, the split irqchip's EOI exits, which eventfd is which, coalesced rings of several vCPUs.</summary>
public sealed unsafe class IoFeatureTests
{
    private const ulong Handler = 0x11000;

    /// <summary>x2APIC on, software-enabled.</summary>
    private static readonly byte[] s_enableX2Apic = [0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0x00, 0x04, 0, 0, 0x0f, 0x30, 0xb9, 0x0f, 0x08, 0, 0, 0xb8, 0xff,
        0x01, 0, 0, 0x31, 0xd2, 0x0f, 0x30];

    /// <summary>EOI and return.</summary>
    private static readonly byte[] s_handler = [0x50, 0x51, 0x52, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x5a, 0x59, 0x58, 0x48, 0xcf];

    /// <summary>x2APIC on; out 0x80: ready; sti; hlt; out 0xf4, 5.</summary>
    private static readonly byte[] s_waiter = [.. s_enableX2Apic, 0xe6, 0x80, 0xfb, 0xf4, 0xb0, 0x05, 0xe6, 0xf4];

    [Fact]
    public void ResampleIrqfd_HoldsTheLineUntilTheEoi()
    {
        using TestGuest g = new(irqchip: true);
        int irq = Host.EventFd.Create(), resample = Host.EventFd.Create();
        kvm_irqchip chip = new() { chip_id = KVM_IRQCHIP_IOAPIC };
        Assert.Equal(0, g.Vm.GetIrqchip(ref chip));
        // Pin 18, which the PIC does not have: vector 0x45, level-triggered, to APIC 0.
        chip.ioapic.redirtbl[18] = 0x45 | 1 << 15;
        Assert.Equal(0, g.Vm.SetIrqchip(chip));
        g.SetVector(0x45, Handler).LoadAt(Handler, s_handler).Load(s_waiter);
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 18, flags = KVM_IRQFD_FLAG_RESAMPLE, resamplefd = (uint)resample }));
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Host.EventFd.Signal(irq);
        Assert.Equal(5, g.RunToEnd());
        Assert.True(SpinWait.SpinUntil(() => Host.EventFd.Drain(resample) == 1, 10_000), "no resampling");
        Assert.Equal(0, g.Vm.GetIrqchip(ref chip));
        Assert.Equal(0u, chip.ioapic.irr & 1u << 18);
        Host.EventFd.Close(irq);
        Host.EventFd.Close(resample);
    }

    /// <summary>
    /// Two vCPUs pass a level interrupt on: the handler of each moves the pin to the other before its EOI, which has to reach the resample descriptor
    /// each time.
    /// </summary>
    [Fact]
    public void ResampleIrqfd_WhosePinIsMovedByItsHandler_IsAcknowledged()
    {
        const int Rounds = 500;
        using TestGuest g = new(irqchip: true, cpus: 2);
        int irq = Host.EventFd.Create(), resample = Host.EventFd.Create();
        kvm_irqchip chip = new() { chip_id = KVM_IRQCHIP_IOAPIC };
        Assert.Equal(0, g.Vm.GetIrqchip(ref chip));
        chip.ioapic.redirtbl[18] = 0x45 | 1 << 15;
        Assert.Equal(0, g.Vm.SetIrqchip(chip));
        g.Vm.Memory.TryWrite(0x12010, 1u << 24);
        g.SetVector(0x45, Handler).LoadAt(Handler,
        [
            0x50, 0x51, 0x52, 0xf0, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, // push rax, rcx, rdx; lock inc dword [0x12000]
            0xb9, 0x00, 0x00, 0xc0, 0xfe, 0xc7, 0x01, 0x35, 0, 0, 0, // mov ecx, 0xfec00000; mov dword [rcx], high half of pin 18
            0x8b, 0x04, 0x25, 0x10, 0x20, 0x01, 0x00, 0x89, 0x41, 0x10, // mov eax, [0x12010]; mov [rcx + 16], eax
            0x35, 0, 0, 0, 1, 0x89, 0x04, 0x25, 0x10, 0x20, 0x01, 0x00, // xor eax, 1 << 24; mov [0x12010], eax
            .. s_handler.AsSpan(3),
        ]);
        // x2APIC on; out 0x80; sti; wait: hlt; jmp wait
        g.Load([.. s_enableX2Apic, 0xe6, 0x80, 0xfb, 0xf4, 0xeb, 0xfd]);
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 18, flags = KVM_IRQFD_FLAG_RESAMPLE, resamplefd = (uint)resample }));
        List<Thread> threads = [];
        foreach (Vcpu v in g.Vm.Vcpus)
        {
            Assert.Equal(KVM_EXIT_IO, g.Run(v));
            Thread t = new(() => Assert.Equal(-Errno.EINTR, v.Run()));
            t.Start();
            threads.Add(t);
        }
        for (int i = 0; i < Rounds; i++)
        {
            Host.EventFd.Signal(irq);
            Assert.True(SpinWait.SpinUntil(() => Host.EventFd.Drain(resample) == 1, 60_000), $"no acknowledgement in round {i}");
        }
        foreach (Vcpu v in g.Vm.Vcpus)
            v.Kick();
        threads.ForEach(t => t.Join());
        Assert.True(g.Vm.Memory.TryRead(0x12000, out int count));
        Assert.Equal(Rounds, count);
        Assert.All(g.Vm.Vcpus.ToArray(), v => Assert.Equal(Rounds / 2u, (uint)v.Stats.irq_injections));
        Host.EventFd.Close(irq);
        Host.EventFd.Close(resample);
    }

    [Fact]
    public void SplitIrqchip_TellsTheClientOfLevelEois()
    {
        using Vm vm = Vm.Create();
        using GuestRam ram = new(TestGuest.RamBytes);
        Assert.Equal(0, vm.CreateSplitIrqchip(24));
        Assert.Equal(0, vm.SetUserMemoryRegion(0, 0, 0, TestGuest.RamBytes, ram.Hva));
        vm.Memory.TryWrite(TestGuest.Tables, TestGuest.Tables + 0x1000 | 7UL);
        vm.Memory.TryWrite(TestGuest.Tables + 0x1000, 0x87UL);
        vm.Memory.TryWrite(TestGuest.Tables + 0x2008, 0x00af_9b00_0000_ffffUL);
        vm.Memory.TryWrite(TestGuest.Tables + 0x2010, 0x00cf_9300_0000_ffffUL);
        ulong gate = TestGuest.Tables + 0x3000 + 16 * 0x45;
        vm.Memory.TryWrite(gate, Handler & 0xffff | 8UL << 16 | 0x8e00UL << 32 | (Handler >> 16 & 0xffff) << 48);
        vm.Memory.Write(Handler, s_handler);
        vm.Memory.Write(TestGuest.Code, s_waiter);
        Vcpu v = vm.CreateVcpu(0);
        Assert.Equal(0, v.SetCpuid2(SupportedCpuid.Entries));
        TestGuest.StartLong(v, TestGuest.Code, TestGuest.Stack);
        // The client's pin 3: a level-triggered message with vector 0x45. A resample irqfd needs an I/O APIC here.
        Assert.Equal(0, vm.SetGsiRouting([new kvm_irq_routing_entry { gsi = 3, type = KVM_IRQ_ROUTING_MSI,
            msi = new() { address_lo = 0xfee00000, data = 0xc045 } }]));
        int fd = Host.EventFd.Create();
        Assert.Equal(-Errno.EINVAL, vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)fd, gsi = 3, flags = KVM_IRQFD_FLAG_RESAMPLE, resamplefd = (uint)fd }));
        Assert.Equal(0, vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)fd, gsi = 3 }));
        Assert.Equal(0, v.Run());
        Host.EventFd.Signal(fd);
        Assert.Equal(0, v.Run());
        Assert.Equal(KVM_EXIT_IOAPIC_EOI, v.KvmRun->exit_reason);
        Assert.Equal(0x45, v.KvmRun->eoi.vector);
        Assert.Equal(0, v.Run());
        Assert.Equal(KVM_EXIT_IO, v.KvmRun->exit_reason);
        Host.EventFd.Close(fd);
    }

    [Fact]
    public void Eventfds_AreKnownByIdentity_NotByNumber()
    {
        using TestGuest g = new(irqchip: true);
        int fd = Host.EventFd.Create(), same = Host.EventFd.Duplicate(fd);
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)fd, gsi = 30 }));
        Assert.Equal(-Errno.EBUSY, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)same, gsi = 31 }));
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)same, gsi = 30, flags = KVM_IRQFD_FLAG_DEASSIGN }));
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)same, gsi = 31 }));
        Assert.Equal(-Errno.EBADF, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = 99_999, gsi = 31 }));
        Assert.Equal(-Errno.EINVAL, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = 0, gsi = 31 }));
        var io = new kvm_ioeventfd { addr = 0xd000_0000, len = 4, fd = fd };
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io));
        io.flags = KVM_IOEVENTFD_FLAG_DEASSIGN;
        int other = Host.EventFd.Create();
        Assert.Equal(-Errno.ENOENT, g.Vm.RegisterIoeventfd(io with { fd = other }));
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io with { fd = same }));
        foreach (int f in new[] { fd, same, other })
            Host.EventFd.Close(f);
    }

    [Fact]
    public void IoeventfdsOfAllLengths_TakeTheirWrites()
    {
        using TestGuest g = new();
        int any = Host.EventFd.Create(), four = Host.EventFd.Create();
        Assert.Equal(0, g.Vm.RegisterIoeventfd(new kvm_ioeventfd { addr = 0xd000_0000, len = 0, fd = any }));
        Assert.Equal(0, g.Vm.RegisterIoeventfd(new kvm_ioeventfd { addr = 0xd000_0100, len = 4, fd = four, datamatch = 7,
            flags = KVM_IOEVENTFD_FLAG_DATAMATCH }));
        // mov ebx, 0xd0000000; mov byte [rbx], 1; mov dword [rbx], 1; mov qword [rbx], 1; mov dword [rbx+0x100], 7; mov dword [rbx+0x100], 8; hlt
        g.Load(0xbb, 0, 0, 0, 0xd0, 0xc6, 0x03, 1, 0xc7, 0x03, 1, 0, 0, 0, 0x48, 0xc7, 0x03, 1, 0, 0, 0, 0xc7, 0x83, 0, 1, 0, 0, 7, 0, 0, 0, 0xc7, 0x83, 0, 1,
            0, 0, 8, 0, 0, 0, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Assert.Equal((0xd000_0100UL, 8), (g.Cpu.KvmRun->mmio.phys_addr, g.Cpu.KvmRun->mmio.data[0]));
        Assert.Equal((3UL, 1UL), (Host.EventFd.Drain(any), Host.EventFd.Drain(four)));
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Host.EventFd.Close(any);
        Host.EventFd.Close(four);
    }

    [Fact]
    public void CoalescedRing_IsOneForAllVcpus_AndOutlivesOtherPorts()
    {
        using TestGuest g = new(cpus: 2);
        Assert.Equal(0, g.Vm.RegisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0x70, size = 2, pio = 1 }));
        int fd = Host.EventFd.Create();
        var io = new kvm_ioeventfd { addr = 0x90, len = 1, fd = fd, flags = KVM_IOEVENTFD_FLAG_PIO };
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io));
        io.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io));
        // mov al, 9; out 0x70, al; hlt
        g.Load(0xb0, 9, 0xe6, 0x70, 0xf4);
        for (int i = 0; i < 2; i++)
            Assert.Equal(KVM_EXIT_HLT, g.Run(g.Vm.Vcpus[i]));
        kvm_coalesced_mmio_ring* ring = (kvm_coalesced_mmio_ring*)((byte*)g.Cpu.KvmRun + 2 * 4096);
        kvm_coalesced_mmio* e = (kvm_coalesced_mmio*)(ring + 1);
        Assert.Equal((0u, 2u), (ring->first, ring->last));
        Assert.Equal((0x70UL, 1u, 9), (e[1].phys_addr, e[1].pio, e[1].data[0]));
        // A zone is removed by a range inside it; a range around it is another one.
        Assert.Equal(0, g.Vm.UnregisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0x6f, size = 4, pio = 1 }));
        g.Load(0xb0, 9, 0xe6, 0x70, 0xf4);
        TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
        Assert.Equal(KVM_EXIT_HLT, g.Run());
        Assert.Equal(0, g.Vm.UnregisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0x71, size = 1, pio = 1 }));
        TestGuest.StartLong(g.Cpu, TestGuest.Code, TestGuest.Stack);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Host.EventFd.Close(fd);
    }

    /// <summary>KVM: a bus has 1000 devices besides ioeventfds, those of the hypervisor included (PIC: three, I/O APIC: one).</summary>
    [Theory]
    [InlineData(false, 1u, 1000)]
    [InlineData(false, 0u, 1000)]
    [InlineData(true, 1u, 997)]
    [InlineData(true, 0u, 999)]
    public void CoalescedZones_AreBounded(bool irqchip, uint pio, int zones)
    {
        using Vm vm = Vm.Create();
        if (irqchip)
            Assert.Equal(0, vm.CreateIrqchip());
        for (int i = 0; i < zones; i++)
            Assert.Equal(0, vm.RegisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0x1000 + (ulong)i * 4, size = 4, pio = pio }));
        var next = new kvm_coalesced_mmio_zone { addr = 0x8000, size = 4, pio = pio };
        Assert.Equal(-Errno.ENOSPC, vm.RegisterCoalescedMmio(next));
        Assert.Equal(0, vm.RegisterCoalescedMmio(next with { pio = pio ^ 1 }));
        Assert.Equal(0, vm.UnregisterCoalescedMmio(new kvm_coalesced_mmio_zone { addr = 0x1000, size = 4, pio = pio }));
        Assert.Equal(0, vm.RegisterCoalescedMmio(next));
    }
}

using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>Interrupts, halt and wake-up, timers, multiprocessor start: guest code against the in-kernel controllers.</summary>
public sealed unsafe class InterruptTests
{
    internal const ulong Handler = 0x11000;

    /// <summary>
    /// x2APIC on, spurious vector 0xff, software enabled: mov ecx,0x1b; rdmsr; or eax,0x400; wrmsr; mov ecx,0x80f; mov eax,0x1ff; xor edx,edx; wrmsr.
    /// </summary>
    internal static readonly byte[] s_enableX2Apic = [0xb9, 0x1b, 0, 0, 0, 0x0f, 0x32, 0x0d, 0x00, 0x04, 0, 0, 0x0f, 0x30, 0xb9, 0x0f, 0x08, 0, 0, 0xb8, 0xff,
        0x01, 0, 0, 0x31, 0xd2, 0x0f, 0x30];

    /// <summary>mov ecx, msr; mov eax, value; xor edx, edx; wrmsr.</summary>
    internal static byte[] Wrmsr(uint msr, uint value) => [0xb9, .. BitConverter.GetBytes(msr), 0xb8, .. BitConverter.GetBytes(value), 0x31, 0xd2, 0x0f, 0x30];

    /// <summary>inc dword [0x12000]; EOI through x2APIC; iretq.</summary>
    internal static readonly byte[] s_countingHandler = [0x50, 0x51, 0x52, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, .. Wrmsr(0x80b, 0), 0x5a, 0x59, 0x58, 0x48,
        0xcf];

    [Fact]
    public void ExternalInterrupt_OfAClientWithoutIrqchip_IsDeliveredWhenAllowed()
    {
        using TestGuest g = new();
        g.SetVector(0x21, Handler).LoadAt(Handler, 0xb0, 0x07, 0xe6, 0xf4, 0x48, 0xcf);
        // in al, 0x80; sti; nop; nop; hlt
        g.Load(0xe4, 0x80, 0xfb, 0x90, 0x90, 0xf4);
        g.Run();
        Assert.Equal(0, g.Cpu.KvmRun->ready_for_interrupt_injection);
        g.Cpu.KvmRun->request_interrupt_window = 1;
        Assert.Equal(KVM_EXIT_IRQ_WINDOW_OPEN, g.Run());
        Assert.Equal((1, 1), (g.Cpu.KvmRun->ready_for_interrupt_injection, g.Cpu.KvmRun->if_flag));
        g.Cpu.KvmRun->request_interrupt_window = 0;
        Assert.Equal(0, g.Cpu.Interrupt(0x22));
        Assert.Equal(0, g.Cpu.Interrupt(0x21));
        Assert.Equal(7, g.RunToEnd());
        Assert.Equal(KVM_EXIT_HLT, g.Run());
    }

    [Fact]
    public void HaltedVcpu_IsWokenByAnMsi()
    {
        using TestGuest g = new(irqchip: true);
        g.SetVector(0x40, Handler).LoadAt(Handler, s_countingHandler);
        g.Load([.. s_enableX2Apic, 0xfb, 0xf4, 0xb0, 0x05, 0xe6, 0xf4]);
        Thread t = new(() =>
        {
            SpinWait.SpinUntil(() => g.Cpu.GetMpState().mp_state == KVM_MP_STATE_HALTED, 5000);
            Assert.Equal(1, g.Vm.SignalMsi(0xfee00000, 0x40));
        });
        t.Start();
        Assert.Equal(5, g.RunToEnd());
        t.Join();
        Assert.True(g.Vm.Memory.TryRead(0x12000, out int count));
        Assert.Equal(1, count);
        Assert.Equal((1UL, 1UL), (g.Cpu.Stats.halt_exits, g.Cpu.Stats.irq_injections));
    }

    [Fact]
    public void TscDeadlineTimer_FiresInHalt_OnTime()
    {
        using TestGuest g = new(irqchip: true);
        g.SetVector(0x41, Handler).LoadAt(Handler, s_countingHandler);
        // LVT timer: TSC deadline, vector 0x41; rdtsc + 5 ms; hlt
        uint ticks = g.Cpu.TscKhz * 5;
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x832, 0x40041), 0x0f, 0x31, 0x05, .. BitConverter.GetBytes(ticks), 0x83, 0xd2, 0x00, 0xb9, 0xe0, 0x06, 0, 0, 0x0f,
            0x30, 0xfb, 0xf4, 0xb0, 0x01, 0xe6, 0xf4]);
        long start = Host.HostClock.MonotonicNs();
        Assert.Equal(1, g.RunToEnd());
        Assert.True(Host.HostClock.MonotonicNs() - start >= 5_000_000);
        Assert.True(g.Vm.Memory.TryRead(0x12000, out int count));
        Assert.Equal(1, count);
    }

    [Fact]
    public void PeriodicApicTimer_InterruptsRunningCode()
    {
        using TestGuest g = new(irqchip: true);
        g.SetVector(0x42, Handler).LoadAt(Handler, s_countingHandler);
        // Divide by 1, periodic, vector 0x42, 1 ms at 1 GHz; sti; wait: cmp dword [0x12000], 5; jb wait
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x83e, 0xb), .. Wrmsr(0x832, 0x20042), .. Wrmsr(0x838, 1_000_000), 0xfb, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00,
            0x05, 0x72, 0xf6, 0xb0, 0x09, 0xe6, 0xf4]);
        Assert.Equal(9, g.RunToEnd());
        Assert.Equal(0UL, g.Cpu.Stats.halt_exits);
    }

    [Fact]
    public void Nmi_IsDeliveredOnceAtATime()
    {
        using TestGuest g = new();
        // The handler reports and returns; the second NMI waits for IRET.
        g.SetVector(2, Handler).LoadAt(Handler, 0xb0, 0x02, 0xe6, 0x80, 0x48, 0xcf);
        g.Load(0x90, 0xb0, 0x03, 0xe6, 0xf4);
        g.Cpu.InjectNmi();
        g.Cpu.InjectNmi();
        g.Cpu.InjectNmi();
        List<byte> output = [];
        Assert.Equal(3, g.RunToEnd(output: output));
        Assert.Equal([2, 2], output);
        Assert.Equal(2UL, g.Cpu.Stats.nmi_injections);
    }

    [Fact]
    public void ApplicationProcessor_StartsBySipi()
    {
        using TestGuest g = new(irqchip: true, cpus: 2);
        Vcpu ap = g.Vm.Vcpus[1];
        Assert.Equal(0, ap.SetMpState(new kvm_mp_state { mp_state = KVM_MP_STATE_UNINITIALIZED }));
        // 16-bit code at 0x8000: mov byte [0x9000], 0x77; hlt
        g.LoadAt(0x8000, 0xc6, 0x06, 0x00, 0x90, 0x77, 0xf4);
        // BSP: INIT, SIPI vector 8 to APIC id 1; wait for the byte; exit.
        byte[] ipi(uint icr) => [0xb9, 0x30, 0x08, 0, 0, 0xb8, .. BitConverter.GetBytes(icr), 0xba, 1, 0, 0, 0, 0x0f, 0x30];
        g.Load([.. s_enableX2Apic, .. ipi(0x4500), .. ipi(0x4608), 0x80, 0x3c, 0x25, 0x00, 0x90, 0x00, 0x00, 0x77, 0x75, 0xf6, 0xb0, 0x04, 0xe6, 0xf4]);
        Thread t = new(() => Assert.Equal(-Errno.EINTR, ap.Run()));
        t.Start();
        Assert.Equal(4, g.RunToEnd());
        ap.Kick();
        t.Join();
        Assert.Equal(KVM_MP_STATE_HALTED, ap.GetMpState().mp_state);
        ap.GetSregs(out kvm_sregs s);
        Assert.Equal((0x800, 0x8000UL), (s.cs.selector, s.cs.@base));
    }

    [Fact]
    public void PitAndPic_TickARealModeStyleGuest()
    {
        using TestGuest g = new(irqchip: true);
        g.SetVector(0x20, Handler).LoadAt(Handler, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, 0xb0, 0x20, 0xe6, 0x20, 0x48, 0xcf);
        byte[] outb(byte port, byte value) => [0xb0, value, 0xe6, port];
        // PIC: ICW1-4 with base 0x20, only IRQ 0 unmasked; PIT channel 0, mode 2, about 1 kHz; sti; wait for 3 ticks with hlt.
        g.Load([.. outb(0x20, 0x11), .. outb(0x21, 0x20), .. outb(0x21, 4), .. outb(0x21, 1), .. outb(0x21, 0xfe), .. outb(0x43, 0x34), .. outb(0x40, 0xa9),
            .. outb(0x40, 0x04),
            0xfb, 0xf4, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x03, 0x72, 0xf5, .. outb(0xf4, 6)]);
        // The PIC reaches the processor through LINT0: virtual wire mode.
        Assert.Equal(0, g.Cpu.GetLapic(out kvm_lapic_state lapic));
        *(uint*)(lapic.regs + 0xf0) |= 0x100;
        *(uint*)(lapic.regs + 0x350) = 0x700;
        Assert.Equal(0, g.Cpu.SetLapic(lapic));
        Assert.Equal(6, g.RunToEnd());
        Assert.Equal(0UL, g.Cpu.Stats.user_exits);
    }

    [Fact]
    public void Irqfd_RaisesAnInterrupt_AndIoeventfdSwallowsTheWrite()
    {
        using TestGuest g = new(irqchip: true);
        int irq = Host.EventFd.Create(), doorbell = Host.EventFd.Create();
        g.SetVector(0x43, Handler).LoadAt(Handler, s_countingHandler);
        Assert.Equal(0, g.Vm.SetGsiRouting([new kvm_irq_routing_entry { gsi = 30, type = KVM_IRQ_ROUTING_MSI,
            msi = new() { address_lo = 0xfee00000, data = 0x43 } }]));
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 30 }));
        Assert.Equal(-Errno.EBUSY, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 30 }));
        kvm_ioeventfd io = new() { addr = 0x90, len = 1, fd = doorbell, datamatch = 5, flags = KVM_IOEVENTFD_FLAG_PIO | KVM_IOEVENTFD_FLAG_DATAMATCH };
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io));
        Assert.Equal(-Errno.EEXIST, g.Vm.RegisterIoeventfd(io));
        // out 0x90, 5 (swallowed); out 0x90, 6 (exit); sti; hlt; exit
        g.Load([.. s_enableX2Apic, 0xb0, 5, 0xe6, 0x90, 0xb0, 6, 0xe6, 0x90, 0xfb, 0xf4, 0xb0, 0x08, 0xe6, 0xf4]);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        Assert.Equal(6, *((byte*)g.Cpu.KvmRun + g.Cpu.KvmRun->io.data_offset));
        Assert.Equal(1UL, Host.EventFd.Drain(doorbell));
        Host.EventFd.Signal(irq);
        Assert.Equal(8, g.RunToEnd());
        io.flags |= KVM_IOEVENTFD_FLAG_DEASSIGN;
        Assert.Equal(0, g.Vm.RegisterIoeventfd(io));
        Assert.Equal(-Errno.ENOENT, g.Vm.RegisterIoeventfd(io));
        Assert.Equal(0, g.Vm.RegisterIrqfd(new kvm_irqfd { fd = (uint)irq, gsi = 30, flags = KVM_IRQFD_FLAG_DEASSIGN }));
        Host.EventFd.Close(irq);
        Host.EventFd.Close(doorbell);
    }

    [Fact]
    public void TwoVcpusPingPongWithIpis()
    {
        using TestGuest g = new(irqchip: true, cpus: 2);
        // Each: x2APIC on; loop: wait in HLT until [0x12000] has my parity, then increment and send vector 0x44 to the other.
        g.SetVector(0x44, Handler).LoadAt(Handler, 0x50, 0x51, 0x52, 0xb9, 0x0b, 0x08, 0, 0, 0x31, 0xc0, 0x31, 0xd2, 0x0f, 0x30, 0x5a, 0x59, 0x58, 0x48, 0xcf);
        for (uint i = 0; i < 2; i++)
        {
            ulong at = TestGuest.Code + 0x4000 * i;
            byte[] body =
            [
                // loop: cli; mov eax, [0x12000]; cmp eax, 2000; jae done; and eax, 1; cmp eax, i; je mine; sti; hlt; jmp loop
                0xfa, 0x8b, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, 0x3d, 0xd0, 0x07, 0, 0, 0x73, 0x2a, 0x83, 0xe0, 0x01, 0x83, 0xf8, (byte)i, 0x74, 0x04, 0xfb,
                    0xf4, 0xeb, 0xe5,
                // mine: lock inc dword [0x12000]; mov ecx, 0x830; mov eax, 0x4044; mov edx, other; wrmsr; jmp loop
                0xf0, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00, 0xb9, 0x30, 0x08, 0, 0, 0xb8, 0x44, 0x40, 0, 0, 0xba, (byte)(1 - i), 0, 0, 0, 0x0f, 0x30, 0xeb,
                    0xca,
            ];
            // done: send once more so that the other sees the end; mov al, 0; out 0xf4, al
            byte[] done = [0xb9, 0x30, 0x08, 0, 0, 0xb8, 0x44, 0x40, 0, 0, 0xba, (byte)(1 - i), 0, 0, 0, 0x0f, 0x30, 0xb0, (byte)i, 0xe6, 0xf4];
            body[14] = (byte)(body.Length - 15);
            g.LoadAt(at, [.. s_enableX2Apic, .. body, .. done]);
            TestGuest.StartLong(g.Vm.Vcpus[(int)i], at, TestGuest.Stack - 0x1000 * i);
        }
        int second = -1;
        Thread t = new(() => second = g.RunToEnd(g.Vm.Vcpus[1]));
        t.Start();
        Assert.Equal(0, g.RunToEnd());
        Assert.True(t.Join(20_000), "the second vCPU sleeps through its wake-up");
        Assert.Equal(1, second);
    }
}

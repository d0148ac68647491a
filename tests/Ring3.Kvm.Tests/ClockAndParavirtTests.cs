using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>kvmclock, TSC, steal time, PV EOI, PV IPI, PV unhalt, PV TLB flush.</summary>
public sealed unsafe class ClockAndParavirtTests
{
    private const ulong Page = 0x30000;

    private static void SetMsr(Vcpu v, uint msr, ulong value) => Assert.Equal(1, v.SetMsrs([new kvm_msr_entry { index = msr, data = value }]));

    private static ulong GetMsr(Vcpu v, uint msr)
    {
        kvm_msr_entry[] e = [new() { index = msr }];
        Assert.Equal(1, v.GetMsrs(e));
        return e[0].data;
    }

    [Theory]
    [InlineData(1_000u)]
    [InlineData(1_000_000u)]
    [InlineData(1_999_999u)]
    [InlineData(2_000_000u)]
    [InlineData(2_596_146u)]
    [InlineData(5_000_001u)]
    public void PvClockScale_IsExactToAPartInABillion(uint khz)
    {
        var (mul, shift) = PvClockScale.ForTscKhz(khz);
        ulong ticks = khz * 3_600_000UL;
        double ns = PvClockScale.ToNanoseconds(ticks, mul, shift);
        Assert.InRange(ns / 3.6e12, 1 - 1e-9, 1 + 1e-9);
        Assert.True(mul >> 31 == 1);
    }

    [Theory]
    [InlineData(Msr.KVM_SYSTEM_TIME)]
    [InlineData(Msr.KVM_SYSTEM_TIME_NEW)]
    public void ClockPage_TellsTheTime(uint msr)
    {
        using TestGuest g = new();
        SetMsr(g.Cpu, msr, Page | 1);
        g.Load(0xf4);
        g.Run();
        Assert.True(g.Vm.Memory.TryRead(Page, out pvclock_vcpu_time_info page));
        Assert.Equal(0u, page.version & 1);
        Assert.NotEqual(0u, page.version);
        Assert.Equal(VmClock.IsStable, (page.flags & KvmPara.PVCLOCK_TSC_STABLE_BIT) != 0);
        ulong guestNs = page.system_time + PvClockScale.ToNanoseconds(g.Cpu.GuestTsc() - page.tsc_timestamp, page.tsc_to_system_mul, page.tsc_shift);
        Assert.InRange((long)guestNs - g.Vm.Clock.NowNs, -2_000_000, 2_000_000);
    }

    [Fact]
    public void SetClock_MovesEveryPage_AndWallClockFollows()
    {
        using TestGuest g = new();
        SetMsr(g.Cpu, Msr.KVM_SYSTEM_TIME_NEW, Page | 1);
        Assert.Equal(0, g.Vm.Clock.Set(new kvm_clock_data { clock = 1_000_000_000_000 }));
        SetMsr(g.Cpu, Msr.KVM_WALL_CLOCK_NEW, Page + 0x100);
        g.Load(0xf4);
        g.Run();
        Assert.True(g.Vm.Memory.TryRead(Page, out pvclock_vcpu_time_info page));
        Assert.InRange(page.system_time, 1_000_000_000_000UL, 1_001_000_000_000UL);
        Assert.True(g.Vm.Memory.TryRead(Page + 0x100, out pvclock_wall_clock wall));
        long now = HostClock.RealtimeNs();
        Assert.InRange(wall.sec * 1_000_000_000L + wall.nsec + g.Vm.Clock.NowNs - now, -5_000_000, 5_000_000);
        kvm_clock_data data = g.Vm.Clock.Get();
        Assert.InRange(data.clock, 1_000_000_000_000UL, 1_010_000_000_000UL);
        Assert.Equal(-Errno.EINVAL, g.Vm.Clock.Set(new kvm_clock_data { flags = 1 }));
    }

    [Fact]
    public void KvmClockCtrl_SetsTheStoppedFlagOnce()
    {
        using TestGuest g = new();
        Assert.Equal(-Errno.EINVAL, g.Cpu.KvmClockCtrl());
        SetMsr(g.Cpu, Msr.KVM_SYSTEM_TIME_NEW, Page | 1);
        Assert.Equal(0, g.Cpu.KvmClockCtrl());
        g.Load(0xf4, 0xf4);
        g.Run();
        Assert.True(g.Vm.Memory.TryRead(Page, out pvclock_vcpu_time_info page));
        Assert.Equal(KvmPara.PVCLOCK_GUEST_STOPPED, page.flags & KvmPara.PVCLOCK_GUEST_STOPPED);
    }

    [Fact]
    public void Tsc_OffsetScaleAndAdjust()
    {
        using TestGuest g = new(cpus: 2);
        Vcpu v = g.Cpu;
        SetMsr(v, Msr.TSC, 1UL << 40);
        Assert.InRange(GetMsr(v, Msr.TSC), 1UL << 40, (1UL << 40) + v.TscKhz * 1000UL);
        // The client restores the other vCPU a little later, to the same value: they are kept together.
        SetMsr(g.Vm.Vcpus[1], Msr.TSC, 1UL << 40);
        Assert.Equal(v.TscOffset, g.Vm.Vcpus[1].TscOffset);
        // The guest's own write shows in TSC_ADJUST.
        ulong before = v.TscOffset;
        SetMsr(v, Msr.TSC_ADJUST, 0);
        // mov ecx, 0x3b; mov eax, 1000; xor edx, edx; wrmsr; hlt
        g.Load(0xb9, 0x3b, 0, 0, 0, 0xb8, 0xe8, 0x03, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0xf4);
        g.Run();
        Assert.Equal((1000UL, before + 1000), (GetMsr(v, Msr.TSC_ADJUST), v.TscOffset));
        Assert.Equal(0, v.SetTscKhz(1_000_000));
        ulong t0 = v.GuestTsc();
        long n0 = HostClock.MonotonicRawNs();
        while (HostClock.MonotonicRawNs() - n0 < 10_000_000)
            Thread.SpinWait(10);
        double rate = (v.GuestTsc() - t0) / (double)(HostClock.MonotonicRawNs() - n0);
        Assert.InRange(rate, 0.99, 1.01);
        Assert.Equal(-Errno.EINVAL, v.SetTscKhz(1));
    }

    [Fact]
    public void StealTime_FlagsAVcpuThatDoesNotRun_AndHonoursTheDeferredFlush()
    {
        using TestGuest g = new();
        SetMsr(g.Cpu, Msr.KVM_STEAL_TIME, Page | 1);
        kvm_msr_entry bad = new() { index = Msr.KVM_STEAL_TIME, data = Page | 3 };
        Assert.Equal(0, g.Cpu.SetMsrs([bad]));
        // in al, 0x80; mov al, [0x30010]; out 0xf4, al
        g.Load(0xe4, 0x80, 0x8a, 0x04, 0x25, 0x10, 0x00, 0x03, 0x00, 0xe6, 0xf4);
        g.Run();
        Assert.True(g.Vm.Memory.TryRead(Page + 16, out byte preempted));
        Assert.Equal(KvmPara.KVM_VCPU_PREEMPTED, preempted);
        g.Vm.Memory.TryWrite(Page + 16, (byte)(KvmPara.KVM_VCPU_PREEMPTED | KvmPara.KVM_VCPU_FLUSH_TLB));
        ulong flushes = g.Cpu.Stats.tlb_flush;
        Assert.Equal(0, g.RunToEnd());
        Assert.Equal(flushes + 1, g.Cpu.Stats.tlb_flush);
    }

    [Fact]
    public void Hypercalls_AnswerOrRefuse()
    {
        using TestGuest g = new(irqchip: true, cpus: 2);
        // vmcall; out 0xf4, al — RAX is set by the test
        long call(ulong nr, ulong a0 = 0, ulong a1 = 0, ulong a2 = 0, ulong a3 = 0)
        {
            g.Load(0x0f, 0x01, 0xc1, 0xe6, 0xf4);
            g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2, rax = nr, rbx = a0, rcx = a1, rdx = a2, rsi = a3 });
            g.RunToEnd();
            return (long)g.Regs().rax;
        }
        Assert.Equal(-KvmPara.KVM_ENOSYS, call(99));
        Assert.Equal(0, call(KvmPara.KVM_HC_SCHED_YIELD, 1));
        Assert.Equal(0, call(KvmPara.KVM_HC_KICK_CPU, 0, 1));
        Assert.Equal(VmClock.IsStable ? 0 : -KvmPara.KVM_EOPNOTSUPP, call(KvmPara.KVM_HC_CLOCK_PAIRING, 0x31000, 0));
        Assert.Equal(-KvmPara.KVM_EOPNOTSUPP, call(KvmPara.KVM_HC_CLOCK_PAIRING, 0x31000, 1));
        // PV IPI to APIC id 1, whose APIC is software-enabled first.
        Assert.Equal(0, g.Vm.Vcpus[1].GetLapic(out kvm_lapic_state l));
        *(uint*)(l.regs + 0xf0) = 0x1ff;
        Assert.Equal(0, g.Vm.Vcpus[1].SetLapic(l));
        Assert.Equal(1, call(KvmPara.KVM_HC_SEND_IPI, 0b10, 0, 0, 0x55));
        Assert.Equal(0x55, g.Vm.Vcpus[1].Lapic!.HighestIrr);
        Assert.Equal(-KvmPara.KVM_EINVAL, call(KvmPara.KVM_HC_SEND_IPI, 0b10, 0, 0, 0x500));
    }

    [Fact]
    public void PvEoi_EndsAnInterruptWithoutAnExit()
    {
        using TestGuest g = new(irqchip: true);
        const ulong handler = 0x11000;
        SetMsr(g.Cpu, Msr.KVM_PV_EOI_EN, Page | 1);
        // The handler: btr dword [0x30000], 0; jnc real EOI (none here: reported as 1); inc dword [0x12000]; iretq
        g.SetVector(0x40, handler).LoadAt(handler, 0x0f, 0xba, 0x34, 0x25, 0x00, 0x00, 0x03, 0x00, 0x00, 0x73, 0x09, 0xff, 0x04, 0x25, 0x00, 0x20, 0x01, 0x00,
            0x48, 0xcf, 0xb0, 0x01, 0xe6, 0xf4);
        Assert.Equal(0, g.Cpu.GetLapic(out kvm_lapic_state l));
        *(uint*)(l.regs + 0xf0) = 0x1ff;
        Assert.Equal(0, g.Cpu.SetLapic(l));
        // sti; nop; out 0x80 (let the client inject); cmp [0x12000], 2; jb back; mov al, 2; out 0xf4
        g.Load(0xfb, 0x90, 0xe6, 0x80, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x02, 0x72, 0xf4, 0xb0, 0x02, 0xe6, 0xf4);
        int end;
        do
        {
            Assert.Equal(KVM_EXIT_IO, g.Run());
            Assert.Equal(-1, g.Cpu.Lapic!.HighestIsr);
            g.Vm.SignalMsi(0xfee00000, 0x40);
            end = g.Cpu.KvmRun->io.port == 0xf4 ? *((byte*)g.Cpu.KvmRun + g.Cpu.KvmRun->io.data_offset) : 0;
        }
        while (end == 0);
        Assert.Equal(2, end);
    }

    [Fact]
    public void PvUnhalt_BeforeHaltMakesItReturnAtOnce()
    {
        using TestGuest g = new(irqchip: true);
        // hlt with interrupts off; mov al, 1; out 0xf4
        g.Load(0xf4, 0xb0, 0x01, 0xe6, 0xf4);
        g.Cpu.PvUnhalt();
        Assert.Equal(1, g.RunToEnd());
    }
}

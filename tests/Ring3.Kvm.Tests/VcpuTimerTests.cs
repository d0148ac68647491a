using Ring3.Abi;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.Tests.InterruptTests;

namespace Ring3.Kvm.Tests;

/// <summary>A vCPU expires its own timers: while it runs no other thread is needed, and a deadline that has passed waits for nobody.</summary>
public sealed unsafe class VcpuTimerTests
{
    private const uint DeadlineMode = 0x40041, PeriodicMode = 0x20041;

    /// <summary>Keeps the process's event loop busy until it is disposed of.</summary>
    private sealed class BusyEventLoop : ITimerCallback, IDisposable
    {
        private readonly ManualResetEventSlim _entered = new(), _go = new();

        internal BusyEventLoop()
        {
            EventLoop.Shared.Arm(new HostTimer(this) { Failed = e => throw e }, 0);
            _entered.Wait();
        }

        public void TimerExpired(HostTimer timer, long nowNs)
        {
            _entered.Set();
            _go.Wait();
        }

        public void Dispose() => _go.Set();
    }

    private static TestGuest Guest()
    {
        TestGuest g = new(irqchip: true);
        g.SetVector(0x41, Handler).LoadAt(Handler, s_countingHandler);
        return g;
    }

    /// <summary>rdtsc; add eax, ticks; adc edx, 0; wrmsr TSC_DEADLINE.</summary>
    private static byte[] ArmDeadline(TestGuest g, uint microseconds) =>
        [0x0f, 0x31, 0x05, .. BitConverter.GetBytes((uint)(g.Cpu.TscKhz * (ulong)microseconds / 1000)), 0x83, 0xd2, 0x00, 0xb9, 0xe0, 0x06, 0, 0, 0x0f, 0x30];

    /// <summary>Deadline 1, then rdtsc's own value, in turn: the interrupt comes before the instruction behind WRMSR, and the MSR reads 0.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(10_000)]
    public void PastTscDeadline_InterruptsTheNextInstruction(int rounds)
    {
        using TestGuest g = Guest();
        byte[] loop =
        [
            0xff, 0xc6, // inc esi
            0xb8, 1, 0, 0, 0, 0x31, 0xd2, // mov eax, 1; xor edx, edx
            0xf7, 0xc6, 1, 0, 0, 0, 0x74, 0x02, 0x0f, 0x31, // test esi, 1; jz +2; rdtsc
            0xb9, 0xe0, 0x06, 0, 0, 0x0f, 0x30, // mov ecx, 0x6e0; wrmsr
            0x39, 0x34, 0x25, 0x00, 0x20, 0x01, 0x00, // cmp [0x12000], esi
            0x75, 0x12, // jne bad
            0x0f, 0x32, 0x09, 0xd0, 0x75, 0x0c, // rdmsr; or eax, edx; jnz bad
            0x81, 0xfe, .. BitConverter.GetBytes(rounds), // cmp esi, rounds
            0x72, 0xcd, // jb again
            0xb0, 1, 0xe6, 0xf4, // out
            0xb0, 2, 0xe6, 0xf4, // bad
        ];
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x832, DeadlineMode), 0x31, 0xf6, 0xfb, 0x90, .. loop]);
        Assert.Equal(1, g.RunToEnd());
        Assert.Equal(0UL, g.Cpu.Stats.halt_exits);
    }

    [Fact]
    public void RunningGuest_IsInterruptedWithoutTheTimerThread()
    {
        using TestGuest g = Guest();
        using BusyEventLoop busy = new();
        // sti; wait: cmp dword [0x12000], 1; jb wait
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x832, DeadlineMode), .. ArmDeadline(g, 500), 0xfb, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x01, 0x72, 0xf6,
            0xb0, 0x01, 0xe6, 0xf4]);
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void PeriodicTimer_TicksWithoutTheTimerThread()
    {
        using TestGuest g = Guest();
        using BusyEventLoop busy = new();
        // Divide by 1, 1 ms; sti; wait: hlt or not, until five ticks were counted.
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x83e, 0xb), .. Wrmsr(0x832, PeriodicMode), .. Wrmsr(0x838, 1_000_000), 0xfb,
            0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x03, 0x72, 0xf6, 0xf4, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x05, 0x72, 0xf5, 0xb0, 0x03, 0xe6,
                0xf4]);
        Assert.Equal(3, g.RunToEnd());
        Assert.NotEqual(0UL, g.Cpu.Stats.halt_exits);
    }

    /// <summary>No block ends inside a repeated instruction, and vector loops go round in emitted code.</summary>
    [Theory]
    [InlineData("rep")]
    [InlineData("vectors")]
    [InlineData("steps")]
    public void LongInstructionsAndLoops_LookAtTheClock(string kind)
    {
        using TestGuest g = Guest();
        using BusyEventLoop busy = new();
        byte[] code = kind switch
        {
            // mov edi, 0x400000; mov ecx, 4 MiB; again: push rcx; push rdi; rep stosb; pop rdi; pop rcx; cmp dword [0x12000], 1; jb again
            "rep" => [0xbf, 0, 0, 0x40, 0, 0xb9, 0, 0, 0x40, 0, 0x51, 0x57, 0xf3, 0xaa, 0x5f, 0x59, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x01, 0x72, 0xf0],
            // again: pcmpeqd xmm1, xmm1; movd eax, xmm0; psubd xmm0, xmm1; cmp dword [0x12000], 1; jb again
            "vectors" => [0x66, 0x0f, 0x76, 0xc9, 0x66, 0x0f, 0x7e, 0xc0, 0x66, 0x0f, 0xfa, 0xc1, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x01, 0x72, 0xea],
            // With TF in the flags and a #DB handler that only returns: pushfq; or dword [rsp], 0x100; popfq; wait
            _ => [0x9c, 0x81, 0x0c, 0x24, 0, 1, 0, 0, 0x9d, 0x83, 0x3c, 0x25, 0x00, 0x20, 0x01, 0x00, 0x01, 0x72, 0xf6],
        };
        g.SetVector(1, 0x13000).LoadAt(0x13000, 0x48, 0xcf);
        g.Load([.. s_enableX2Apic, .. Wrmsr(0x832, DeadlineMode), .. ArmDeadline(g, 500), 0xfb, .. code, 0xb0, 0x01, 0xe6, 0xf4]);
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void XenTimer_ReachesARunningGuestWithoutTheTimerThread()
    {
        const uint Port = 5, Info = 0x40000;
        using TestGuest g = Guest();
        Assert.Equal(0, g.Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_LONG_MODE, long_mode = 1 }));
        Assert.Equal(0, g.Vm.XenSetAttr(new kvm_xen_hvm_attr { type = KVM_XEN_ATTR_TYPE_SHARED_INFO, gfn = Info >> 12 }));
        Assert.Equal(0, g.Cpu.XenSetAttr(new() { type = KVM_XEN_VCPU_ATTR_TYPE_VCPU_INFO, gpa = Info }));
        using BusyEventLoop busy = new();
        kvm_xen_vcpu_attr timer = new() { type = KVM_XEN_VCPU_ATTR_TYPE_TIMER };
        (timer.timer.port, timer.timer.priority, timer.timer.expires_ns) = (Port, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, (ulong)g.Vm.Clock.NowNs + 2_000_000);
        Assert.Equal(0, g.Cpu.XenSetAttr(timer));
        // wait: cmp byte [vcpu_info.evtchn_upcall_pending], 0; je wait
        g.Load(0x80, 0x3c, 0x25, 0x00, 0x00, 0x04, 0x00, 0x00, 0x74, 0xf6, 0xb0, 0x01, 0xe6, 0xf4);
        Assert.Equal(1, g.RunToEnd());
    }
}

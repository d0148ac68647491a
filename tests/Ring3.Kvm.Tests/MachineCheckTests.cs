using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>KVM_X86_SETUP_MCE and KVM_X86_SET_MCE: what an injected error records and what it raises.</summary>
public sealed unsafe class MachineCheckTests
{
    private const ulong Valid = 1UL << 63, Overflow = 1UL << 62, Uncorrected = 1UL << 61, Enabled = 1UL << 60, Signalled = 1UL << 56;
    private const uint Ctl2 = 0x280, Bank = 7, Status = 0x401 + 4 * Bank, Address = 0x402 + 4 * Bank;
    private const ulong Banks = 10, Ctl = 1 << 8, Cmci = 1 << 10;

    private static ulong Read(Vcpu v, uint msr)
    {
        kvm_msr_entry[] e = [new() { index = msr }];
        Assert.Equal(1, v.GetMsrs(e));
        return e[0].data;
    }

    private static int Write(Vcpu v, uint msr, ulong value) => v.SetMsrs([new kvm_msr_entry { index = msr, data = value }]);

    private static void Inject(Vcpu v, ulong status, ulong address, ulong mcgStatus = 0) =>
        Assert.Equal(0, v.SetMce(new kvm_x86_mce { bank = (byte)Bank, status = Valid | Enabled | status, addr = address, mcg_status = mcgStatus }));

    private static bool IsSet(in kvm_vcpu_events e) => (e.exception.injected | e.exception.pending) != 0 && e.exception.nr == 18;

    private static kvm_vcpu_events Events(TestGuest g)
    {
        g.Cpu.GetVcpuEvents(out kvm_vcpu_events e);
        return e;
    }

    [Fact]
    public void UncorrectedErrorWithoutAction_IsRecorded_AndInterruptsWhereTheBankAsksForIt()
    {
        using TestGuest g = new(irqchip: true);
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl | Cmci));
        // Handler: mov al, 0xa9; out 0xf4, al. Code: sti; nop; jmp back to nop
        g.SetVector(0xa9, 0x11000).LoadAt(0x11000, 0xb0, 0xa9, 0xe6, 0xf4).Load(0xfb, 0x90, 0xb0, 0x01, 0xe6, 0xf4);
        g.Cpu.Lapic!.MmioWrite(0xf0, [0xff, 1, 0, 0]);
        g.Cpu.Lapic!.MmioWrite(0x2f0, [0xa9, 0, 0, 0]);
        Inject(g.Cpu, Uncorrected, 0xcafe);
        Assert.Equal((Valid | Enabled | Uncorrected, 0xcafeUL), (Read(g.Cpu, Status), Read(g.Cpu, Address)));
        Assert.Equal(1, g.RunToEnd());

        Assert.Equal(1, Write(g.Cpu, Ctl2 + Bank, 1 << 30));
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        Inject(g.Cpu, Uncorrected, 0xbeef);
        Assert.Equal(0xbeefUL, Read(g.Cpu, Address));
        Assert.Equal(0xa9, g.RunToEnd());
        Assert.False(IsSet(Events(g)));
    }

    [Fact]
    public void Ctl2_BelongsToGuestsWithCmci()
    {
        using TestGuest g = new(irqchip: true);
        // #GP handler: mov al, 13; out. Code: mov ecx, 0x287; rdmsr; mov al, 1; out
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 0x0d, 0xe6, 0xf4).Load(0xb9, 0x87, 0x02, 0, 0, 0x0f, 0x32, 0xb0, 0x01, 0xe6, 0xf4);
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl));
        Assert.Equal((1, 0), (Write(g.Cpu, Ctl2 + Bank, 0), Write(g.Cpu, Ctl2 + Bank, 1 << 30)));
        Assert.Equal(13, g.RunToEnd());
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl | Cmci));
        Assert.Equal(0, Write(g.Cpu, Ctl2 + Bank, 1 << 29));
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void UncorrectedErrorWithAction_IsAMachineCheck()
    {
        using TestGuest g = new();
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl));
        g.SetVector(18, 0x11000).LoadAt(0x11000, 0xb0, 0x12, 0xe6, 0xf4).Load(0x90, 0xb0, 0x01, 0xe6, 0xf4);
        g.Cpu.GetSregs(out kvm_sregs s);
        s.cr4 |= 1 << 6;
        Assert.Equal(0, g.Cpu.SetSregs(s));
        Inject(g.Cpu, Uncorrected | Signalled, 0xcafe, mcgStatus: 5);
        Assert.True(IsSet(Events(g)));
        Assert.Equal(5UL, Read(g.Cpu, 0x17a));
        Assert.Equal(0x12, g.RunToEnd());
        // The first is still in progress: a second is a shutdown.
        Inject(g.Cpu, Uncorrected | Signalled, 0xdead, mcgStatus: 5);
        Assert.Equal(KVM_EXIT_SHUTDOWN, g.Run());
    }

    [Fact]
    public void UncorrectedErrorWithoutHandler_IsAShutdown()
    {
        using TestGuest g = new TestGuest().Load(0x90, 0xb0, 0x01, 0xe6, 0xf4);
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl));
        Inject(g.Cpu, Uncorrected | Signalled, 0xcafe, mcgStatus: 5);
        Assert.Equal(KVM_EXIT_SHUTDOWN, g.Run());
    }

    [Fact]
    public void CorrectedErrors_OverflowTheirBank_AndKeepAWorseOne()
    {
        using TestGuest g = new();
        Assert.Equal(0, g.Cpu.SetupMce(Banks | Ctl));
        Inject(g.Cpu, 0, 1);
        Inject(g.Cpu, 0, 2);
        Assert.Equal((Valid | Enabled | Overflow, 2UL), (Read(g.Cpu, Status), Read(g.Cpu, Address)));
        Inject(g.Cpu, Uncorrected, 3);
        Inject(g.Cpu, 0, 4);
        Assert.Equal((Valid | Enabled | Uncorrected | Overflow, 3UL), (Read(g.Cpu, Status), Read(g.Cpu, Address)));
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetMce(new kvm_x86_mce { bank = (byte)Banks, status = Valid }));
        Assert.Equal(-Errno.EINVAL, g.Cpu.SetMce(new kvm_x86_mce { bank = 0 }));
        Assert.Equal((-Errno.EINVAL, -Errno.EINVAL, 0), (g.Cpu.SetupMce(0), g.Cpu.SetupMce(33), g.Cpu.SetupMce(32)));
    }
}

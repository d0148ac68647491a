using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>An exit with an answer is finished by the next Run to the end of its instruction, whatever else is pending.</summary>
public sealed unsafe class CompletionTests
{
    private const ulong Device = 0x1000_0000;

    /// <summary>mov eax, [0x10000000]; mov ebx, [0x10000000]; out 0xf4, al</summary>
    private static TestGuest TwoReads() => new TestGuest().Load(0x8b, 0x04, 0x25, 0, 0, 0, 0x10, 0x8b, 0x1c, 0x25, 0, 0, 0, 0x10, 0xe6, 0xf4);

    private static void Answer(TestGuest g, byte value)
    {
        Assert.Equal((Device, 0), (g.Cpu.KvmRun->mmio.phys_addr, g.Cpu.KvmRun->mmio.is_write));
        g.Cpu.KvmRun->mmio.data[0] = value;
    }

    [Fact]
    public void ImmediateExit_FinishesTheInstruction()
    {
        using TestGuest g = TwoReads();
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x5a);
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal((TestGuest.Code + 7, 0x5aUL), (g.Regs().rip, g.Regs().rax));
        g.Cpu.KvmRun->immediate_exit = 0;
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Assert.Equal(TestGuest.Code + 7, g.Regs().rip);
    }

    [Fact]
    public void Kick_FinishesTheInstruction()
    {
        using TestGuest g = TwoReads();
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x5a);
        g.Cpu.Kick();
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal((TestGuest.Code + 7, 0x5aUL), (g.Regs().rip, g.Regs().rax));
    }

    [Fact]
    public void Nmi_ComesAfterTheInstruction()
    {
        using TestGuest g = TwoReads();
        // NMI handler: out 0xf4, al
        g.SetVector(2, 0x11000).LoadAt(0x11000, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x77);
        g.Cpu.InjectNmi();
        Assert.Equal(0x77, g.RunToEnd());
    }

    [Fact]
    public void ReadModifyWrite_LeavesTwice_AndImmediateExitEndsBehindTheWrite()
    {
        // inc dword [0x10000000]; out 0xf4, al
        using TestGuest g = new TestGuest().Load(0xff, 0x04, 0x25, 0, 0, 0, 0x10, 0xe6, 0xf4);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x10);
        g.Cpu.KvmRun->immediate_exit = 1;
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Assert.Equal((1, 0x11), (g.Cpu.KvmRun->mmio.is_write, g.Cpu.KvmRun->mmio.data[0]));
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
        Assert.Equal(TestGuest.Code + 7, g.Regs().rip);
        g.Cpu.KvmRun->immediate_exit = 0;
        Assert.Equal(0, g.RunToEnd());
    }

    [Fact]
    public void ClientThatMovesOn_StartsAfresh()
    {
        using TestGuest g = TwoReads();
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x5a);
        kvm_regs r = g.Regs();
        r.rip += 7;
        g.Cpu.SetRegs(r);
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
        Answer(g, 0x33);
        Assert.Equal(0, g.RunToEnd());
        Assert.Equal(0x33UL, g.Regs().rbx);
    }

    [Fact]
    public void EventWhoseStackIsADevice_IsReported_NotRetriedForEver()
    {
        // ud2, with a stack in no memory
        using TestGuest g = new TestGuest().Load(0x0f, 0x0b);
        g.SetVector(6, 0x11000);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = Device + 0x1000, rflags = 2 });
        Assert.Equal(KVM_EXIT_INTERNAL_ERROR, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((KVM_INTERNAL_ERROR_DELIVERY_EV, 5u, 6UL, 0UL), (run->@internal.suberror, run->@internal.ndata, run->@internal.data[0] & 0xff,
            run->@internal.data[2]));
        Assert.Equal((Device + 0x1000UL) & ~0xfffUL, (run->@internal.data[3] + 0xfffUL) & ~0xfffUL);
        g.Cpu.Kick();
        Assert.Equal(-Errno.EINTR, g.Cpu.Run());
    }
}

using Ring3.Abi;
using Ring3.Cpu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Hypercall instructions of both vendors, hypercalls and instructions that go to the client, and the other settings of KVM_ENABLE_CAP that guests
/// notice.
/// </summary>
public sealed unsafe class HypercallTests
{
    private static byte Native => ProcessorModel.Host.IsAmd ? (byte)0xd9 : (byte)0xc1;
    private static byte Foreign => ProcessorModel.Host.IsAmd ? (byte)0xc1 : (byte)0xd9;

    private static int Enable(TestGuest g, int cap, ulong arg)
    {
        kvm_enable_cap c = new() { cap = (uint)cap };
        c.args[0] = arg;
        return g.Vm.EnableCap(c);
    }

    /// <summary>mov eax, 1 (VAPIC_POLL_IRQ, answers 0); hypercall; out 0xf4, al; with a #UD handler that reports 6.</summary>
    private static TestGuest Caller(byte insn)
    {
        TestGuest g = new();
        g.SetVector(6, 0x11000).LoadAt(0x11000, 0xb0, 0x06, 0xe6, 0xf4);
        return g.Load(0xb8, 0x01, 0, 0, 0, 0x0f, 0x01, insn, 0xe6, 0xf4);
    }

    [Fact]
    public void ForeignHypercall_IsRewritten()
    {
        using TestGuest g = Caller(Foreign);
        Assert.Equal(0, g.RunToEnd());
        Assert.True(g.Vm.Memory.TryRead(TestGuest.Code + 7, out byte patched));
        Assert.Equal(Native, patched);
    }

    [Fact]
    public void ForeignHypercall_IsUndefined_WhenTheClientSaysSo()
    {
        using TestGuest g = Caller(Foreign);
        Assert.Equal(0, Enable(g, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_FIX_HYPERCALL_INSN));
        Assert.Equal(6, g.RunToEnd());
        Assert.True(g.Vm.Memory.TryRead(TestGuest.Code + 7, out byte kept));
        Assert.Equal(Foreign, kept);
    }

    [Fact]
    public void ForeignHypercall_OnAReadOnlyPage_IsCarriedOut()
    {
        using TestGuest g = Caller(Foreign);
        // The first GiB without write permission; CR0.WP is set in these guests.
        Assert.True(g.Vm.Memory.TryWrite(TestGuest.Tables + 0x1000, 0x85UL));
        g.Cpu.GetSregs(out kvm_sregs s);
        Assert.Equal(0, g.Cpu.SetSregs(s));
        Assert.Equal(0, g.RunToEnd());
    }

    [Fact]
    public void MapGpaRange_GoesToTheClientThatAskedForIt()
    {
        // mov eax, 12; mov ebx, 0x5000; mov ecx, 2; mov edx, 0x11; hypercall; out 0xf4, al
        byte[] code = [0xb8, 12, 0, 0, 0, 0xbb, 0, 0x50, 0, 0, 0xb9, 2, 0, 0, 0, 0xba, 0x11, 0, 0, 0, 0x0f, 0x01, Native, 0xe6, 0xf4];
        using (TestGuest without = new())
            Assert.Equal(unchecked((byte)-1000), without.Load(code).RunToEnd());
        using TestGuest g = new();
        g.Load(code);
        Assert.Equal(-Errno.EINVAL, Enable(g, KVM_CAP_EXIT_HYPERCALL, 1 << 5));
        Assert.Equal(0, Enable(g, KVM_CAP_EXIT_HYPERCALL, 1 << 12));
        Assert.Equal(KVM_EXIT_HYPERCALL, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((12UL, 0x5000UL, 2UL, 0x11UL, 1u), (run->hypercall.nr, run->hypercall.args[0], run->hypercall.args[1], run->hypercall.args[2],
            run->hypercall.longmode));
        run->hypercall.ret = 0x2a;
        Assert.Equal(0x2a, g.RunToEnd());
        // Not page-aligned: the hypervisor answers itself.
        g.LoadAt(TestGuest.Code + 6, 0x08);
        g.Cpu.SetRegs(new kvm_regs { rip = TestGuest.Code, rsp = TestGuest.Stack, rflags = 2 });
        Assert.Equal(unchecked((byte)-22), g.RunToEnd());
    }

    [Fact]
    public void X87OnMmio_IsCarriedOut_OrTheClientsOnRequest()
    {
        // fld dword [0x10000000]; mov al, 3; out 0xf4, al
        byte[] code = [0xd9, 0x04, 0x25, 0, 0, 0, 0x10, 0xb0, 0x03, 0xe6, 0xf4];
        using (TestGuest without = new())
        {
            without.Load(code);
            Assert.Equal(KVM_EXIT_MMIO, without.Run());
            Assert.Equal(3, without.RunToEnd());
        }
        using TestGuest g = new();
        g.Load(code);
        Assert.Equal(0, Enable(g, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
        Assert.Equal(KVM_EXIT_INTERNAL_ERROR, g.Run());
        kvm_run* run = g.Cpu.KvmRun;
        Assert.Equal((KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES),
            (run->emulation_failure.suberror, run->emulation_failure.flags));
        Assert.Equal((15, 0xd9, 0x04, 0x25), (run->emulation_failure.insn_size, run->emulation_failure.insn_bytes[0], run->emulation_failure.insn_bytes[1],
            run->emulation_failure.insn_bytes[2]));
        kvm_regs r = g.Regs();
        Assert.Equal(TestGuest.Code, r.rip);
        r.rip += 7;
        g.Cpu.SetRegs(r);
        Assert.Equal(3, g.RunToEnd());
    }

    [Fact]
    public void IntegerInstructionOnMmio_IsNeverTheClients()
    {
        using TestGuest g = new TestGuest().Load(0x8b, 0x04, 0x25, 0, 0, 0, 0x10);
        Assert.Equal(0, Enable(g, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1));
        Assert.Equal(KVM_EXIT_MMIO, g.Run());
    }

    [Fact]
    public void PlatformInfo_CanBeHidden()
    {
        using TestGuest g = new();
        // #GP handler: mov al, 13; out 0xf4, al. Code: mov ecx, 0xce; rdmsr; mov al, 1; out 0xf4, al; jmp again
        g.SetVector(13, 0x11000).LoadAt(0x11000, 0xb0, 0x0d, 0xe6, 0xf4).Load(0xb9, 0xce, 0, 0, 0, 0x0f, 0x32, 0xb0, 0x01, 0xe6, 0xf4, 0xeb, 0xf3);
        Assert.Equal(1, g.RunToEnd());
        Assert.Equal(0, Enable(g, KVM_CAP_MSR_PLATFORM_INFO, 0));
        Assert.Equal(13, g.RunToEnd());
    }

    [Fact]
    public void MonitorAndMwait_DoNothing_UntilTheQuirkIsOff()
    {
        using TestGuest g = new();
        // xor ecx, ecx; xor edx, edx; monitor; mwait; mov al, 1; out 0xf4, al; jmp again
        g.SetVector(6, 0x11000).LoadAt(0x11000, 0xb0, 0x06, 0xe6, 0xf4).Load(0x31, 0xc9, 0x31, 0xd2, 0x0f, 0x01, 0xc8, 0x0f, 0x01, 0xc9, 0xb0, 0x01, 0xe6, 0xf4,
            0xeb, 0xf0);
        Assert.Equal(1, g.RunToEnd());
        Assert.Equal(0, Enable(g, KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_MWAIT_NEVER_UD_FAULTS));
        Assert.Equal(6, g.RunToEnd());
    }

    [Fact]
    public void VcpuIds_CanBeBoundedOnce()
    {
        using Vm vm = Vm.Create();
        int Bound(ulong n)
        {
            kvm_enable_cap c = new() { cap = KVM_CAP_MAX_VCPU_ID };
            c.args[0] = n;
            return vm.EnableCap(c);
        }

        Assert.Equal(-Errno.EINVAL, Bound((ulong)Capabilities.Check(KVM_CAP_MAX_VCPU_ID) + 1));
        Assert.Equal(-Errno.EINVAL, vm.SetBootCpuId(1UL << 32));
        Assert.Equal(0, vm.SetBootCpuId(2));
        Assert.Equal(-Errno.EINVAL, Bound(1));
        Assert.Equal((0, 0, -Errno.EINVAL), (Bound(2), Bound(2), Bound(3)));
        Assert.Equal(-Errno.EINVAL, vm.CreateVcpu(2, out _));
        Assert.Equal(0, vm.CreateVcpu(0, out _));
    }

    [Theory]
    [InlineData(0x12345, true)]
    [InlineData(0x1_0000_0000, false)]
    public void Translate_WalksTheTables_BeforeTheGuestHasRun(ulong linear, bool valid)
    {
        using TestGuest g = new();
        kvm_translation tr = new() { linear_address = linear };
        g.Cpu.Translate(ref tr);
        Assert.Equal((valid ? 1 : 0, valid ? linear : ulong.MaxValue), (tr.valid, tr.physical_address));
    }
}

using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm.Tests;

/// <summary>KVM_SET_GUEST_DEBUG and the debug registers behind it.</summary>
public sealed unsafe class GuestDebugTests
{
    private const ulong Fixed = 0xffff_0ff0, Bs = 1 << 14, Bd = 1 << 13;

    private static void Set(Vcpu v, uint control, int register = 0, ulong address = 0, ulong dr7 = 0x400)
    {
        kvm_guest_debug d = new() { control = control };
        d.arch.debugreg[register] = address;
        d.arch.debugreg[7] = dr7;
        Assert.Equal(0, v.SetGuestDebug(d));
    }

    private static void ExpectDebug(TestGuest g, uint vector, ulong pc, ulong dr6)
    {
        Assert.Equal(KVM_EXIT_DEBUG, g.Run());
        Assert.Equal((vector, pc, dr6), (g.Cpu.KvmRun->debug.exception, g.Cpu.KvmRun->debug.pc, g.Cpu.KvmRun->debug.dr6));
    }

    [Fact]
    public void SingleStep_StopsBehindEveryInstruction_AlsoThoseTheHypervisorFinishes()
    {
        using TestGuest g = new(irqchip: true);
        // xor eax, eax; cpuid; mov ecx, 0x6e0 (TSC_DEADLINE); wrmsr; out 0x80, al; hlt
        g.Load(0x31, 0xc0, 0x0f, 0xa2, 0xb9, 0xe0, 0x06, 0, 0, 0x0f, 0x30, 0xe6, 0x80, 0xf4);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ);
        foreach (ulong offset in (ulong[])[2, 4, 9, 11])
            ExpectDebug(g, 1, TestGuest.Code + offset, Fixed | Bs);
        Assert.Equal(KVM_EXIT_IO, g.Run());
        ExpectDebug(g, 1, TestGuest.Code + 13, Fixed | Bs);
        ExpectDebug(g, 1, TestGuest.Code + 14, Fixed | Bs);
        Assert.Equal(KVM_MP_STATE_HALTED, g.Cpu.GetMpState().mp_state);
    }

    [Fact]
    public void BlockIrq_KeepsAPendingInterruptOut()
    {
        using TestGuest g = new(irqchip: true);
        // sti; nop; nop; nop
        g.SetVector(0x20, 0x11000).LoadAt(0x11000, 0xb0, 0x09, 0xe6, 0xf4).Load(0xfb, 0x90, 0x90, 0x90, 0x90);
        g.Cpu.InjectNmi();
        g.SetVector(2, 0x11000);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP | KVM_GUESTDBG_BLOCKIRQ);
        for (ulong i = 1; i <= 3; i++)
            ExpectDebug(g, 1, TestGuest.Code + i, Fixed | Bs);
        Set(g.Cpu, 0);
        Assert.Equal(9, g.RunToEnd());
    }

    [Fact]
    public void SoftwareBreakpoint_LeavesAtTheInt3_AndCanBeGivenBack()
    {
        using TestGuest g = new();
        // #BP handler: pop rax; sub al, 1; out 0xf4, al (low byte of the address behind INT3, less 1)
        g.SetVector(3, 0x11000).LoadAt(0x11000, 0x58, 0x2c, 0x01, 0xe6, 0xf4).Load(0x90, 0xcc);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP);
        ExpectDebug(g, 3, TestGuest.Code + 1, Fixed);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_SW_BP | KVM_GUESTDBG_INJECT_BP);
        Assert.Equal(1, g.RunToEnd());
    }

    [Fact]
    public void HardwareBreakpoints_HitInstructionsAndData_WhateverTheGuestPutsIntoItsOwn()
    {
        using TestGuest g = new();
        // xor eax, eax; mov dr0, rax; mov dr7, rax; nop; mov [0x20000], rax; mov rax, dr0; out 0xf4, al
        g.Load(0x31, 0xc0, 0x0f, 0x23, 0xc0, 0x0f, 0x23, 0xf8, 0x90, 0x48, 0x89, 0x04, 0x25, 0x00, 0x00, 0x02, 0x00, 0x0f, 0x21, 0xc0, 0xe6, 0xf4);
        for (int i = 0; i < 4; i++)
        {
            Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, i, TestGuest.Code + 8, 0x400 | 2UL << (2 * i));
            ExpectDebug(g, 1, TestGuest.Code + 8, Fixed | 1UL << i);
        }
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, 2, 0x20000, 0x400 | 2UL << 4 | 0xdUL << 24);
        ExpectDebug(g, 1, TestGuest.Code + 17, Fixed | 4);
        Assert.Equal(0x400UL | 2UL << 4 | 0xdUL << 24, g.Cpu.KvmRun->debug.dr7);
        g.Cpu.GetDebugRegs(out kvm_debugregs own);
        Assert.Equal((0UL, 0x400UL, Fixed), (own.db[0], own.dr7, own.dr6));
        Assert.Equal(0, g.RunToEnd());
    }

    [Fact]
    public void GeneralDetect_OfTheClient_LeavesAtTheAccess()
    {
        using TestGuest g = new();
        // mov rax, dr0; mov al, 5; out 0xf4, al
        g.Load(0x0f, 0x21, 0xc0, 0xb0, 0x05, 0xe6, 0xf4);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP, dr7: 0x400 | 1 << 13);
        ExpectDebug(g, 1, TestGuest.Code, Fixed | Bd);
        Set(g.Cpu, 0);
        Assert.Equal(5, g.RunToEnd());
    }

    [Fact]
    public void InjectedDebugException_ReachesTheGuest_AndASecondIsRefused()
    {
        using TestGuest g = new();
        g.SetVector(1, 0x11000).LoadAt(0x11000, 0xb0, 0x21, 0xe6, 0xf4).Load(0x90);
        Set(g.Cpu, KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB);
        Assert.Equal(-Errno.EBUSY, g.Cpu.SetGuestDebug(new kvm_guest_debug { control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_INJECT_DB }));
        Assert.Equal(0x21, g.RunToEnd());
    }
}

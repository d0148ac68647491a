using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>Events and privilege changes in long mode.</summary>
public sealed unsafe class SysLongModeTests
{
    [Fact]
    public void ExceptionAtSameLevelAlignsTheStackAndSavesTheFrame()
    {
        using SysLongHarness m = new(0, a => { a.mov(rsp, 0x80008); a.ud2(); });
        Assert.Equal(Vector.UD, m.RunToHandler());
        Assert.Equal(0x8_0000UL - 40, m.C->Gpr[4]);
        Assert.Equal(CpuHarness.CodeAddress + 10, m.Frame(0));
        Assert.Equal((ulong)SysLongHarness.KernelCode, m.Frame(1));
        Assert.Equal(Rflags.RF | Rflags.Fixed1, m.Frame(2) & ~Rflags.Status);
        Assert.Equal(0x8_0008UL, m.Frame(3));
        Assert.Equal((ulong)SysLongHarness.KernelData, m.Frame(4));
    }

    [Fact]
    public void PageFaultFromUserSwitchesStackAndReportsAddress()
    {
        using SysLongHarness m = new(3, a => { a.mov(rax, 0x12345678); a.mov(__byte_ptr[rax], 1); });
        Assert.Equal(Vector.PF, m.RunToHandler());
        Assert.Equal(0x1234_5678UL, m.C->Cr2);
        Assert.Equal(SysLongHarness.Rsp0 - 48, m.C->Gpr[4]);
        Assert.Equal(PageFaultError.W | PageFaultError.U, m.Frame(0));
        Assert.Equal((ulong)SysLongHarness.UserCode, m.Frame(2));
        Assert.Equal(SysLongHarness.UserStack, m.Frame(4));
        Assert.Equal((ulong)SysLongHarness.UserData, m.Frame(5));
        Assert.Equal(0u, m.C->Cpl);
        Assert.Equal(0, m.C->Ss.Selector);
    }

    [Fact]
    public void InterruptStackTableReplacesTheStack()
    {
        using SysLongHarness m = new(0, a => a.ud2());
        m.SetGate(Vector.UD, 0x8e, 1);
        Assert.Equal(Vector.UD, m.RunToHandler());
        Assert.Equal(SysLongHarness.Ist1 - 40, m.C->Gpr[4]);
    }

    [Fact]
    public void SoftwareInterruptNeedsGatePrivilege()
    {
        using SysLongHarness denied = new(3, a => a.@int(0x81));
        Assert.Equal(Vector.GP, denied.RunToHandler());
        Assert.Equal(0x81UL * 8 + 2, denied.Frame(0));
        Assert.Equal(CpuHarness.CodeAddress, denied.Frame(1));
        using SysLongHarness allowed = new(3, a => a.@int(0x80));
        allowed.SetGate(0x80, 0xee, 0);
        Assert.Equal(0x80, allowed.RunToHandler());
        Assert.Equal(CpuHarness.CodeAddress + 2, allowed.Frame(0));
    }

    [Fact]
    public void FaultsInsideFaultsEscalate()
    {
        using SysLongHarness m = new(0, a => a.ud2());
        m.SetGate(Vector.UD, 0x0e, 0);
        Assert.Equal(Vector.NP, m.RunToHandler());
        Assert.Equal(Vector.UD * 8UL + 2 + 1, m.Frame(0));
        using SysLongHarness d = new(0, a => { a.xor(eax, eax); a.div(eax); });
        d.SetGate(Vector.DE, 0x0e, 0);
        Assert.Equal(Vector.DF, d.RunToHandler());
        Assert.Equal(0UL, d.Frame(0));
        using SysLongHarness t = new(0, a => { a.xor(eax, eax); a.div(eax); });
        t.SetGate(Vector.DE, 0x0e, 0);
        t.SetGate(Vector.DF, 0x0e, 0);
        Assert.Equal(ExitReason.Shutdown, t.H.Run());
    }

    [Fact]
    public void IretReturnsToUserAndBack()
    {
        using SysLongHarness m = new(0, a =>
        {
            a.push(SysLongHarness.UserData);
            a.push(0x90000);
            a.push(0x202);
            a.push(SysLongHarness.UserCode);
            Label user = a.CreateLabel();
            a.lea(rax, __[user]);
            a.push(rax);
            a.iretq();
            a.hlt();
            a.Label(ref user);
            a.mov(ebx, 7);
            a.hlt();
        });
        Assert.Equal(Vector.GP, m.RunToHandler());
        Assert.Equal(7UL, m.C->Gpr[3]);
        Assert.Equal((ulong)SysLongHarness.UserCode, m.Frame(2));
        Assert.Equal(Rflags.IF | Rflags.RF, m.Frame(3) & (Rflags.IF | Rflags.RF));
        Assert.Equal(0x9_0000UL, m.Frame(4));
    }

    [Fact]
    public void SyscallAndSysret()
    {
        using SysLongHarness m = new(3, a =>
        {
            Label entry = a.CreateLabel();
            a.syscall();
            a.mov(ebx, 9);
            a.@int(0x80);
        });
        byte[] kernel = SysLongHarness.Assemble(64, 0x2_0000, a => { a.mov(rsi, rcx); a.mov(rdi, r11); a.mov(edx, cs); a.sysretq(); });
        m.H.Write(0x2_0000, kernel);
        m.SetGate(0x80, 0xee, 0);
        m.C->Lstar = 0x2_0000;
        m.C->Star = (ulong)SysLongHarness.KernelCode << 32 | 0x1bUL << 48;
        m.C->Sfmask = Rflags.IF | Rflags.TF;
        Flags.Set(m.C, Rflags.IF | Rflags.CF);
        Assert.Equal(0x80, m.RunToHandler());
        Assert.Equal(9UL, m.C->Gpr[3]);
        Assert.Equal(CpuHarness.CodeAddress + 2, m.C->Gpr[6]);
        Assert.Equal(Rflags.IF | Rflags.CF | Rflags.Fixed1, m.C->Gpr[7]);
        Assert.Equal((ulong)SysLongHarness.KernelCode, m.C->Gpr[2]);
        Assert.Equal((ulong)SysLongHarness.UserCode, m.Frame(1));
        Assert.Equal((ulong)SysLongHarness.UserData, m.Frame(4));
    }

    [Fact]
    public void NmiIsBlockedUntilIret()
    {
        using SysLongHarness m = new(0, a => { a.nop(); a.hlt(); });
        byte[] handler = SysLongHarness.Assemble(64, 0x2_0000, a => { a.inc(rbx); a.iretq(); });
        m.H.Write(0x2_0000, handler);
        m.SetGate(2, 0x8e, 1, 0x2_0000);
        m.C->Inject = new EventInjection { Valid = 1, Vector = 2, Type = EventType.Nmi };
        m.C->RequestNmiWindow = 1;
        Assert.Equal(ExitReason.NmiWindow, m.H.Run());
        Assert.Equal(CpuHarness.CodeAddress, m.C->Rip);
        Assert.Equal(1UL, m.C->Gpr[3]);
    }

    [Fact]
    public void NestedFaultDuringDeliveryReportsTheEvent()
    {
        using SysLongHarness m = new(0, a => a.hlt());
        m.C->Inject = new EventInjection { Valid = 1, Vector = 0x40, Type = EventType.External };
        ulong saved = m.H.NestedEntry(CpuHarness.StackTop - 0x1000);
        m.H.NestedEntry(CpuHarness.StackTop - 0x1000) = 0;
        Assert.Equal(ExitReason.NestedFault, m.H.Run());
        Assert.Equal(CpuHarness.StackTop - 8, m.H.Exit->Gpa);
        Assert.Equal(1, m.H.Exit->IdtVectoring.Valid);
        Assert.Equal(0x40, m.H.Exit->IdtVectoring.Vector);
        Assert.Equal(CpuHarness.CodeAddress, m.C->Rip);
        Assert.Equal(CpuHarness.StackTop, m.C->Gpr[4]);
        m.H.NestedEntry(CpuHarness.StackTop - 0x1000) = saved;
        m.C->Inject = m.H.Exit->IdtVectoring;
        Assert.Equal(0x40, m.RunToHandler());
    }

    [Fact]
    public void SingleStepTrapsAfterTheNextInstruction()
    {
        using SysLongHarness m = new(0, a => { a.pushfq(); a.or(__qword_ptr[rsp], (int)Rflags.TF); a.popfq(); a.nop(); a.nop(); a.hlt(); });
        Assert.Equal(Vector.DB, m.RunToHandler());
        byte[] head = SysLongHarness.Assemble(64, CpuHarness.CodeAddress, a => { a.pushfq(); a.or(__qword_ptr[rsp], (int)Rflags.TF); a.popfq(); a.nop(); });
        Assert.Equal(CpuHarness.CodeAddress + (ulong)head.Length, m.Frame(0));
        Assert.Equal(Dr.Dr6BS, m.C->Dr6 & Dr.Dr6BS);
        Assert.Equal(Rflags.TF, m.Frame(2) & Rflags.TF);
        Assert.Equal(0UL, m.C->Rflags & Rflags.TF);
    }

    [Fact]
    public void DataBreakpointTrapsAfterTheAccess()
    {
        using SysLongHarness m = new(0, a => { a.mov(rax, 0x100004); a.mov(__dword_ptr[rax], 5); a.nop(); a.hlt(); });
        m.C->Dr0 = 0x10_0004;
        m.C->Dr7 = Dr.Dr7Fixed1 | 2 | 1 << 16 | 3 << 18;
        m.P.RecomputeMode();
        Assert.Equal(Vector.DB, m.RunToHandler());
        Assert.Equal(1UL, m.C->Dr6 & 0xf);
        Assert.Equal(5u, (uint)m.H.Word(0x10_0004));
        Assert.Equal(CpuHarness.CodeAddress + 16, m.Frame(0));
    }

    [Fact]
    public void InstructionBreakpointFaultsOnceThanksToResumeFlag()
    {
        using SysLongHarness m = new(0, a => { a.nop(); a.nop(); a.mov(ebx, 3); a.hlt(); });
        byte[] handler = SysLongHarness.Assemble(64, 0x2_0000, a => { a.inc(ecx); a.or(__dword_ptr[rsp + 16], (int)Rflags.RF); a.iretq(); });
        m.H.Write(0x2_0000, handler);
        m.SetGate(Vector.DB, 0x8e, 0, 0x2_0000);
        m.C->Dr1 = CpuHarness.CodeAddress + 1;
        m.C->Dr7 = Dr.Dr7Fixed1 | 8;
        m.P.RecomputeMode();
        Assert.Equal(-1, m.RunToHandler());
        Assert.Equal(1UL, m.C->Gpr[1]);
        Assert.Equal(3UL, m.C->Gpr[3]);
        Assert.Equal(2UL, m.C->Dr6 & 0xf);
    }

    [Fact]
    public void AlignmentIsCheckedInUserModeOnly()
    {
        using SysLongHarness m = new(3, a => { a.mov(rax, 0x100001); a.mov(ecx, __dword_ptr[rax]); });
        m.C->Cr0 |= Cr0.AM;
        Flags.Set(m.C, Rflags.AC);
        m.P.RecomputeMode();
        Assert.Equal(Vector.AC, m.RunToHandler());
        Assert.Equal(0UL, m.Frame(0));
    }

    [Fact]
    public void NonCanonicalAddressesFault()
    {
        using SysLongHarness gp = new(0, a => { a.mov(rax, 0x8000_0000_0000_0000UL); a.mov(rax, __qword_ptr[rax]); });
        Assert.Equal(Vector.GP, gp.RunToHandler());
        using SysLongHarness ss = new(0, a => { a.mov(rbp, 0x8000_0000_0000_0000UL); a.mov(rax, __qword_ptr[rbp]); });
        Assert.Equal(Vector.SS, ss.RunToHandler());
        using SysLongHarness jump = new(0, a => { a.mov(rax, 0x8000_0000_0000_0000UL); a.jmp(rax); });
        Assert.Equal(Vector.GP, jump.RunToHandler());
    }

    [Fact]
    public void SmapStopsSupervisorUnlessAcIsSet()
    {
        Action<Assembler> program = a => { a.mov(rax, 0x100000); a.stac(); a.mov(ecx, __dword_ptr[rax]); a.mov(ebx, 1); a.clac(); a.mov(ecx,
            __dword_ptr[rax]); };
        using SysLongHarness m = new(0, program);
        ulong root = m.C->Cr3;
        // Page 0 (code, tables, stacks) becomes a supervisor page of 2 MiB; the data at 1 MiB is in it too, so map it anew behind 2 MiB.
        m.H.Word(root + 0x2000) &= ~Pte.U;
        m.C->Cr4 |= Cr4.SMAP;
        m.P.RecomputeMode();
        m.H.Write(CpuHarness.CodeAddress, SysLongHarness.Assemble(64, CpuHarness.CodeAddress, a =>
        {
            a.mov(rax, 0x300000); a.stac(); a.mov(ecx, __dword_ptr[rax]); a.mov(ebx, 1); a.clac(); a.mov(ecx, __dword_ptr[rax]);
        }));
        Assert.Equal(Vector.PF, m.RunToHandler());
        Assert.Equal(1UL, m.C->Gpr[3]);
        Assert.Equal(PageFaultError.P, m.Frame(0));
        Assert.Equal(0x30_0000UL, m.C->Cr2);
    }
}

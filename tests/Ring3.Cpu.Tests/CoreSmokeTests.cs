using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>Small programs through decoder, loop and handlers.</summary>
public sealed unsafe class CoreSmokeTests
{
    internal static byte[] Assemble(int bits, Action<Assembler> body, ulong at = CpuHarness.CodeAddress)
    {
        Assembler a = new(bits);
        body(a);
        MemoryStream stream = new();
        a.Assemble(new StreamCodeWriter(stream), at);
        return stream.ToArray();
    }

    [Fact]
    public void SumLoop()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(64, a =>
        {
            Label loop = a.CreateLabel();
            a.xor(eax, eax);
            a.mov(ecx, 1000);
            a.Label(ref loop);
            a.add(rax, rcx);
            a.dec(rcx);
            a.jnz(loop);
            a.hlt();
        }));
        h.RunToHlt();
        Assert.Equal(500500UL, h.Rax);
        Assert.Equal(2UL + 3000 + 1, h.State->InstructionsRetired);
    }

    [Fact]
    public void CallsAndStack()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(64, a =>
        {
            Label fib = a.CreateLabel(), recurse = a.CreateLabel();
            a.mov(edi, 15);
            a.call(fib);
            a.hlt();
            a.Label(ref fib);
            a.mov(eax, edi);
            a.cmp(edi, 2);
            a.jae(recurse);
            a.ret();
            a.Label(ref recurse);
            a.push(rbx);
            a.push(rdi);
            a.lea(edi, __[rdi - 1]);
            a.call(fib);
            a.mov(ebx, eax);
            a.pop(rdi);
            a.lea(edi, __[rdi - 2]);
            a.call(fib);
            a.add(eax, ebx);
            a.pop(rbx);
            a.ret();
        }));
        h.RunToHlt();
        Assert.Equal(610UL, h.Rax);
        Assert.Equal(CpuHarness.StackTop, h.Rsp);
    }

    [Fact]
    public void MemoryAndFlags()
    {
        using CpuHarness h = CpuHarness.Long(Assemble(64, a =>
        {
            a.mov(rsi, CpuHarness.DataAddress);
            a.mov(__dword_ptr[rsi], 0x7fffffff);
            a.add(__dword_ptr[rsi], 1);
            a.pushfq();
            a.pop(rax);
            a.mov(ebx, __dword_ptr[rsi]);
            a.hlt();
        }));
        h.RunToHlt();
        Assert.Equal(0x80000000UL, h.Rbx);
        Assert.Equal(0x892UL & ~0x2UL | 4, h.Rax & ~0x2UL);
    }

    [Fact]
    public void SelfModifyingCodeInTheSameBlock()
    {
        // mov [rip], cl changes the immediate of the instruction right behind it: 88 0d 01 00 00 00 / b8 imm32.
        using CpuHarness h = CpuHarness.Long(
        [
            0xb9, 5, 0, 0, 0, 0x88, 0x0d, 1, 0, 0, 0, 0xb8, 0, 0x11, 0x11, 0x11, 0x48, 0x01, 0xc3, 0xff, 0xc9, 0x75, 0xee, 0xf4,
        ]);
        h.RunToHlt();
        Assert.Equal(5 * 0x11111100UL + 15, h.Rbx);
        Assert.Equal(0x11111101UL, h.Rax);
    }

    [Fact]
    public void UndefinedInstructionLeavesWithItsVector()
    {
        using CpuHarness h = CpuHarness.Long([0x90, 0x0f, 0x0b]);
        Assert.Equal(ExitReason.Exception, h.Run());
        Assert.Equal(Arch.Vector.UD, h.Exit->Vector);
        Assert.Equal(CpuHarness.CodeAddress + 1, h.State->Rip);
        Assert.Equal(1UL, h.State->InstructionsRetired);
    }

    [Fact]
    public void CodeAcrossPages()
    {
        ulong at = 0x2_0ffd;
        using CpuHarness h = CpuHarness.Long(Assemble(64, a => a.mov(rax, 0x1122334455667788), at));
        h.Write(at, Assemble(64, a =>
        {
            a.mov(rax, 0x1122334455667788);
            a.hlt();
        }, at));
        h.State->Rip = at;
        h.RunToHlt();
        Assert.Equal(0x1122334455667788UL, h.Rax);
    }

    [Fact]
    public void RealMode()
    {
        using CpuHarness h = CpuHarness.Real16(Assemble(16, a =>
        {
            Label loop = a.CreateLabel();
            a.mov(ax, 0x1000);
            a.mov(ds, ax);
            a.mov(cx, 10);
            a.mov(bx, 0);
            a.Label(ref loop);
            a.mov(__word_ptr[bx + 0x200], cx);
            a.add(bx, 2);
            a.loop(loop);
            a.mov(dx, __word_ptr[0x200]);
            a.hlt();
        }, 0));
        h.RunToHlt();
        Assert.Equal(10UL, h.Rdx & 0xffff);
        Assert.Equal(20UL, h.Rbx & 0xffff);
        Assert.Equal(10, h.Memory[0x10200]);
    }

    [Fact]
    public void ProtectedMode32()
    {
        using CpuHarness h = CpuHarness.Protected32(Assemble(32, a =>
        {
            Label f = a.CreateLabel();
            a.push(7);
            a.call(f);
            a.hlt();
            a.Label(ref f);
            a.mov(eax, __dword_ptr[esp + 4]);
            a.imul(eax, eax, 6);
            a.ret(4);
        }));
        h.RunToHlt();
        Assert.Equal(42UL, h.Rax);
        Assert.Equal(CpuHarness.StackTop, h.Rsp);
    }

    [Fact]
    public void SingleStepTrap()
    {
        using CpuHarness h = CpuHarness.Long([0x90, 0x90, 0xf4]);
        h.RflagsValue = Arch.Rflags.TF | Arch.Rflags.Fixed1;
        h.Cpu.RecomputeMode();
        Assert.Equal(ExitReason.Exception, h.Run());
        Assert.Equal(Arch.Vector.DB, h.Exit->Vector);
        Assert.Equal(CpuHarness.CodeAddress + 1, h.State->Rip);
    }

    [Fact]
    public void InterruptWindowOpensAfterTheShadow()
    {
        using CpuHarness h = CpuHarness.Long([0xfb, 0x90, 0x90, 0xf4]);
        h.State->RequestInterruptWindow = 1;
        Assert.Equal(ExitReason.InterruptWindow, h.Run());
        Assert.Equal(CpuHarness.CodeAddress + 2, h.State->Rip);
    }

    [Fact]
    public void EveryInstructionOfTheIntegerSetHasAHandler()
    {
        Assert.True(HandlerTable.Get(Code.Add_rm8_r8) != null);
        Assert.True(HandlerTable.Get(Code.Imul_r64_rm64_imm8) != null);
        Assert.True(HandlerTable.Get(Code.Cmpxchg16b_m128) != null);
        Assert.True(HandlerTable.Get(Code.VEX_Mulx_r64_r64_rm64) != null);
    }
}

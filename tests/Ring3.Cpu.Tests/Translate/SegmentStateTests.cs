using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Bases, selectors and the rights of protection keys, as a kernel reads and writes them when it changes the thread.</summary>
public sealed unsafe class SegmentStateTests
{
    private static void Enable(CpuHarness h, ulong cr4)
    {
        h.State->Cr4 = h.State->Cr4 & ~(Cr4.FSGSBASE | Cr4.PKE) | cr4;
        h.State->Ds.Selector = 0x2b;
        h.State->Es.Selector = 0x33;
        h.Cpu.RecomputeMode();
    }

    private static void Program(Assembler a)
    {
        Label again = a.CreateLabel();
        a.mov(r12d, 20);
        a.xor(ecx, ecx);
        a.Label(ref again);
        a.lea(rbx, __[r12 + r12 * 8 + 0x1000]);
        a.wrfsbase(rbx);
        a.lea(r9, __[rbx * 2]);
        a.wrgsbase(r9);
        a.cmp(rbx, r9);
        a.rdfsbase(r14);
        a.rdgsbase(rsi);
        a.rdgsbase(r11d);
        a.wrfsbase(ebx);
        a.rdpkru();
        a.mov(__word_ptr[RegionMachine.Data + 0x10], ds);
        a.mov(__word_ptr[rdi + r12 * 8 + 1], es);
        a.setb(__byte_ptr[rdi]);
        a.dec(r12d);
        a.jnz(again);
    }

    [Fact]
    public void BasesSelectorsAndRights()
    {
        using RegionMachine m = new(a => { Program(a); a.hlt(); }, h =>
        {
            Enable(h, Cr4.FSGSBASE | Cr4.PKE);
            h.State->Pkru = 0x5555_5554;
            h.State->Gpr[7] = RegionMachine.Data + 0x2000 - 100;
        });
        Assert.Equal(ExitReason.Hlt, m.Run("enabled"));
        Assert.True(m.Translated > 100);
        Assert.Equal((0x5555_5554ul, 0ul), (m.Fast.State->Gpr[0], m.Fast.State->Gpr[2]));
        Assert.Equal(0x2bul, m.Fast.Word(RegionMachine.Data + 0x10) & 0xffff);
    }

    [Theory]
    [InlineData(0ul, Vector.UD)]
    [InlineData(Cr4.FSGSBASE, Vector.UD)]
    [InlineData(Cr4.FSGSBASE | Cr4.PKE, Vector.GP)]
    public void WhatIsNotAllowed_Faults(ulong cr4, byte vector)
    {
        using RegionMachine m = new(a =>
        {
            a.mov(rdi, RegionMachine.Data);
            Program(a);
            a.mov(r10, 1UL << 50);
            a.wrgsbase(r10);
            a.hlt();
        }, h => Enable(h, cr4));
        Assert.Equal(ExitReason.Exception, m.Run("faults"));
        Assert.Equal(vector, m.Fast.Exit->Vector);
    }
}

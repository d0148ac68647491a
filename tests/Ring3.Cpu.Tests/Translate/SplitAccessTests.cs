using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Accesses of translated code that lie in two pages.</summary>
public sealed unsafe class SplitAccessTests
{
    private const int Times = 500;
    private const ulong Second = RegionMachine.Data + 0x1000;

    private static void Emit(Assembler a)
    {
        Label again = a.CreateLabel();
        a.mov(rsi, Second);
        a.mov(ecx, Times);
        a.Label(ref again);
        a.mov(rax, __[rsi - 3]);
        a.add(rbx, rax);
        a.mov(__[rsi - 5], rbx);
        a.movzx(edx, __word_ptr[rsi - 1]);
        a.cmp(rdx, __[rsi - 7]);
        a.adc(r8, __[rsi - 2]);
        a.mov(__[rsi - 1], r9w);
        a.movdqu(xmm1, __[rsi - 9]);
        a.movdqu(__[rsi - 13], xmm1);
        a.vmovdqu(ymm2, __[rsi - 30]);
        a.vpaddd(ymm2, ymm2, __[rsi - 17]);
        a.vmovdqu(__[rsi - 31], ymm2);
        a.mov(r9, __[rsi - 6]);
        a.cmovb(r10, __[rsi - 4]);
        a.mov(__dword_ptr[rsi - 2], 77);
        a.dec(ecx);
        a.jnz(again);
        a.hlt();
    }

    [Fact]
    public void LoadsAndStores_StayInTranslatedCode()
    {
        using RegionMachine m = new(Emit, h => RegionMachine.Fill(h, new Random(1)));
        Assert.Equal(ExitReason.Hlt, m.Run("in two pages"));
        Assert.InRange(m.Fast.Cpu.Translator.Counters.Leaves[(int)SiteKind.Miss], 0, Times / 10);
    }

    /// <summary>Either page is not there, or may not be written, when the first access, and each in turn, needs it.</summary>
    [Theory]
    [InlineData(0UL, 0UL)]
    [InlineData(0x1000UL, 0UL)]
    [InlineData(0UL, Pte.P)]
    [InlineData(0x1000UL, Pte.P)]
    public void WhatOnePageForbids_Faults(ulong page, ulong rights)
    {
        using RegionMachine m = new(Emit, h =>
        {
            RegionMachine.Fill(h, new Random(2));
            ulong table = h.Size - 0x1000, directory = h.Size - 0x2000, linear = RegionMachine.Data + page;
            for (ulong i = 0; i < 512; i++)
                h.Word(table + 8 * i) = i << 12 | Pte.P | Pte.W;
            h.Word(directory) = table | Pte.P | Pte.W;
            h.Word(table + 8 * (linear >> 12)) = linear | rights;
            h.State->Cr0 |= Cr0.WP;
            h.Cpu.RecomputeMode();
            h.Cpu.FlushAll();
        });
        Assert.Equal(ExitReason.Exception, m.Run("forbidden"));
        Assert.Equal(Vector.PF, m.Fast.Exit->Vector);
    }

    /// <summary>The owner's memory of either page is not there, and comes.</summary>
    [Theory]
    [InlineData(0UL)]
    [InlineData(0x1000UL)]
    public void WhatTheOwnerLacks_Leaves(ulong page)
    {
        ulong gone = RegionMachine.Data + page;
        using RegionMachine m = new(Emit, h => { RegionMachine.Fill(h, new Random(3)); h.NestedEntry(gone) = 0; });
        Assert.Equal(ExitReason.NestedFault, m.Run("gone"));
        m.Fast.NestedEntry(gone) = (ulong)(m.Fast.Memory + gone) | NestedPte.RWX;
        m.Slow.NestedEntry(gone) = (ulong)(m.Slow.Memory + gone) | NestedPte.RWX;
        Assert.Equal(ExitReason.Hlt, m.Run("there"));
    }

    /// <summary>A store whose second part, or first, changes code that has run.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(-5)]
    public void CodeInEitherPage_IsSeenToChange(int at)
    {
        ulong function = Second + (ulong)at;
        using RegionMachine m = new(a =>
        {
            Label again = a.CreateLabel();
            a.mov(rsi, Second);
            a.mov(rdi, function);
            a.mov(ecx, Times);
            a.Label(ref again);
            a.call(rdi);
            a.add(rbx, rax);
            a.mov(rdx, __[rsi - 4]);
            // The low byte of MOV's immediate.
            a.mov(r8, 1L << (at == 0 ? 40 : 0));
            a.add(rdx, r8);
            a.mov(__[rsi - 4], rdx);
            a.dec(ecx);
            a.jnz(again);
            a.hlt();
        }, h => CoreSmokeTests.Assemble(64, a => { a.mov(eax, 1); a.ret(); }).CopyTo(h.Data(function, 6)));
        Assert.Equal(ExitReason.Hlt, m.Run("changes"));
        Assert.True(m.Fast.Rbx > 2 * Times, $"{m.Fast.Rbx}");
    }
}

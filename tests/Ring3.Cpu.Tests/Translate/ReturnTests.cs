using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Calls and returns that agree, and the ways in which they do not.</summary>
public sealed unsafe class ReturnTests
{
    private const ulong Code = CpuHarness.CodeAddress, Data = RegionMachine.Data;

    private static void Again(RegionMachine m)
    {
        foreach (CpuHarness h in (ReadOnlySpan<CpuHarness>)[m.Fast, m.Slow])
        {
            h.State->Rip = Code;
            h.State->Gpr[4] = CpuHarness.StackTop;
            h.Cpu.RecomputeMode();
        }
    }

    /// <summary>Functions that call each other to a depth, directly or by a register or memory, some with arguments to take off the stack.</summary>
    [Fact]
    public void RandomCallGraphs_ReturnAsInstructionByInstruction()
    {
        for (int seed = 0; seed < 60; seed++)
        {
            Random r = new(seed);
            using RegionMachine m = new(a => Graph(a, r, 6), h => RegionMachine.Fill(h, new Random(seed)));
            for (int run = 0; run < 4; run++)
            {
                Assert.Equal(ExitReason.Hlt, m.Run($"seed {seed}, run {run}"));
                Again(m);
            }
            Assert.True(m.Translated > 0);
        }
    }

    private static void Graph(Assembler a, Random r, int functions)
    {
        Label[] labels = [.. Enumerable.Range(0, functions).Select(_ => a.CreateLabel())];
        a.mov(r12d, 40);
        Label main = a.CreateLabel();
        a.Label(ref main);
        a.call(labels[0]);
        a.inc(rbx);
        a.dec(r12d);
        a.jnz(main);
        a.hlt();
        for (int n = 0; n < functions; n++)
        {
            while (r.Next(3) == 0)
                a.nop();
            a.Label(ref labels[n]);
            a.add(rax, n + 1);
            if (r.Next(2) == 0)
                a.push(rbp);
            bool pushed = a.Instructions[^1].Code == Iced.Intel.Code.Push_r64;
            // Calls to later functions only: it ends.
            for (int calls = r.Next(3); calls > 0 && n + 1 < functions; calls--)
            {
                Label target = labels[r.Next(n + 1, functions)];
                switch (r.Next(3))
                {
                    case 0: a.call(target); break;
                    case 1: a.lea(rcx, __[target]); a.call(rcx); break;
                    default: a.lea(rcx, __[target]); a.mov(__[Data], rcx); a.call(__qword_ptr[Data]); break;
                }
                a.rol(rax, 3);
            }
            if (pushed)
                a.pop(rbp);
            if (r.Next(4) == 0 && n + 1 < functions)
                a.jmp(labels[r.Next(n + 1, functions)]);
            else
                a.ret();
        }
    }

    /// <summary>Deeper than calls are noted, and back, several times.</summary>
    [Theory]
    [InlineData(1)]
    [InlineData(ReturnFrame.MaxCount - 1)]
    [InlineData(ReturnFrame.MaxCount + 1)]
    [InlineData(3 * ReturnFrame.MaxCount)]
    public void Recursion_OfAnyDepth(int depth)
    {
        using RegionMachine m = new(a =>
        {
            Label function = a.CreateLabel(), end = a.CreateLabel();
            a.mov(ecx, depth);
            a.call(function);
            a.hlt();
            a.Label(ref function);
            a.dec(ecx);
            a.jz(end);
            a.call(function);
            a.lea(rax, __[rax + rax * 2 + 1]);
            a.Label(ref end);
            a.ret();
        });
        for (int run = 0; run < 5; run++)
        {
            Assert.Equal(ExitReason.Hlt, m.Run($"run {run}"));
            Again(m);
        }
    }

    /// <summary>A callee that changes where it returns to, one that takes its return address off, and one that comes back over two callers.</summary>
    [Fact]
    public void ReturnsThatGoElsewhere()
    {
        using RegionMachine m = new(a =>
        {
            Label change = a.CreateLabel(), drop = a.CreateLabel(), outer = a.CreateLabel(), inner = a.CreateLabel(), other = a.CreateLabel(),
                dropped = a.CreateLabel(), far = a.CreateLabel(), again = a.CreateLabel(), trick = a.CreateLabel(), plain = a.CreateLabel();
            a.mov(r12d, 300);
            a.Label(ref again);
            a.call(change);
            a.add(rax, 1);
            a.Label(ref other);
            a.add(rax, 2);
            a.call(drop);
            a.add(rax, 4);
            a.Label(ref dropped);
            a.mov(r8, rsp);
            a.call(outer);
            a.add(rax, 8);
            a.Label(ref far);
            // A return without a call.
            a.lea(rdx, __[trick]);
            a.push(rdx);
            a.ret();
            a.add(rax, 16);
            a.Label(ref trick);
            a.call(plain);
            a.dec(r12d);
            a.jnz(again);
            a.hlt();
            a.Label(ref change);
            a.lea(rdx, __[other]);
            a.mov(__[rsp], rdx);
            a.ret();
            a.Label(ref drop);
            a.pop(rdx);
            a.jmp(dropped);
            a.Label(ref outer);
            a.call(inner);
            a.add(rax, 32);
            a.Label(ref plain);
            a.ret();
            a.Label(ref inner);
            a.mov(rsp, r8);
            a.jmp(far);
        });
        Assert.Equal(ExitReason.Hlt, m.Run("returns"));
        Assert.Equal(600ul, m.Fast.State->Gpr[0]);
    }

    /// <summary>Two stacks that take turns, so that returns come in another order than calls.</summary>
    [Fact]
    public void TwoStacks()
    {
        const ulong Other = Data + 0x8000;
        using RegionMachine m = new(a =>
        {
            Label turn = a.CreateLabel(), second = a.CreateLabel(), again = a.CreateLabel(), deeper = a.CreateLabel();
            a.mov(rbx, Other - 8);
            a.lea(rdx, __[second]);
            a.mov(__[rbx], rdx);
            a.mov(r12d, 200);
            a.Label(ref again);
            a.call(deeper);
            a.add(rax, 3);
            a.dec(r12d);
            a.jnz(again);
            a.hlt();
            a.Label(ref deeper);
            a.call(turn);
            a.ret();
            a.Label(ref turn);
            a.xchg(rsp, rbx);
            a.ret();
            a.Label(ref second);
            a.lea(rax, __[rax * 2 + 5]);
            a.call(turn);
            a.call(turn);
            a.jmp(second);
        });
        Assert.Equal(ExitReason.Hlt, m.Run("stacks"));
    }

    /// <summary>The callee overwrites what it returns to, in the caller's region.</summary>
    [Fact]
    public void CodeBehindACall_IsOverwrittenByTheCallee()
    {
        using RegionMachine m = new(a =>
        {
            Label callee = a.CreateLabel(), patched = a.CreateLabel(), again = a.CreateLabel();
            a.mov(r12d, 50);
            a.Label(ref again);
            a.call(callee);
            a.Label(ref patched);
            a.mov(eax, 0x11111111);
            a.add(rbx, rax);
            a.dec(r12d);
            a.jnz(again);
            a.hlt();
            a.Label(ref callee);
            a.lea(rdx, __[patched]);
            a.mov(__dword_ptr[rdx + 1], r12d);
            a.ret();
        });
        Assert.Equal(ExitReason.Hlt, m.Run("overwritten"));
        Assert.Equal(50ul * 51 / 2, m.Fast.State->Gpr[3]);
    }

    /// <summary>An instruction in two pages becomes another when other bytes follow its first page at a second address of that.</summary>
    [Fact]
    public void InstructionInTwoPages_AtTwoAddresses()
    {
        const ulong Alias = 0x40_0000;
        const int Across = 0xffd;
        using RegionMachine m = new(a =>
        {
            Label again = a.CreateLabel();
            // Both addresses, in turn.
            a.mov(esi, (int)Code + Across);
            a.mov(edi, (int)Alias + Across);
            a.mov(r12d, 60);
            a.Label(ref again);
            a.call(rsi);
            a.add(rbx, rax);
            a.xchg(rsi, rdi);
            a.dec(r12d);
            a.jnz(again);
            a.hlt();
            for (int n = Length(a); n < Across; n++)
                a.nop();
            a.mov(eax, 0x01020304);
            a.ret();
        }, h =>
        {
            // Three pages at the second address: the same first one, and another behind it.
            ulong table = h.Size - 0x1000, directory = h.Size - 0x2000;
            for (ulong i = 0; i < 512; i++)
                h.Word(table + 8 * i) = i << 12 | Pte.P | Pte.W;
            h.Word(table) = Code | Pte.P;
            h.Word(table + 8) = (Data + 0x3000) | Pte.P | Pte.W;
            h.Word(directory + 8 * (Alias >> 21)) = table | Pte.P | Pte.W;
            // The rest of the instruction there, and RET.
            h.Word(Data + 0x3000) = 0xc3_0a09;
            h.Cpu.FlushAll();
        });
        Assert.Equal(ExitReason.Hlt, m.Run("two addresses"));
        Assert.Equal(30ul * 0x01020304 + 30ul * 0x0a090304, m.Fast.State->Gpr[3]);
    }

    private static int Length(Assembler a)
    {
        using MemoryStream bytes = new();
        a.Assemble(new StreamCodeWriter(bytes), Code);
        return (int)bytes.Length;
    }

    /// <summary>Functions that call the next one twice each, upwards in one page: whoever wants the processor gets it long before they end.</summary>
    [Fact]
    public void CallsUpwards_Poll()
    {
        const int Functions = 40;
        using RegionMachine m = new(a =>
        {
            Label[] f = [.. Enumerable.Range(0, Functions + 1).Select(_ => a.CreateLabel())];
            a.call(f[0]);
            a.hlt();
            for (int n = 0; n < Functions; n++)
            {
                a.Label(ref f[n]);
                a.call(f[n + 1]);
                a.call(f[n + 1]);
                a.ret();
            }
            a.Label(ref f[Functions]);
            a.ret();
        });
        for (ulong at = 1000; at <= 50_000; at += 1000)
        {
            Assert.True(m.RunTo(at, $"{at}"));
            Assert.InRange(m.Fast.State->InstructionsRetired, at, at + 400);
        }
    }
}

using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>
/// The state that a region is left with, wherever it is left: every access of a program has a page of its own, and each in turn is the one that is not
/// there; and every instruction count is in turn the one from which on a poll leaves.
/// Registers, flags, memory and counts must be those of single steps of the interpreter.
/// </summary>
public sealed unsafe class RegionStateTests
{
    private const ulong Page = 0x1000, Stack = RegionMachine.Data + 0x3_0000;
    private static readonly AssemblerRegister64[] s_r64 = [rax, rcx, rdx, rbx, rbp, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    private static readonly AssemblerRegister32[] s_r32 = [eax, ecx, edx, ebx, ebp, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
    private static readonly AssemblerRegister16[] s_r16 = [ax, cx, dx, bx, bp, di, r8w, r9w, r10w, r11w, r12w, r13w, r14w, r15w];
    private static readonly AssemblerRegister8[] s_r8 = [al, cl, dl, bl, ah, ch, dh, bh, bpl, dil, r8b, r9b, r12b, r15b];

    /// <summary>A program, and how many pages it touches.</summary>
    private static (byte[] Code, int Pages) Program(int seed)
    {
        Random r = new(seed);
        int pages = 0;
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            AssemblerMemoryOperand Operand() => __[rsi + (pages++ * 0x1000 + 8 * r.Next(400))];
            List<Label> functions = [];
            for (int n = r.Next(8, 28); n > 0; n--)
                Emit(a, r, Operand, functions);
            a.hlt();
            foreach (Label function in functions)
            {
                Label f = function;
                a.Label(ref f);
                Emit(a, r, Operand, null);
                a.ret();
            }
        });
        return (code, pages);
    }

    private static void Emit(Assembler a, Random r, Func<AssemblerMemoryOperand> memory, List<Label>? functions)
    {
        AssemblerRegister64 x = s_r64[r.Next(14)], y = s_r64[r.Next(14)];
        AssemblerRegister32 u = s_r32[r.Next(14)], v = s_r32[r.Next(14)];
        int immediate = r.Next(2) == 0 ? r.Next(-128, 128) : r.Next();
        switch (r.Next(40))
        {
            case 0: a.add(x, y); break;
            case 1: a.sub(u, v); break;
            case 2: a.adc(x, immediate); break;
            case 3: a.sbb(u, v); break;
            case 4: a.cmp(x, immediate); break;
            case 5: a.test(u, immediate); break;
            case 6: a.and(s_r16[r.Next(14)], s_r16[r.Next(14)]); break;
            case 7: a.xor(x, y); break;
            case 8: a.neg(u); break;
            case 9: a.inc(x); break;
            case 10: a.dec(u); break;
            case 11: a.cmp(s_r8[r.Next(4)], s_r8[r.Next(8)]); break;
            case 12: a.add(s_r8[8 + r.Next(6)], (sbyte)(immediate & 127)); break;
            case 13: a.sub(x, __qword_ptr[memory()]); break;
            case 14: a.add(__qword_ptr[memory()], y); break;
            case 15: a.adc(__dword_ptr[memory()], v); break;
            case 16: a.sbb(u, __dword_ptr[memory()]); break;
            case 17: a.cmp(__word_ptr[memory()], (short)immediate); break;
            case 18: a.mov(__qword_ptr[memory()], x); break;
            case 19: a.mov(u, __dword_ptr[memory()]); break;
            case 20: a.movzx(u, __byte_ptr[memory()]); break;
            case 21: a.movsx(x, __word_ptr[memory()]); break;
            case 22: a.mov(__byte_ptr[memory()], s_r8[r.Next(4)]); break;
            case 23: a.push(x); break;
            case 24: a.pop(y); break;
            case 25: a.push(immediate); break;
            case 26 when functions is not null:
                Label function = a.CreateLabel();
                functions.Add(function);
                a.call(function);
                break;
            case 27: a.setb(__byte_ptr[memory()]); break;
            case 28: a.cmovle(x, __qword_ptr[memory()]); break;
            case 29: a.rol(x, 1); break;
            case 30: a.rcr(u, 1); break;
            case 31: a.xadd(__qword_ptr[memory()], x); break;
            case 32: a.@lock.sub(__dword_ptr[memory()], v); break;
            case 33: a.cmpxchg(__dword_ptr[memory()], v); break;
            case 34: a.lahf(); break;
            case 35: a.pushfq(); break;
            case 36: a.cmc(); break;
            case 37: a.xchg(__dword_ptr[memory()], u); break;
            case 38: a.inc(__word_ptr[memory()]); break;
            default:
                Label over = a.CreateLabel();
                switch (r.Next(5))
                {
                    case 0: a.jb(over); break;
                    case 1: a.jle(over); break;
                    case 2: a.js(over); break;
                    case 3: a.ja(over); break;
                    default: a.jo(over); break;
                }
                a.not(x);
                a.lea(y, __[x + y * 2 + 5]);
                a.Label(ref over);
                break;
        }
    }

    private static void Prepare(CpuHarness h, int seed)
    {
        Random r = new(seed);
        CpuState* c = h.State;
        for (int i = 0; i < 16; i++)
            c->Gpr[i] = r.Next(3) == 0 ? (ulong)r.Next(-2, 3) : (ulong)r.NextInt64() << 1;
        c->Gpr[6] = RegionMachine.Data;
        // Pushes and pops cross into pages of their own as well.
        c->Gpr[4] = Stack + 8 * (ulong)r.Next(3);
        h.RflagsValue = 2 | (ulong)(uint)r.Next() & Flags.Status;
        for (ulong i = 0; i < 0x4_0000; i += 8)
            h.Word(RegionMachine.Data + i) = (ulong)r.NextInt64();
    }

    /// <summary>Each access in turn leaves for a page that is not there, and is made when it is.</summary>
    [Fact]
    public void LeftAtEveryAccess()
    {
        int left = 0;
        ulong translated = 0;
        for (int seed = 1; seed <= 150; seed++)
        {
            (byte[] code, int pages) = Program(seed);
            for (int missing = 0; missing < pages + 2; missing++)
            {
                // The stack's two pages are the last.
                ulong gone = missing < pages ? RegionMachine.Data + (ulong)missing * Page : Stack - (missing == pages ? 0 : Page);
                string what = $"seed {seed}, without page {gone:x}";
                using RegionMachine m = new(code, h => { Prepare(h, seed); h.NestedEntry(gone) = 0; });
                if (m.Run(what) != ExitReason.NestedFault)
                    continue;
                left++;
                translated += m.Translated;
                m.Fast.NestedEntry(gone) = (ulong)(m.Fast.Memory + gone) | NestedPte.RWX;
                m.Slow.NestedEntry(gone) = (ulong)(m.Slow.Memory + gone) | NestedPte.RWX;
                // To its end: HLT, or a return to where an unbalanced push has led.
                m.Run(what + ", and then");
            }
        }
        Assert.True(left > 1000 && translated > 5000, $"left {left} times, after {translated} translated instructions");
    }

    /// <summary>A loop around the program; the processor looks at the clock, and it is time, from each count of instructions on.</summary>
    [Fact]
    public void LeftAtEveryPoll()
    {
        ulong translated = 0;
        for (int seed = 1; seed <= 40; seed++)
        {
            byte[] code = CoreSmokeTests.Assemble(64, a =>
            {
                Label again = a.CreateLabel();
                Random r = new(seed);
                a.Label(ref again);
                for (int n = r.Next(4, 14); n > 0; n--)
                    Emit(a, r, () => __[rsi + 8 * r.Next(400)], null);
                a.sub(__dword_ptr[rsi + 0x2000], 1);
                a.jnz(again);
                a.hlt();
            });
            for (ulong count = 1; ; count++)
            {
                using RegionMachine m = new(code, h => { Prepare(h, seed); *(uint*)(h.Memory + RegionMachine.Data + 0x2000) = 4; });
                bool more = m.RunTo(count, $"seed {seed}, from instruction {count}");
                translated += m.Translated;
                if (!more)
                    break;
                Assert.Equal(ExitReason.Hlt, m.Run($"seed {seed}, from instruction {count} to the end"));
            }
        }
        Assert.True(translated > 5000, $"{translated} translated instructions");
    }
}

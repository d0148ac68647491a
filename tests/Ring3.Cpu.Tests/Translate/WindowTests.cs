using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Accesses that are checked together, and loops that are repeated in their trace, against single steps of the interpreter.</summary>
/// <remarks>SAFETY: works on the harness's state and memory.</remarks>
public sealed unsafe class WindowTests
{
    private const ulong Data = RegionMachine.Data, Page = 0x1000;

    private static void Fill(CpuHarness h, int seed)
    {
        Random r = new(seed);
        RegionMachine.Fill(h, r);
        for (int i = 0; i < 64; i++)
            h.State->Ymm[i] = (byte)r.Next();
    }

    /// <summary>One of a loop's instructions; RSI, RDI and R14 point to data, RBX is a small index.</summary>
    private static void Emit(Assembler a, Random r)
    {
        AssemblerRegister64 pointer = new[] { rsi, rdi, r14 }[r.Next(3)], x = new[] { rax, rdx, r8, r9, r12 }[r.Next(5)];
        AssemblerMemoryOperand m = r.Next(3) == 0 ? __[pointer + rbx * (1 << r.Next(4)) + r.Next(-40, 40)] : __[pointer + r.Next(-100, 100)];
        AssemblerMemoryOperand even = __[r14 + 16 * r.Next(-4, 5)];
        switch (r.Next(25))
        {
            case 0: a.mov(x, __qword_ptr[m]); break;
            case 1: a.mov(__qword_ptr[m], x); break;
            case 2: a.adc(x, __qword_ptr[m]); break;
            case 3: a.adc(__dword_ptr[m], eax); break;
            case 4: a.movzx(eax, __byte_ptr[m]); break;
            case 5: a.mov(__byte_ptr[m], dl); break;
            case 6: a.add(pointer, r.Next(-64, 65)); break;
            case 7: a.sub(pointer, 8); break;
            case 8: a.inc(rbx); break;
            case 9: a.lea(pointer, __[pointer + 24]); break;
            case 10: a.mov(x, pointer); a.mov(eax, __dword_ptr[x + 4]); break;
            case 11: a.push(x); a.mov(__qword_ptr[rsp + 8], rax); a.pop(rdx); break;
            case 12: a.sub(rsp, 32); a.mov(__qword_ptr[rsp + 16], x); a.mov(rdx, __qword_ptr[rsp + 16]); a.add(rsp, 32); break;
            case 13: a.cmp(__qword_ptr[m], x); a.cmovb(rax, __qword_ptr[m]); break;
            case 14: a.sete(__byte_ptr[m]); break;
            case 15: a.movups(xmm0, __xmmword_ptr[m]); break;
            case 16: a.movups(__xmmword_ptr[m], xmm1); break;
            case 17: a.movaps(xmm1, __xmmword_ptr[even]); break;
            case 18: a.movaps(__xmmword_ptr[even], xmm0); break;
            case 19: a.paddq(xmm0, __xmmword_ptr[even]); break;
            case 20: a.@lock.add(__dword_ptr[m], eax); break;
            case 21: a.xchg(__dword_ptr[m], eax); break;
            case 22: a.and(ebx, 7); break;
            case 23: a.movsx(x, __word_ptr[m]); break;
            default: a.sub(__qword_ptr[m], 5); break;
        }
    }

    private static byte[] Loop(int seed, int most) => CoreSmokeTests.Assemble(64, a =>
    {
        Random r = new(seed);
        Label again = a.CreateLabel(), over = a.CreateLabel(), end = a.CreateLabel();
        a.Label(ref again);
        for (int n = r.Next(1, most); n > 0; n--)
            Emit(a, r);
        if (r.Next(3) == 0)
        {
            a.jb(over);
            Emit(a, r);
            a.Label(ref over);
        }
        if (r.Next(4) == 0)
        {
            a.dec(r13d);
            a.jz(end);
            Emit(a, r);
            a.jmp(again);
        }
        else
        {
            a.dec(r13d);
            a.jnz(again);
        }
        a.Label(ref end);
        a.mov(__qword_ptr[rsi], rax);
        a.mov(__qword_ptr[rsi + 8], rdx);
        a.hlt();
    });

    private static void Prepare(CpuHarness h, int seed)
    {
        Fill(h, seed);
        Random r = new(seed);
        CpuState* c = h.State;
        c->Gpr[3] = (ulong)r.Next(8);
        // Near the ends of pages, and in one of them, together and apart.
        ulong Pointer(int unit) => Data + 0x8000 + (ulong)r.Next(4) * Page + (ulong)(r.Next(-256, 256) & -unit);
        (c->Gpr[6], c->Gpr[7], c->Gpr[14]) = (Pointer(1), Pointer(8), Pointer(r.Next(8) == 0 ? 8 : 16));
        if (r.Next(3) == 0)
            c->Gpr[7] = c->Gpr[6] + (ulong)r.Next(64);
        c->Gpr[13] = (ulong)r.Next(1, 40);
    }

    /// <summary>Random loops over the ends of pages.</summary>
    [Fact]
    public void Loops()
    {
        ulong translated = 0;
        int ends = 0;
        for (int seed = 1; seed <= 1500; seed++)
        {
            using RegionMachine m = new(Loop(seed, 9), h => Prepare(h, seed));
            ends += m.Run($"seed {seed}") == ExitReason.Hlt ? 1 : 0;
            translated += m.Translated;
        }
        Assert.True(ends is > 700 and < 1500 && translated > 100_000, $"{ends} ends, {translated} translated instructions");
    }

    /// <summary>
    /// A page that is not there, that cannot be written, and that has not been accessed: the exit is that of the access, and no bit is set before it.
    /// </summary>
    [Fact]
    public void PagesThatFail()
    {
        int left = 0;
        for (int seed = 1; seed <= 400; seed++)
            for (int how = 0; how < 3; how++)
            {
                ulong gone = Data + 0x8000 + (ulong)(seed % 5 - 1) * Page, kept = how switch { 0 => 0UL, 1 => NestedPte.RWX, _ => NestedPte.R | NestedPte.X };
                string what = $"seed {seed}, {gone:x} as {kept:x}";
                using RegionMachine m = new(Loop(seed, 9), h =>
                {
                    Prepare(h, seed);
                    h.NestedEntry(gone) = kept == 0 ? 0 : (ulong)(h.Memory + gone) | kept;
                });
                bool failed = m.Run(what) == ExitReason.NestedFault;
                Assert.True((m.Fast.NestedEntry(gone) & 0xfff) == (m.Slow.NestedEntry(gone) & 0xfff),
                    $"{what}: {m.Fast.NestedEntry(gone) & 0xfff:x}, singly {m.Slow.NestedEntry(gone) & 0xfff:x}");
                if (!failed)
                    continue;
                left++;
                m.Fast.NestedEntry(gone) = (ulong)(m.Fast.Memory + gone) | NestedPte.RWX;
                m.Slow.NestedEntry(gone) = (ulong)(m.Slow.Memory + gone) | NestedPte.RWX;
                m.Fast.Cpu.FlushAll();
                m.Slow.Cpu.FlushAll();
                m.Run(what + ", and then");
            }
        Assert.True(left > 200, $"left {left} times");
    }

    /// <summary>It is time to look at the clock from each count of instructions on, and the processor looks between rounds.</summary>
    [Fact]
    public void LeftAtEveryPoll()
    {
        for (int seed = 1; seed <= 60; seed++)
            for (ulong count = 1; count < 400; count += 1 + count / 8)
            {
                using RegionMachine m = new(Loop(seed, 5), h => Prepare(h, seed));
                if (m.RunTo(count, $"seed {seed}, from {count}"))
                    m.Run($"seed {seed}, from {count} to the end");
            }
    }

    /// <summary>The window lies across two pages at every place; a second window in the same trace does not.</summary>
    [Fact]
    public void WindowsThatFailAtEachByte()
    {
        for (ulong back = 0; back <= 64; back++)
            for (int order = 0; order < 3; order++)
            {
                using RegionMachine m = new(a =>
                {
                    a.add(rcx, rdx);
                    a.mov(rax, __qword_ptr[rdi]);
                    int[] offsets = order switch { 0 => [0, 24, 56], 1 => [56, 24, 0], _ => [24, 0, 56] };
                    foreach (int offset in offsets)
                    {
                        a.adc(__qword_ptr[rsi + offset], rax);
                        a.adc(rax, __qword_ptr[rdi + offset]);
                    }
                    a.setc(cl);
                    a.hlt();
                }, h =>
                {
                    Fill(h, (int)back);
                    h.State->Gpr[6] = Data + Page - back;
                    h.State->Gpr[7] = Data + 3 * Page + 8 * back;
                });
                for (int round = 0; round < 3; round++)
                {
                    Assert.Equal(ExitReason.Hlt, m.Run($"{back} bytes in front of a page, {order}, {round}"));
                    foreach (CpuHarness h in new[] { m.Fast, m.Slow })
                        h.State->Rip = CpuHarness.CodeAddress;
                }
            }
    }

    /// <summary>
    /// Windows that are open one after the other, and across two pages at every place, with the carry in the host's flags between them: what has failed at
    /// one goes on with the others.
    /// </summary>
    [Fact]
    public void GroupsOfWindowsThatFailAtEachByte()
    {
        for (ulong back = 0; back <= 40; back++)
            for (int which = 0; which < 8; which++)
            {
                using RegionMachine m = new(a =>
                {
                    a.add(rcx, rdx);
                    foreach (AssemblerRegister64 pointer in new[] { rsi, rdi, r14 })
                    {
                        a.adc(rax, __qword_ptr[pointer]);
                        a.adc(__qword_ptr[pointer + 24], rax);
                        a.adc(rdx, r8);
                        a.mov(r12, rdx);
                    }
                    a.setc(cl);
                    a.hlt();
                }, h =>
                {
                    Fill(h, (int)back);
                    ulong Pointer(int n) => Data + (ulong)(2 * n + 1) * Page - ((which >> n & 1) != 0 ? back : 64);
                    (h.State->Gpr[6], h.State->Gpr[7], h.State->Gpr[14]) = (Pointer(0), Pointer(1), Pointer(2));
                });
                for (int round = 0; round < 3; round++)
                {
                    Assert.Equal(ExitReason.Hlt, m.Run($"{back} bytes in front of a page, {which}, {round}"));
                    foreach (CpuHarness h in new[] { m.Fast, m.Slow })
                        h.State->Rip = CpuHarness.CodeAddress;
                }
            }
    }

    /// <summary>Stores whose window holds code: into what runs next, into the round that follows, and beside the code.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(64)]
    [InlineData(512)]
    public void StoresIntoCode(int away)
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel(), patched = a.CreateLabel();
            a.lea(rsi, __[patched]);
            a.add(rsi, away);
            a.mov(r13d, 20);
            a.Label(ref again);
            a.inc(eax);
            a.mov(__byte_ptr[rsi + 1], al);
            a.mov(__byte_ptr[rsi + 2], ah);
            a.mov(__byte_ptr[rsi + 3], 0);
            a.Label(ref patched);
            a.mov(ecx, 7);
            a.add(edx, ecx);
            a.dec(r13d);
            a.jnz(again);
            a.hlt();
        });
        using RegionMachine m = new(code, h => Fill(h, 1));
        m.Fast.State->Gpr[0] = m.Slow.State->Gpr[0] = 0;
        Assert.Equal(ExitReason.Hlt, m.Run($"{away} away"));
        Assert.True(m.Translated > 0);
    }

    /// <summary>Another processor's code in the page of a window: it is dropped by a store into it, which no longer sees an empty page.</summary>
    [Fact]
    public void CodeThatComesIntoTheWindowsPage()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            a.mov(__qword_ptr[rsi], rax);
            a.mov(__qword_ptr[rsi + 8], rdx);
            a.mov(r12, __qword_ptr[rsi]);
            a.call(rsi);
            a.hlt();
        });
        byte[] first = CoreSmokeTests.Assemble(64, a => { a.mov(ebx, 1); a.ret(); a.nop(); a.nop(); });
        using RegionMachine m = new(code, h => Fill(h, 2));
        for (int value = 1; value < 6; value++)
        {
            first[1] = (byte)value;
            foreach (CpuHarness h in new[] { m.Fast, m.Slow })
            {
                h.State->Rip = CpuHarness.CodeAddress;
                h.State->Gpr[6] = Data + 0x200;
                h.State->Gpr[0] = BitConverter.ToUInt64(first);
            }
            Assert.Equal(ExitReason.Hlt, m.Run($"value {value}"));
            Assert.Equal((ulong)value, m.Fast.State->Gpr[3]);
        }
    }
}

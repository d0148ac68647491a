using Iced.Intel;
using Ring3.Host;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Flags that stay in the host's over accesses of windows, against single steps of the interpreter.</summary>
/// <remarks>SAFETY: works on the harness's state and memory.</remarks>
public sealed unsafe class CarryTests
{
    private const ulong Data = RegionMachine.Data, Page = 0x1000;

    private static void Fill(CpuHarness h, int seed)
    {
        Random r = new(seed);
        RegionMachine.Fill(h, r);
        ulong Pointer(int n) => Data + 0x8000 + (ulong)n * Page + (ulong)(r.Next(4) == 0 ? r.Next(-128, 128) : r.Next(256, 3072));
        (h.State->Gpr[6], h.State->Gpr[7], h.State->Gpr[13]) = (Pointer(r.Next(3)), Pointer(r.Next(3)), (ulong)r.Next(1, 40));
    }

    /// <summary>One of a chain's instructions; RSI and RDI point to data.</summary>
    private static void Emit(Assembler a, Random r)
    {
        AssemblerRegister64 pointer = r.Next(2) == 0 ? rsi : rdi, x = new[] { rax, rcx, rdx, r8, r9, r12, r15 }[r.Next(7)];
        AssemblerMemoryOperand m = __[pointer + r.Next(-60, 60)];
        switch (r.Next(26))
        {
            case 0 or 1: a.adc(x, __qword_ptr[m]); break;
            case 2 or 3: a.adc(__qword_ptr[m], x); break;
            case 4: a.sbb(__dword_ptr[m], ecx); break;
            case 5: a.sbb(x, __qword_ptr[m]); break;
            case 6: a.adc(__word_ptr[m], 0x1234); break;
            case 7: a.rcl(__byte_ptr[m], 1); break;
            case 8: a.rcr(x, 1); break;
            case 9: a.inc(__dword_ptr[m]); break;
            case 10: a.dec(rcx); break;
            case 11 or 12: a.mov(x, __qword_ptr[m]); break;
            case 13 or 14: a.mov(__qword_ptr[m], x); break;
            case 15: a.setc(__byte_ptr[m]); break;
            case 16: a.lea(pointer, __[pointer + 8]); break;
            case 17: a.cmovo(x, __qword_ptr[m]); break;
            case 18: a.imul(x, __qword_ptr[m]); break;
            case 19: a.adcx(rax, __qword_ptr[m]); break;
            case 20: a.add(__qword_ptr[m], x); break;
            case 21: a.cmp(x, __qword_ptr[m]); break;
            case 22: a.movups(xmm0, __xmmword_ptr[m]); break;
            case 23: a.movups(__xmmword_ptr[m], xmm0); break;
            case 24: a.shl(x, 1); break;
            default: a.cmc(); break;
        }
    }

    /// <summary>A loop of chains, with a branch out of it and one over an instruction.</summary>
    private static byte[] Loop(int seed) => CoreSmokeTests.Assemble(64, a =>
    {
        Random r = new(seed);
        Label again = a.CreateLabel(), over = a.CreateLabel(), end = a.CreateLabel();
        a.clc();
        a.Label(ref again);
        for (int n = r.Next(2, 9); n > 0; n--)
            Emit(a, r);
        if (r.Next(4) == 0)
            a.jo(end);
        if (r.Next(3) == 0)
        {
            a.jc(over);
            Emit(a, r);
            a.Label(ref over);
        }
        for (int n = r.Next(0, 3); n > 0; n--)
            Emit(a, r);
        a.dec(r13d);
        a.jnz(again);
        a.Label(ref end);
        a.setc(bl);
        a.seto(bh);
        a.hlt();
    });

    [Fact]
    public void Chains()
    {
        ulong translated = 0;
        for (int seed = 1; seed <= 500; seed++)
        {
            using RegionMachine m = new(Loop(seed), h => Fill(h, seed));
            // IMUL and SHL leave some undefined, which nothing in the chains reads.
            m.FlagMask = ~0xd4UL;
            Assert.Equal(ExitReason.Hlt, m.Run($"seed {seed}"));
            translated += m.Translated;
        }
        Assert.True(translated > 20_000, $"{translated} translated instructions");
    }

    /// <summary>It is time to look at the clock from each count of instructions on.</summary>
    [Fact]
    public void ChainsLeftAtEveryPoll()
    {
        for (int seed = 1; seed <= 15; seed++)
            for (ulong count = 1; count < 300; count += 1 + count / 8)
            {
                using RegionMachine m = new(Loop(seed), h => Fill(h, seed));
                m.FlagMask = ~0xd4UL;
                if (m.RunTo(count, $"seed {seed}, from {count}"))
                    m.Run($"seed {seed}, from {count} to the end");
            }
    }

    /// <summary>
    /// The host's memory can be read and not written, so that a chain fails at its first store, when its window has been opened and the carry is in the
    /// host's flags.
    /// </summary>
    [Fact]
    public void StoresThatFaultInTheMiddle()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            a.mov(rax, __[rsi]);
            a.mov(rdx, __[rsi + 8]);
            a.adc(rax, rcx);
            a.adc(rdx, __[rsi + 16]);
            a.mov(r8, __[rsi + 24]);
            a.adc(__qword_ptr[rsi + 32], rdx);
            a.inc(rcx);
            a.mov(__[rsi + 40], rcx);
            a.rcl(__qword_ptr[rsi + 48], 1);
            a.setc(bl);
            a.hlt();
        });
        int faults = 0;
        for (int seed = 1; seed <= 64; seed++)
        {
            using RegionMachine m = new(code, h => Fill(h, seed));
            CpuHarness gone = m.Fast;
            nint ticket = FaultGuard.AddGuestMemory((ulong)gone.Memory, (ulong)gone.Memory + gone.Size);
            try
            {
                // What the first pass has brought into level 1 lets the second one's window open.
                for (int pass = 0; pass < 2; pass++)
                {
                    foreach (CpuHarness h in new[] { m.Fast, m.Slow })
                    {
                        (h.State->Rip, h.State->Gpr[6]) = (CpuHarness.CodeAddress, Data + 0x8100);
                        (h.State->Gpr[1], h.RflagsValue) = ((ulong)-(seed & 1), 2UL | (ulong)(seed >> 1 & 1) | (ulong)(seed >> 2 & 1) << 11);
                        h.Word(Data + 0x8110) = seed % 3 == 0 ? ulong.MaxValue : (ulong)seed;
                    }
                    HostMemory.Protect(gone.Memory + Data + 0x8000, 0x1000, true, pass == 0);
                    ExitReason reason;
                    while ((reason = gone.Run()) == ExitReason.MemoryFailure)
                    {
                        faults++;
                        HostMemory.Protect((void*)(gone.Exit->Host & ~0xfffUL), 4096, true, true);
                    }
                    Assert.Equal((ExitReason.Hlt, ExitReason.Hlt), (reason, m.Slow.Run()));
                    m.Compare($"seed {seed}, pass {pass}");
                }
            }
            finally
            {
                FaultGuard.RemoveGuestMemory(ticket);
            }
        }
        Assert.Equal(64, faults);
    }

    /// <summary>
    /// One processor adds with carry, in one window, into a page in which the other executes code: what its stores drop while the carry is in the host's flags
    /// changes no sum, and no register.
    /// </summary>
    [Fact]
    public void CodeComesIntoTheWindowsPage()
    {
        const ulong called = Data + 0x800, counters = Data + 0x900;
        const int rounds = 40_000;
        using CpuHarness adder = CpuHarness.Long([]);
        adder.Machine.TranslationThreshold = 0;
        CpuHarness caller = CpuHarness.Long([], machine: adder.Machine, memory: adder.Memory);
        adder.Write(called, CoreSmokeTests.Assemble(64, a => { a.inc(rax); a.ret(); }, called));
        adder.Write(CpuHarness.CodeAddress, CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.mov(rsi, called - 0x20);
            a.mov(rcx, 0x1234_5678_9abcL);
            a.mov(r13d, rounds);
            a.Label(ref again);
            // The bytes of the code stay what they are: they are stored again, and dropped with that.
            a.mov(rdx, __[rsi + 0x20]);
            a.stc();
            a.mov(__[rsi + 0x20], rdx);
            a.adc(__qword_ptr[rsi], -1);
            a.mov(__[rsi + 0x20], rdx);
            a.adc(__qword_ptr[rsi + 8], 0);
            a.mov(__[rsi + 0x20], rdx);
            a.adc(r8, 0);
            a.mov(__[rsi + 0x20], rdx);
            a.dec(r13d);
            a.jnz(again);
            a.hlt();
        }));
        caller.Write(Data + 0x1_0000, CoreSmokeTests.Assemble(64, a =>
        {
            Label again = a.CreateLabel();
            a.mov(rsi, counters + 0x1000);
            a.Label(ref again);
            a.call(called);
            a.cmp(__dword_ptr[rsi], 0);
            a.je(again);
            a.hlt();
        }, Data + 0x1_0000));
        caller.State->Rip = Data + 0x1_0000;
        caller.State->Gpr[4] = CpuHarness.StackTop;
        adder.Word(called - 0x20) = 5;
        Thread thread = new(caller.RunToHlt);
        thread.Start();
        adder.RunToHlt();
        adder.Word(counters + 0x1000) = 1;
        thread.Join();
        // Adding all ones and a carry changes nothing and carries.
        Assert.Equal((5UL, (ulong)rounds, 0UL, 0x1234_5678_9abcUL),
            (adder.Word(called - 0x20), adder.Word(called - 0x18), adder.State->Gpr[8], adder.Rcx));
        Assert.True(adder.Cpu.Translator.Counters.Translated > 0);
    }
}

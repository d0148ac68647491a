using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>Locked accesses across a cache line: whole for every processor, without a split lock of the host.</summary>
public sealed unsafe class SplitLockTests
{
    /// <summary>One byte below the end of a line, so that every 256th increment carries into the next line; and the same at the end of a page.</summary>
    private const ulong InPage = CpuHarness.DataAddress + 64 - 1, AcrossPages = CpuHarness.DataAddress + 4096 - 1;
    private const int Rounds = 3000;

    /// <summary>Ways to add 1 to the number at rsi; registers but rsi and ecx are theirs.</summary>
    private static readonly Dictionary<string, (int Size, Action<Assembler> Code)> s_forms = new()
    {
        ["inc"] = (8, a => a.@lock.inc(__qword_ptr[rsi])),
        ["add"] = (8, a => a.@lock.add(__qword_ptr[rsi], 1)),
        ["sub"] = (8, a => a.@lock.sub(__qword_ptr[rsi], -1)),
        ["adc"] = (8, a => { a.stc(); a.@lock.adc(__qword_ptr[rsi], 0); }),
        ["sbb"] = (8, a => { a.stc(); a.@lock.sbb(__qword_ptr[rsi], -2); }),
        ["xadd"] = (8, a => { a.mov(eax, 1); a.@lock.xadd(__qword_ptr[rsi], rax); }),
        ["cmpxchg"] = (8, a =>
        {
            Label again = a.CreateLabel();
            a.mov(rax, __qword_ptr[rsi]);
            a.Label(ref again);
            a.lea(rdx, __[rax + 1]);
            a.@lock.cmpxchg(__qword_ptr[rsi], rdx);
            a.jne(again);
        }),
        ["cmpxchg8b"] = (8, a =>
        {
            Label again = a.CreateLabel();
            a.mov(eax, __dword_ptr[rsi]);
            a.mov(edx, __dword_ptr[rsi + 4]);
            a.Label(ref again);
            a.mov(ebx, eax);
            a.mov(edi, edx);
            a.add(ebx, 1);
            a.adc(edi, 0);
            a.xchg(rcx, rdi);
            a.@lock.cmpxchg8b(__qword_ptr[rsi]);
            a.xchg(rcx, rdi);
            a.jne(again);
        }),
        ["add32"] = (4, a => a.@lock.add(__dword_ptr[rsi], 1)),
        ["xadd32"] = (4, a => { a.mov(eax, 1); a.@lock.xadd(__dword_ptr[rsi], eax); }),
        ["inc16"] = (2, a => a.@lock.inc(__word_ptr[rsi])),
        ["add16"] = (2, a => a.@lock.add(__word_ptr[rsi], 1)),
        // Spin locks in the four bytes before the plain number at rsi: 128 bytes further on, across a line as well.
        ["xchg"] = (8, a => Locked(a, again => { a.mov(eax, -1); a.xchg(__dword_ptr[rsi + 128], eax); a.test(eax, eax); a.jnz(again); }, () =>
            a.xchg(__dword_ptr[rsi + 128], eax))),
        ["bts, btr"] = (8, a => Locked(a, again => { a.@lock.bts(__dword_ptr[rsi + 256], 30); a.jc(again); }, () => a.@lock.btr(__dword_ptr[rsi + 256], 30))),
        ["btc"] = (8, a => Locked(a, again => { a.@lock.bts(__dword_ptr[rsi + 384], 9); a.jc(again); }, () => a.@lock.btc(__dword_ptr[rsi + 384], 9))),
        ["or, and"] = (8, a => Locked(a, again => { a.@lock.bts(__dword_ptr[rsi + 512], 3); a.jc(again); }, () =>
            { a.@lock.or(__dword_ptr[rsi + 512], 0x300); a.@lock.and(__dword_ptr[rsi + 512], 0); })),
        ["xor, neg, not"] = (8, a => Locked(a, again => { a.@lock.bts(__dword_ptr[rsi + 640], 0); a.jc(again); },
            () => { a.@lock.neg(__dword_ptr[rsi + 640]); a.@lock.not(__dword_ptr[rsi + 640]); a.@lock.xor(__dword_ptr[rsi + 640], 0); })),
    };

    private static void Locked(Assembler a, Action<Label> take, Action release)
    {
        Label again = a.CreateLabel();
        a.Label(ref again);
        take(again);
        a.inc(__qword_ptr[rsi]);
        a.xor(eax, eax);
        release();
    }

    private static byte[] Loop(Action<Assembler> body, ulong counter, int rounds, ulong at) => CoreSmokeTests.Assemble(64, x =>
    {
        Label loop = x.CreateLabel();
        x.mov(ecx, rounds);
        x.mov(rsi, counter);
        x.Label(ref loop);
        x.nop();
        body(x);
        x.dec(ecx);
        x.jnz(loop);
        x.hlt();
    }, at);

    /// <summary>Runs code on one processor each, all in one machine and memory.</summary>
    private static CpuHarness Run(params (Action<Assembler> Body, ulong Counter, int Rounds)[] programs) => Run(null, programs);

    private static CpuHarness Run(Action<CpuHarness[], Func<bool>>? beside, params (Action<Assembler> Body, ulong Counter, int Rounds)[] programs)
    {
        var all = new CpuHarness[programs.Length];
        for (int i = 0; i < all.Length; i++)
        {
            ulong at = CpuHarness.CodeAddress + (ulong)i * 0x1000;
            all[i] = CpuHarness.Long([], machine: i == 0 ? null : all[0].Machine, memory: i == 0 ? null : all[0].Memory);
            all[i].Write(at, Loop(programs[i].Body, programs[i].Counter, programs[i].Rounds, at));
            all[i].State->Rip = at;
        }
        int running = all.Length;
        using Barrier start = new(all.Length);
        List<Exception> failures = [];
        Thread[] threads = [.. all.Select(h => new Thread(() =>
        {
            start.SignalAndWait();
            try
            {
                h.RunToHlt();
            }
            catch (InvalidOperationException e)
            {
                lock (failures)
                    failures.Add(e);
            }
            Interlocked.Decrement(ref running);
        }))];
        foreach (Thread t in threads)
            t.Start();
        beside?.Invoke(all, () => Volatile.Read(ref running) != 0);
        foreach (Thread t in threads)
            t.Join();
        Assert.Empty(failures);
        return all[0];
    }

    private static ulong Number(CpuHarness h, ulong address, int size) => size switch
    {
        2 => *(ushort*)(h.Memory + address),
        4 => *(uint*)(h.Memory + address),
        _ => *(ulong*)(h.Memory + address),
    };

    public static TheoryData<string, string, ulong> Pairs()
    {
        TheoryData<string, string, ulong> data = [];
        string[] names = [.. s_forms.Keys];
        for (int i = 0; i < names.Length; i++)
            foreach (ulong at in (ulong[])[InPage, AcrossPages])
            {
                data.Add(names[i], names[i], at);
                // Another of the same width that needs no lock around the number; with those that do, it is themselves only.
                string other = names[(i + 1) % 8];
                if (i < 8)
                    data.Add(names[i], other, at);
            }
        return data;
    }

    [Theory]
    [MemberData(nameof(Pairs))]
    public void NoUpdateIsLost(string first, string second, ulong counter)
    {
        var (size, code) = s_forms[first];
        using CpuHarness h = Run((code, counter, Rounds), (s_forms[second].Code, counter, Rounds));
        Assert.Equal((ulong)(2 * Rounds) & ulong.MaxValue >> 64 - 8 * size, Number(h, counter, size));
        Assert.True(h.Machine.BusLocks >= 2 * Rounds, $"{h.Machine.BusLocks} bus locks");
    }

    /// <summary>What the tests above would miss if they could not see it: without LOCK, updates are lost.</summary>
    [Fact]
    public void Control_WithoutTheLockUpdatesAreLost()
    {
        Assert.SkipWhen(Environment.ProcessorCount < 2, "needs two processors");
        // Longer than the turns that a busy host gives to threads.
        const int Many = 5_000_000;
        for (int round = 0; round < 40; round++)
        {
            using CpuHarness h = Run((a => a.inc(__qword_ptr[rsi]), InPage, Many), (a => a.inc(__qword_ptr[rsi]), InPage, Many));
            if (Number(h, InPage, 8) != 2 * Many)
                return;
        }
        Assert.Fail("two processors never lost an update of a plain increment");
    }

    [Fact]
    public void FourProcessorsTakeTurns()
    {
        Action<Assembler> inc = s_forms["inc"].Code, pair = s_forms["cmpxchg8b"].Code;
        using CpuHarness h = Run((inc, InPage, Rounds), (pair, InPage, Rounds), (inc, AcrossPages, Rounds), (pair, AcrossPages, Rounds));
        Assert.Equal((2UL * Rounds, 2UL * Rounds), (Number(h, InPage, 8), Number(h, AcrossPages, 8)));
    }

    /// <summary>One processor locks the bus without end; another that needs no bus comes to its end.</summary>
    [Fact]
    public void EndlessSplitLocks_LeaveOthersTheirTurn()
    {
        using CpuHarness h = Run(
            (a =>
            {
                Label again = a.CreateLabel();
                a.Label(ref again);
                a.@lock.inc(__qword_ptr[rsi]);
                a.cmp(__dword_ptr[CpuHarness.DataAddress + 0x2000], 0);
                a.je(again);
            }, InPage, 1),
            (a =>
            {
                Label last = a.CreateLabel();
                a.cmp(ecx, 1);
                a.jne(last);
                a.mov(__dword_ptr[CpuHarness.DataAddress + 0x2000], 1);
                a.Label(ref last);
                a.nop();
            }, InPage, 200_000));
        Assert.NotEqual(0UL, Number(h, InPage, 8));
    }

    [Theory]
    [InlineData(InPage)]
    [InlineData(AcrossPages)]
    public void Kicks_LoseNothing(ulong counter)
    {
        using CpuHarness h = Run((all, running) =>
        {
            while (running())
                foreach (CpuHarness h in all)
                    h.Cpu.RequestExit();
        }, (s_forms["add"].Code, counter, Rounds), (s_forms["cmpxchg"].Code, counter, Rounds));
        Assert.Equal(2UL * Rounds, Number(h, counter, 8));
    }

    /// <summary>The owner's threads change aligned words that share bytes or neighbours with the operand: neither side loses an update.</summary>
    [Theory]
    [InlineData("add")]
    [InlineData("cmpxchg")]
    public void AlignedAtomicsOfTheOwner_LoseNothing(string form)
    {
        const ulong counter = CpuHarness.DataAddress + 64 - 4;
        long neighbour = 0, high = 0;
        using CpuHarness h = Run((all, running) =>
        {
            byte* memory = all[0].Memory;
            while (running() && high < 0x7000)
            {
                Interlocked.Increment(ref *(uint*)(memory + counter - 4));
                neighbour++;
                if ((neighbour & 63) == 0)
                {
                    Interlocked.Add(ref *(uint*)(memory + counter + 4), 0x10000);
                    high++;
                }
            }
        }, (s_forms[form].Code, counter, 20_000), (s_forms[form].Code, counter, 20_000));
        Assert.Equal(40_000UL + ((ulong)high << 48), Number(h, counter, 8));
        Assert.Equal((uint)neighbour, Number(h, counter - 4, 4));
    }

    /// <summary>
    /// A number grows by locked additions whose low half overflows again and again. A processor that reads the halves apart, the upper one before and
    /// after, must never see it shrink: it would between two separate writes.
    /// </summary>
    [Fact]
    public void ReaderOfAlignedHalves_NeverSeesOneWithoutTheOther()
    {
        const ulong counter = CpuHarness.DataAddress + 64 - 2;
        const int steps = 10_000, step = 0x3fff;
        using CpuHarness h = Run(
            (a => a.@lock.add(__dword_ptr[rsi], step), counter, steps),
            (a =>
            {
                Label again = a.CreateLabel(), shrunk = a.CreateLabel();
                a.xor(ebx, ebx);
                a.Label(ref again);
                a.movzx(eax, __word_ptr[rsi + 2]);
                a.movzx(edx, __word_ptr[rsi]);
                a.movzx(edi, __word_ptr[rsi + 2]);
                a.cmp(eax, edi);
                a.jne(again);
                a.shl(eax, 16);
                a.or(eax, edx);
                a.cmp(eax, ebx);
                a.jb(shrunk);
                a.mov(ebx, eax);
                a.cmp(eax, steps * step);
                a.jne(again);
                a.mov(__dword_ptr[CpuHarness.DataAddress + 0x2000], 1);
                a.Label(ref shrunk);
                a.nop();
            }, counter, 1));
        Assert.Equal(1UL, Number(h, CpuHarness.DataAddress + 0x2000, 4));
    }

    public static TheoryData<string> Forms => [.. s_forms.Keys.Take(8)];

    /// <summary>The second page can not be written: nothing has changed, and the instruction is executed whole when it can.</summary>
    [Theory]
    [MemberData(nameof(Forms))]
    public void FaultOfOnePage_ChangesNothing(string form)
    {
        foreach (ulong denied in (ulong[])[AcrossPages & ~0xfffUL, (AcrossPages & ~0xfffUL) + 4096])
        {
            using CpuHarness h = CpuHarness.Long(Loop(s_forms[form].Code, AcrossPages, 1, CpuHarness.CodeAddress));
            *(ulong*)(h.Memory + AcrossPages) = 0x11_ffff;
            ulong entry = h.NestedEntry(denied);
            h.NestedEntry(denied) = entry & ~NestedPte.W;
            Assert.Equal(ExitReason.NestedFault, h.Run());
            Assert.Equal(denied, h.Exit->Gpa & ~0xfffUL);
            Assert.Equal(0x11_ffffUL, Number(h, AcrossPages, 8));
            ulong rip = h.State->Rip;
            Assert.Equal(ExitReason.NestedFault, h.Run());
            Assert.Equal(rip, h.State->Rip);
            h.NestedEntry(denied) = entry;
            h.Cpu.Paging.Tlb.FlushAll();
            h.RunToHlt();
            Assert.Equal(0x12_0000UL, Number(h, AcrossPages, 8));
        }
    }

    /// <summary>The accessed bit of a descriptor that crosses a line, against a processor that counts in the descriptor's next byte but one.</summary>
    [Fact]
    public void DescriptorAcrossALine_KeepsItsNeighbours()
    {
        const ulong counter = CpuHarness.DataAddress + 64 + 1;
        using CpuHarness h = Run((a => a.@lock.inc(__word_ptr[rsi]), counter, 10_000), (a =>
        {
            // The descriptor begins six bytes before the counter: its access byte is the last of the line.
            a.sub(rsi, 7);
            a.mov(__byte_ptr[rsi + 5], 0x92);
            a.mov(__word_ptr[CpuHarness.DataAddress + 0x2000], 15);
            a.lea(rdi, __[rsi - 8]);
            a.mov(__qword_ptr[CpuHarness.DataAddress + 0x2002], rdi);
            a.lgdt(__[CpuHarness.DataAddress + 0x2000]);
            a.mov(eax, 8);
            a.mov(ds, eax);
            a.add(rsi, 7);
        }, counter, 3000));
        Assert.Equal(10_000UL, Number(h, counter, 2));
        Assert.Equal(0x93, h.Memory[counter - 2]);
    }
}

using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Integer and system instructions in translated code, against single steps of the interpreter; and what must leave translated code.</summary>
public sealed unsafe class IntegerRegionTests
{
    private const ulong Data = CpuHarness.DataAddress;

    /// <summary>
    /// Instructions that work on memory while flags are live, and those that are written out. RSI and R14 point to data; what leaves flags undefined is
    /// followed by what defines them.
    /// </summary>
    private static void Emit(Assembler a, Random r)
    {
        int offset = r.Next(40) == 0 ? 4096 - 4 : r.Next(64) * 8 + (r.Next(8) == 0 ? r.Next(8) : 0);
        AssemblerMemoryOperand m = (r.Next(2) == 0 ? rsi : r14) + offset;
        AssemblerRegister64 x = new[] { rax, rcx, rdx, rbx, r8, r9, r10, r12 }[r.Next(8)];
        AssemblerRegister32 y = new[] { eax, ecx, edx, ebx, r8d, r11d }[r.Next(6)];
        AssemblerRegister16 z = new[] { ax, cx, r9w, bx }[r.Next(4)];
        switch (r.Next(74))
        {
            case 0: a.inc(__dword_ptr[m]); break;
            case 1: a.dec(__qword_ptr[m]); break;
            case 2: a.@lock.inc(__word_ptr[m]); break;
            case 3: a.adc(__dword_ptr[m], y); break;
            case 4: a.sbb(__qword_ptr[m], 7); break;
            case 5: a.@lock.adc(__byte_ptr[m], cl); break;
            case 6: a.shl(__dword_ptr[m], 1); a.test(x, x); break;
            case 7: a.rcr(__qword_ptr[m], 1); a.test(x, x); break;
            case 8: a.rol(__dword_ptr[m], cl); a.or(y, y); break;
            case 9: a.sar(__word_ptr[m], cl); a.cmp(y, y); break;
            case 10: a.setbe(__byte_ptr[m]); break;
            case 11: a.seto(__byte_ptr[m]); break;
            case 12: a.setp(bl); break;
            case 13: a.cmpxchg(__dword_ptr[m], y); break;
            case 14: a.@lock.cmpxchg(__qword_ptr[m], x); break;
            case 15: a.cmpxchg8b(__qword_ptr[m]); break;
            case 16: a.@lock.cmpxchg8b(__qword_ptr[m]); break;
            case 17: a.cmpxchg16b(__xmmword_ptr[m]); break;
            case 18: a.@lock.cmpxchg16b(__xmmword_ptr[r14 + 16 * r.Next(8)]); break;
            case 19: a.xadd(__dword_ptr[m], y); break;
            case 20: a.@lock.xadd(__qword_ptr[m], x); break;
            case 21: a.xchg(__dword_ptr[m], y); break;
            case 22: a.movbe(__qword_ptr[m], x); break;
            case 23: a.movbe(y, __dword_ptr[m]); break;
            case 24: a.bt(__dword_ptr[m], y); a.adc(x, 0); a.test(x, x); break;
            case 25: a.bts(__qword_ptr[m], rbp); a.setb(dl); a.test(x, x); break;
            case 26: a.@lock.btr(__dword_ptr[m], ebp); a.rcl(rbx, 1); a.test(x, x); break;
            case 27: a.btc(__word_ptr[m], bp); a.sbb(rax, rax); break;
            case 28: a.bt(__qword_ptr[m], 9); a.cmovb(x, rsi); a.test(x, x); break;
            case 29: a.bts(__dword_ptr[m], 30); a.setne(dl); a.test(x, x); break;
            case 30: a.xor(edx, edx); a.div(x); a.add(x, x); break;
            case 31: a.xor(edx, edx); a.div(__dword_ptr[m]); a.add(x, x); break;
            case 32: a.cqo(); a.idiv(__qword_ptr[m]); a.add(x, x); break;
            case 33: a.cdq(); a.idiv(y); a.add(x, x); break;
            case 34: a.mov(edx, 3); a.or(ebx, 0x100); a.div(ebx); a.add(x, x); break;
            case 35: a.cwd(); a.idiv(r9w); a.add(x, x); break;
            case 36: a.mov(dx, 1); a.or(r9w, 7); a.div(r9w); a.add(x, x); break;
            case 37: a.push(__qword_ptr[m]); break;
            case 38: a.pushfq(); a.pop(x); break;
            case 39: a.push(r.Next(2) == 0 ? 0x2 | r.Next(0x1000) & 0xad5 : 2 | r.Next(2) << 9 | r.Next(2) << 6); a.popfq(); break;
            case 40: a.cli(); break;
            case 41: a.sti(); a.inc(x); break;
            case 42: a.sti(); a.mov(__dword_ptr[m], y); break;
            case 43: a.sti(); a.nop(); a.cli(); break;
            case 44: a.cld(); break;
            case 45: a.std(); a.cld(); break;
            case 46: a.swapgs(); break;
            case 47: a.mov(y, ds); break;
            case 48: a.mov(x, cs); break;
            case 49: a.mfence(); break;
            case 50: a.lahf(); break;
            case 51: a.sahf(); break;
            case 52: a.cmovg(z, __word_ptr[m]); break;
            case 53: a.adc(__byte_ptr[m], 9); break;
            case 54: a.adc(dl, __byte_ptr[m]); break;
            case 55: a.prefetchw(__byte_ptr[m]); a.lfence(); break;
            case 56: a.add(__dword_ptr[m], y); break;
            case 57: a.cmp(x, __qword_ptr[m]); break;
            case 58: a.sub(x, 3); break;
            case 66 or 67 or 68 or 69 or 70 or 71: Stacked(a, r); break;
            case 59 or 60 or 61: Repeat(a, r); break;
            case 62 or 72: RepeatComparison(a, r); break;
            default: a.mov(r10, __qword_ptr.gs[8 * r.Next(4)]); break;
        }
    }

    /// <summary>REP CMPS or REP SCAS, of what is equal and what is not; RSI comes back.</summary>
    private static void RepeatComparison(Assembler a, Random r)
    {
        int size = 1 << r.Next(4), count = r.Next(6) == 0 ? r.Next(1, 5000 / size) : r.Next(0, 40), from = r.Next(0x1000);
        bool down = r.Next(12) == 0, untilEqual = r.Next(2) == 0;
        a.mov(rsi, (long)Data + from);
        a.mov(rdi, (long)Data + (r.Next(2) == 0 ? from : r.Next(0x1000)));
        a.mov(ecx, count);
        if (r.Next(3) == 0)
            a.mov(rax, __[rdi + size * r.Next(20)]);
        if (r.Next(6) == 0)
            a.mov(rcx, -1L);
        if (down)
            a.std();
        Assembler repeated = untilEqual ? a.repne : a.repe;
        switch (size, r.Next(2))
        {
            case (1, 0): repeated.cmpsb(); break;
            case (2, 0): repeated.cmpsw(); break;
            case (4, 0): repeated.cmpsd(); break;
            case (8, 0): repeated.cmpsq(); break;
            case (1, _): repeated.scasb(); break;
            case (2, _): repeated.scasw(); break;
            case (4, _): repeated.scasd(); break;
            default: repeated.scasq(); break;
        }
        if (down)
            a.cld();
        a.lea(r8, __[rdi + rsi]);
        a.mov(rsi, (long)Data + 0x400);
        if (r.Next(2) == 0)
            a.adc(rdx, rcx);
    }

    /// <summary>A REP instruction over parts of the data, the pages' ends and what may not be there; RSI comes back.</summary>
    private static void Repeat(Assembler a, Random r)
    {
        int size = 1 << r.Next(4), count = r.Next(6) == 0 ? r.Next(1, 5000 / size) : r.Next(0, 40);
        int from = r.Next(0x1000), to = r.Next(0x1000) + (r.Next(6) == 0 ? 0x800 : 0);
        bool down = r.Next(12) == 0;
        a.mov(rsi, (long)Data + from);
        a.mov(rdi, (long)Data + to);
        a.mov(ecx, count);
        if (down)
            a.std();
        switch (size, r.Next(2))
        {
            case (1, 0): a.rep.stosb(); break;
            case (2, 0): a.rep.stosw(); break;
            case (4, 0): a.rep.stosd(); break;
            case (8, 0): a.rep.stosq(); break;
            case (1, _): a.rep.movsb(); break;
            case (2, _): a.rep.movsw(); break;
            case (4, _): a.rep.movsd(); break;
            default: a.rep.movsq(); break;
        }
        if (down)
            a.cld();
        a.lea(r8, __[rdi + rsi]);
        a.mov(rsi, (long)Data + 0x400);
    }

    private static readonly AssemblerRegister64[] s_pushed = [rax, rcx, rdx, rbx, r8, r9, r10, r11, r12, r13];

    /// <summary>A function's begin and end: PUSH and POP in a row, sometimes on a stack in the data, at a page's end or where a page may be missing.</summary>
    private static void Stacked(Assembler a, Random r)
    {
        Label f = a.CreateLabel(), over = a.CreateLabel();
        bool moved = r.Next(3) == 0;
        if (moved)
            a.mov(rsp, (long)Data + 0x1000 + 8 * r.Next(-8, 9) + (r.Next(4) == 0 ? r.Next(8) : 0));
        if (r.Next(2) == 0)
        {
            a.call(f);
            a.jmp(over);
            a.Label(ref f);
            Pushes(a, r, r.Next(1, 10));
            a.ret();
            a.Label(ref over);
            a.nop();
        }
        else
        {
            Pushes(a, r, r.Next(1, 10));
        }
        if (moved)
            a.mov(rsp, (long)CpuHarness.StackTop - 0x100);
    }

    private static void Pushes(Assembler a, Random r, int count)
    {
        if (r.Next(3) == 0)
            a.cmp(rax, rdx);
        for (int n = 0; n < count; n++)
            if (r.Next(8) == 0)
                a.push(r.Next());
            else
                a.push(s_pushed[r.Next(s_pushed.Length)]);
        if (r.Next(3) == 0)
            a.add(rax, rdx);
        for (int n = 0; n < count; n++)
            a.pop(s_pushed[r.Next(s_pushed.Length)]);
    }

    private static byte[] Program(int seed)
    {
        Random r = new(seed);
        return RegionProgram.Assemble(r.Next(3, 20), a => Emit(a, r), a => Emit(a, r));
    }

    private static CpuHarness Create(byte[] code, int seed, bool translate, int cpl = 0)
    {
        CpuHarness h = CpuHarness.Long(code, cpl, translate: translate);
        if (!translate)
            h.Machine.TranslationThreshold = int.MaxValue;
        Random r = new(seed);
        for (int i = 0; i < 16; i++)
            if (i != 4)
                h.State->Gpr[i] = Number(r);
        h.State->Gpr[5] = (ulong)r.Next(-900, 900);
        h.Rsi = Data + 0x400;
        h.State->Gpr[14] = Data + 0x800;
        h.State->Gs.Base = Data;
        h.State->KernelGsBase = Data + 0x200;
        for (ulong i = 0; i < 0x2000; i += 8)
            h.Word(Data + i) = Number(r);
        h.RflagsValue = 2 | (ulong)(uint)r.Next() & Flags.Status | (r.Next(2) == 0 ? Rflags.IF : 0);
        return h;
    }

    private static ulong Number(Random r) => r.Next(4) switch
    {
        0 => (ulong)r.Next(-3, 4),
        1 => (ulong)r.NextInt64(),
        2 => (uint)r.Next(2000),
        _ => (ulong)r.Next() << 31,
    };

    /// <summary>Whole programs: results, memory, flags, the interrupt shadow, and which instruction raises what.</summary>
    [Theory]
    [InlineData(0, 1)]
    [InlineData(3, 10_000)]
    public void Programs_BehaveLikeSingleInstructions(int cpl, int first)
    {
        int faults = 0, others = 0;
        ulong translated = 0, retired = 0;
        for (int seed = first; seed < first + 1200; seed++)
        {
            byte[] code = Program(seed);
            using CpuHarness fast = Create(code, seed, true, cpl), slow = Create(code, seed, false, cpl);
            if (seed % 3 == 0)
                fast.NestedEntry(Data + 0x1000) = slow.NestedEntry(Data + 0x1000) = 0;
            // Somebody waits for interrupts to be enabled.
            fast.State->RequestInterruptWindow = slow.State->RequestInterruptWindow = (byte)(seed % 4 == 0 ? 1 : 0);
            ExitReason reason = RegionProgram.Run(fast, slow, seed);
            faults += reason == ExitReason.Exception ? 1 : 0;
            others += reason is ExitReason.Exception or ExitReason.Hlt ? 0 : 1;
            translated += fast.Cpu.Translator.Counters.Translated;
            retired += fast.State->InstructionsRetired;
            Same(fast, slow, seed);
        }
        Assert.True(faults > 100, $"{faults} exceptions");
        Assert.True(cpl != 0 || others > 100, $"{others} other exits");
        Assert.True(translated > retired / 2, $"{translated} of {retired} instructions translated");
    }

    private static void Same(CpuHarness fast, CpuHarness slow, int seed)
    {
        RegionProgram.Same(fast, slow, seed);
        CpuState* f = fast.State, s = slow.State;
        Assert.True(f->InterruptShadow == s->InterruptShadow, $"seed {seed}: shadow {f->InterruptShadow}, singly {s->InterruptShadow}");
        Assert.Equal((s->Gs.Base, s->KernelGsBase), (f->Gs.Base, f->KernelGsBase));
        Assert.True(fast.Data(Data, 0x2000).SequenceEqual(slow.Data(Data, 0x2000)), $"seed {seed}: memory");
        Assert.True(fast.Data(CpuHarness.StackTop - 0x1000, 0x1000).SequenceEqual(slow.Data(CpuHarness.StackTop - 0x1000, 0x1000)), $"seed {seed}: stack");
    }

    /// <summary>The host's memory goes while translated code runs that has translations for it, between the check of an access and the access too.</summary>
    [Fact]
    public void MemoryThatIsGone_FailsAtTheInstruction()
    {
        int failures = 0;
        for (int seed = 1; seed <= 150; seed++)
        {
            byte[] code = Program(seed);
            using CpuHarness whole = Create(code, seed, true), gone = Create(code, seed, true);
            nint ticket = FaultGuard.AddGuestMemory((ulong)gone.Memory, (ulong)gone.Memory + gone.Size);
            ExitReason expected = Warm(whole, seed), reason = Warm(gone, seed);
            Assert.Equal(expected, reason);
            CpuHarness[] both = [whole, gone];
            foreach (CpuHarness h in both)
            {
                h.State->Rip = CpuHarness.CodeAddress;
                h.State->Gpr[4] = CpuHarness.StackTop;
                h.State->InterruptShadow = 0;
            }
            expected = whole.Run();
            HostMemory.Protect(gone.Memory + Data, 0x2000, false, false);
            while ((reason = gone.Run()) == ExitReason.MemoryFailure)
            {
                failures++;
                HostMemory.Protect((void*)(gone.Exit->Host & ~0xfffUL), 4096, true, true);
            }
            HostMemory.Protect(gone.Memory + Data, 0x2000, true, true);
            FaultGuard.RemoveGuestMemory(ticket);
            Assert.True(reason == expected, $"seed {seed}: {reason} at {gone.State->Rip:x}, with memory {expected} at {whole.State->Rip:x}");
            Same(gone, whole, seed);
        }
        Assert.True(failures > 80, $"{failures} accesses failed");
    }

    private static ExitReason Warm(CpuHarness h, int seed)
    {
        h.State->RequestInterruptWindow = 0;
        ExitReason reason = h.Run();
        Random r = new(seed);
        for (int i = 0; i < 4; i++)
            h.State->Gpr[i] = Number(r);
        return reason;
    }

    private static CpuHarness Translated(Action<Assembler> program, int cpl = 0) => CpuHarness.Long(CoreSmokeTests.Assemble(64, program), cpl, translate: true);

    /// <summary>PUSHes in a row that overwrite one of themselves.</summary>
    [Fact]
    public void PushesOverTheNextPush_AreSeen()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label target = a.CreateLabel();
            a.lea(rsp, __[target]);
            a.add(rsp, 8);
            a.push(rbx);
            a.Label(ref target);
            a.push(rbp);
            a.push(rbp);
            for (int i = 0; i < 8; i++)
                a.nop();
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        // INC ECX; HLT
        (h.Rbx, h.Rcx) = (0xf4c1ff, 4);
        h.RunToHlt();
        Assert.Equal(5UL, h.Rcx);
    }

    /// <summary>REP STOS and REP MOVS over the instruction itself and what follows it.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void RepeatOverTheNextInstruction_IsSeen(bool moves)
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label target = a.CreateLabel();
            a.lea(rdi, __[target]);
            a.mov(ecx, 16);
            if (moves)
                a.rep.movsb();
            else
                a.rep.stosb();
            a.Label(ref target);
            for (int i = 0; i < 20; i++)
                a.nop();
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        h.Rsi = Data;
        // HLT, or INC ECX before it.
        h.Data(Data, 16).Fill(0x90);
        CoreSmokeTests.Assemble(64, a => { a.inc(ecx); a.hlt(); }).CopyTo(h.Data(Data, 8));
        h.Rax = 0xf4;
        h.RunToHlt();
        Assert.Equal(moves ? 1UL : 0, h.Rcx);
        Assert.True(h.State->Rip < CpuHarness.CodeAddress + (ulong)code.Length - 4, $"{h.State->Rip:x}");
    }

    /// <summary>The time-stamp counter is the host's with an offset, or none of the program's business.</summary>
    [Fact]
    public void TimeStampCounter_HasOffsetAndLock()
    {
        using CpuHarness h = Translated(a => { a.rdtsc(); a.mov(rcx, rax); a.mov(rbx, rdx); a.rdtscp(); a.hlt(); });
        h.State->TscOffset = 0 - (ulong)HostClock.TscOrdered();
        h.State->TscAux = 0x1_2345_6789;
        h.RunToHlt();
        ulong second = h.Rdx << 32 | h.Rax;
        Assert.Equal((0x2345_6789UL, 0UL), (h.Rcx, h.Rbx >> 8));
        Assert.InRange(second, 1UL, 1UL << 40);
        using CpuHarness user = CpuHarness.Long(CoreSmokeTests.Assemble(64, a => { a.inc(rcx); a.rdtsc(); a.hlt(); }), 3, translate: true);
        user.State->Cr4 |= Cr4.TSD;
        user.Cpu.RecomputeMode();
        Assert.Equal(ExitReason.Exception, user.Run());
        Assert.Equal((Vector.GP, CpuHarness.CodeAddress + 3, 1UL), (user.Exit->Vector, user.State->Rip, user.Rcx));
    }

    /// <summary>A PUSH that overwrites the instruction behind it, in translated code.</summary>
    [Fact]
    public void PushOverTheNextInstruction_IsSeen()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label target = a.CreateLabel();
            a.lea(rsp, __[target]);
            a.add(rsp, 8);
            a.push(__qword_ptr[rsi]);
            a.Label(ref target);
            a.mov(eax, 1);
            for (int i = 0; i < 8; i++)
                a.nop();
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        h.Rsi = Data;
        CoreSmokeTests.Assemble(64, a => { a.mov(eax, 2); a.inc(ecx); a.hlt(); }).CopyTo(h.Data(Data, 16));
        h.Rcx = 0;
        h.RunToHlt();
        Assert.Equal((2UL, 1UL), (h.Rax, h.Rcx));
    }
}

using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Translated 16-bit code, and 32-bit code in segments that are not flat, against single steps of the interpreter.</summary>
/// <remarks>SAFETY: works on the harness's state and memory.</remarks>
public sealed unsafe class SegmentedRegionTests
{
    public enum World { Real, Virtual8086, Word, Wide }

    private const uint Data = 0x4_0000, Extra = 0x5_0000, StackAt = 0x6_0000, Other = 0x7_0000, Counter = 0x3000, Fixed = 0xff0;
    private const ulong Code = CpuHarness.CodeAddress;
    private const int DataBytes = 0x4_0000;

    /// <summary>A form that the assembler does not choose by itself.</summary>
    private static void Branch(Assembler a, Code code, Label to) => a.AddInstruction(Instruction.CreateBranch(code, to.Id));

    private static void Form(Assembler a, Code code) => a.AddInstruction(Instruction.Create(code));

    private static void Form(Assembler a, Code code, Register segment) => a.AddInstruction(Instruction.Create(code, segment));

    private static AssemblerMemoryOperand Operand(Random r) => r.Next(11) switch
    {
        0 => __[bx + si + r.Next(-300, 300)],
        1 => __[bp + di + r.Next(-64, 64)],
        2 => __[di + r.Next(128)],
        3 => __[si],
        4 => __[bp - r.Next(40)],
        5 => __[esi + ebx * (1 << r.Next(4)) + r.Next(-40, 40)],
        6 => __.es[si + r.Next(100)],
        7 => __.fs[edi + r.Next(60)],
        8 => __.cs[bx + r.Next(100)],
        9 => __.gs[bx + di],
        _ => __[di + 0x200],
    };

    /// <summary>One of a loop's instructions. BX is a small index, SI and DI point to data, BP to the stack.</summary>
    private static void Emit(Assembler a, Random r, bool word)
    {
        AssemblerRegister16 x = new[] { ax, cx, dx }[r.Next(3)];
        AssemblerRegister32 y = new[] { eax, ecx, edx }[r.Next(3)];
        AssemblerMemoryOperand m = Operand(r);
        Label f = a.CreateLabel(), end = a.CreateLabel();
        switch (r.Next(36))
        {
            case 0: a.mov(x, __word_ptr[m]); break;
            case 1: a.mov(__word_ptr[m], x); break;
            case 2: a.mov(y, __dword_ptr[m]); break;
            case 3: a.add(__dword_ptr[m], y); break;
            case 4: a.adc(__byte_ptr[m], al); break;
            case 5: a.cmp(__word_ptr[m], x); a.setb(dl); break;
            case 6: a.inc(x); a.dec(y); break;
            case 7: a.push(x); a.push(y); a.push(-5); a.pop(dx); a.pop(ecx); a.pop(ax); break;
            case 8: a.push(sp); a.pop(x); break;
            case 9: a.push(esp); a.pop(y); break;
            case 10: a.push(__word_ptr[m]); a.pop(x); a.push(__dword_ptr[m]); a.pop(y); break;
            case 11: a.call(f); a.jmp(end); a.Label(ref f); a.lea(x, __[bx + si + 12]); a.ret(); a.Label(ref end); a.nop(); break;
            case 12:
                // A call with an operand of the other size, where there is one in reach.
                if (word)
                {
                    Branch(a, Iced.Intel.Code.Call_rel32_32, f);
                    a.jmp(end);
                    a.Label(ref f);
                    a.lea(y, __[esi + ebx * 4]);
                    Form(a, Iced.Intel.Code.Retnd);
                    a.Label(ref end);
                }
                a.nop();
                break;
            case 13:
                a.push(x);
                a.call(f);
                a.jmp(end);
                a.Label(ref f);
                a.mov(y, __dword_ptr[bp - 4]);
                a.ret(2);
                a.Label(ref end);
                a.pop(eax);
                a.push(eax);
                break;
            case 14:
                a.push(bp);
                a.mov(bp, sp);
                a.sub(sp, 24);
                a.mov(__word_ptr[bp - 8], x);
                a.add(x, __word_ptr[bp - 8]);
                Form(a, Iced.Intel.Code.Leavew);
                break;
            case 15: a.push(ebp); a.mov(ebp, esp); Form(a, Iced.Intel.Code.Leaved); break;
            case 16: Form(a, Iced.Intel.Code.Pushfw); a.pop(x); break;
            case 17: a.mov(x, ds); a.mov(y, es); a.mov(__word_ptr[m], ss); break;
            case 18: Form(a, Iced.Intel.Code.Pushw_DS, Register.DS); Form(a, Iced.Intel.Code.Popw_ES, Register.ES); break;
            case 19: a.mov(ecx, r.Next(40)); a.rep.stosb(); a.sub(di, 40); break;
            case 20: a.lodsb(); a.stosw(); a.movsb(); break;
            case 21: a.movd(mm1, __dword_ptr[m]); a.paddb(mm1, mm0); a.movq(__qword_ptr[m], mm1); break;
            case 22: a.movups(xmm0, __xmmword_ptr[m]); a.paddd(xmm1, xmm0); a.movups(__xmmword_ptr[m], xmm1); break;
            case 23: a.fld(__dword_ptr[m]); a.fistp(__word_ptr[m]); a.emms(); break;
            case 24: a.xchg(__word_ptr[m], x); a.@lock.xadd(__dword_ptr[m], y); break;
            case 25: a.bts(__word_ptr[m], bx); a.btr(__dword_ptr[m], ebx); break;
            case 26: a.mov(ah, __byte_ptr[m]); a.add(ah, dl); break;
            case 27: a.imul(x, __word_ptr[m], (short)r.Next(-9, 99)); a.test(x, x); break;
            case 28: a.movzx(y, __word_ptr[m]); a.movsx(x, __byte_ptr[m]); break;
            case 29: a.mov(dx, (short)0); a.mov(cx, (short)r.Next(1, 99)); a.div(cx); a.cmp(ax, cx); break;
            case 30:
                a.mov(ecx, 3);
                a.Label(ref f);
                a.add(ax, bx);
                Branch(a, word ? Iced.Intel.Code.Loop_rel8_16_CX : Iced.Intel.Code.Loop_rel8_32_ECX, f);
                break;
            case 31: a.mov(al, __byte_ptr[word ? __[(short)Fixed + 8] : __[(int)Fixed + 8]]); a.mov(__word_ptr[(int)Fixed + 12], ax); break;
            case 32: a.cmp(x, bx); a.ja(end); a.not(y); a.Label(ref end); a.cmc(); break;
            case 33: a.lea(x, __[bp + si - 7]); a.lea(y, __[bx + di + 0x7fff]); a.lea(y, __[ebx + ecx * 2 + 3]); break;
            case 34: a.mov(__dword_ptr[m], r.Next()); a.cmpxchg8b(__qword_ptr[m]); break;
            default: a.sub(si, 8); a.rol(__word_ptr[m], 3); a.add(si, 8); break;
        }
    }

    /// <summary>A loop of four rounds; in every third program it reaches over the end of a page.</summary>
    private static byte[] Program(int seed, World world, uint start) => CoreSmokeTests.Assemble(world == World.Wide ? 32 : 16, a =>
    {
        Random r = new(seed);
        Label again = a.CreateLabel();
        a.Label(ref again);
        for (int n = r.Next(3, 30); n > 0; n--)
            Emit(a, r, world != World.Wide);
        a.dec(__byte_ptr.ss[(int)Counter]);
        a.jnz(again);
        a.hlt();
    }, start);

    private static uint Start(int seed) => seed % 3 == 0 ? 0x1fd0u - (uint)(seed % 5) * 12 : 0x1000u + 16 * (uint)(seed % 7);

    private static Segment Segment(uint at, uint access, uint limit) => new() { Base = at, Selector = (ushort)(at >> 4), Limit = limit, Access = access };

    private static CpuHarness Machine(byte[] code, int seed, World world, uint start, bool translate)
    {
        CpuHarness h = CpuHarness.Real16([]);
        CpuState* c = h.State;
        h.Machine.TranslationThreshold = translate ? 0 : int.MaxValue;
        c->Cr4 = Cr4.OSFXSR | Cr4.OSXMMEXCPT;
        bool protectedMode = world is World.Word or World.Wide;
        uint wide = world == World.Wide ? Cpu.Segment.DB : 0, dpl = world == World.Virtual8086 ? Cpu.Segment.DplMask : 0;
        if (world != World.Real)
            c->Cr0 |= Cr0.PE;
        if (world == World.Virtual8086)
            c->Rflags |= Rflags.VM | Rflags.IOPL;
        Random r = new(seed);
        // Limits that are met now and then; expand-down data that must be below.
        uint limit = protectedMode && r.Next(3) == 0 ? 0x1000u + (uint)r.Next(0x40) : 0xffffu;
        c->Cs = Segment((uint)Code, 0x9bu | wide | dpl, 0xffff);
        c->Ds = Segment(Data + (protectedMode ? (uint)r.Next(16) : 0), 0x93u | dpl, limit);
        c->Ss = Segment(StackAt, 0x93u | wide | dpl, 0xffff);
        c->Es = Segment(Extra, 0x93u | dpl, 0xffff);
        c->Fs = protectedMode && r.Next(4) == 0 ? Segment(Other, 0x97, 0x100) : Segment(Other, 0x93u | dpl, 0xffff);
        c->Gs = protectedMode && r.Next(4) == 0 ? Segment(Extra, r.Next(2) == 0 ? 0x91u : 0x1_0000u, 0xffff) : Segment(Extra, 0x93u | dpl, 0xffff);
        h.Write(Code + start, code);
        for (ulong i = 0; i < DataBytes; i += 8)
            h.Word(Data + i) = (ulong)r.NextInt64();
        for (int i = 0; i < 8; i++)
            c->Gpr[i] = (uint)r.Next();
        for (int i = 0; i < 128; i++)
            c->Ymm[i] = (byte)r.Next();
        ulong high = world == World.Wide ? 0 : (ulong)r.Next(2) << 16;
        (h.Rbx, h.Rsi, h.Rdi) = ((ulong)r.Next(16), (r.Next(3) == 0 ? 0xfc0u : 0x200u) | high, 0x300 + (uint)r.Next(64));
        (h.Rsp, h.Rbp) = (world == World.Wide ? 0x8000u : 0x5_8000u - (r.Next(4) == 0 ? 0x8000u : 0), 0x7000);
        if (r.Next(4) == 0)
            h.Rsi = 0xfff8;
        *(h.Memory + StackAt + Counter) = 4;
        c->Rip = start;
        h.Cpu.RecomputeMode();
        return h;
    }

    private static void Compare(CpuHarness fast, CpuHarness slow, int seed)
    {
        RegionProgram.Same(fast, slow, seed);
        CpuState* f = fast.State, s = slow.State;
        for (int n = 0; n < 6; n++)
        {
            Cpu.Segment* got = CpuState.SegmentAt(f, n), singly = CpuState.SegmentAt(s, n);
            Assert.Equal((singly->Selector, singly->Base), (got->Selector, got->Base));
        }
        Assert.True(fast.Data(Data, DataBytes).SequenceEqual(slow.Data(Data, DataBytes)), $"seed {seed}: memory");
        Assert.True(new Span<byte>(f->Ymm, 512).SequenceEqual(new Span<byte>(s->Ymm, 512)), $"seed {seed}: vector registers");
        Assert.True(new Span<byte>(f->X87, 128).SequenceEqual(new Span<byte>(s->X87, 128)), $"seed {seed}: x87 registers");
        Assert.Equal((s->Fsw, s->Ftw, s->Fip, s->Fdp), (f->Fsw, f->Ftw, f->Fip, f->Fdp));
    }

    [Theory]
    [InlineData(World.Real)]
    [InlineData(World.Virtual8086)]
    [InlineData(World.Word)]
    [InlineData(World.Wide)]
    public void SegmentedCode_IsAsWithoutTranslation(World world)
    {
        ulong translated = 0, retired = 0;
        int ended = 0;
        for (int seed = 0; seed < 300; seed++)
        {
            uint start = Start(seed);
            byte[] code = Program(seed, world, start);
            using CpuHarness fast = Machine(code, seed, world, start, true), slow = Machine(code, seed, world, start, false);
            ended += RegionProgram.Run(fast, slow, seed) == ExitReason.Exception ? 0 : 1;
            Compare(fast, slow, seed);
            translated += fast.Cpu.Translator.Counters.Translated;
            retired += fast.State->InstructionsRetired;
        }
        Assert.InRange(ended, world == World.Virtual8086 ? 0 : 60, 299);
        Assert.True(translated > retired / 2, $"{translated} of {retired} instructions in translated code");
    }

    private static (CpuHarness Fast, CpuHarness Slow) Both(World world, uint start, Action<Assembler> program, Action<CpuHarness> prepare)
    {
        byte[] code = CoreSmokeTests.Assemble(world == World.Wide ? 32 : 16, program, start);
        (CpuHarness, CpuHarness) both = (Machine(code, 1, world, start, true), Machine(code, 1, world, start, false));
        foreach (CpuHarness h in (CpuHarness[])[both.Item1, both.Item2])
        {
            prepare(h);
            h.Cpu.RecomputeMode();
        }
        return both;
    }

    private static ExitReason Run((CpuHarness Fast, CpuHarness Slow) both)
    {
        ExitReason reason = RegionProgram.Run(both.Fast, both.Slow, 1);
        Compare(both.Fast, both.Slow, 1);
        return reason;
    }

    /// <summary>Offsets go round at 64 KiB; an operand that reaches over the end faults, on the stack with #SS.</summary>
    [Theory]
    [InlineData(0xfffe, ExitReason.Hlt, 0)]
    [InlineData(0xffff, ExitReason.Exception, Vector.GP)]
    public void Offsets_GoRoundAt64KiB(int offset, ExitReason expected, int vector)
    {
        var both = Both(World.Real, 0x1000, a => { a.mov(ax, __word_ptr[bx + si + 0x10]); a.hlt(); }, h => (h.Rbx, h.Rsi) = (0x5_fff0, (ulong)offset));
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(expected, Run(both));
        Assert.True(expected == ExitReason.Hlt || fast.Exit->Vector == vector);
        Assert.True(fast.Cpu.Translator.Counters.Entries > 0);
    }

    [Fact]
    public void StackAcrossItsEnd_IsAStackFault()
    {
        var both = Both(World.Real, 0x1000, a => { a.push(ax); a.push(ax); a.push(ax); a.hlt(); }, h => h.Rsp = 0x1_0003);
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(ExitReason.Exception, Run(both));
        Assert.Equal((Vector.SS, 0x1_0001UL), (fast.Exit->Vector, fast.Rsp));
    }

    /// <summary>SP goes round without a fault, and leaves the upper half of ESP as it is.</summary>
    [Fact]
    public void StackPointer_GoesRoundAt64KiB()
    {
        var both = Both(World.Real, 0x1000, a => { a.push(ax); a.push(dx); a.pop(cx); a.pop(cx); a.hlt(); }, h => h.Rsp = 0x1_0000);
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(ExitReason.Hlt, Run(both));
        Assert.Equal(0x1_0000UL, fast.Rsp);
    }

    /// <summary>The last page of a segment: what runs over its end faults behind it, a branch over it at the branch, and one of 16 bits goes round.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void EndOfTheSegment_IsWhereTheInterpreterHasIt(int kind)
    {
        const uint start = 0xfff0;
        var both = Both(World.Real, start, a =>
        {
            a.inc(ax);
            switch (kind)
            {
                case 0: a.AddInstruction(Instruction.CreateBranch(Iced.Intel.Code.Jmp_rel16, 0x0100)); break;
                case 1: a.AddInstruction(Instruction.CreateBranch(Iced.Intel.Code.Jmp_rel32_32, 0x1_0100)); break;
                case 2:
                    a.AddInstruction(Instruction.Create(Iced.Intel.Code.Pushd_imm32, 0x7fff_0000));
                    a.AddInstruction(Instruction.Create(Iced.Intel.Code.Retnd_imm16, 0xfffc));
                    break;
            }
            while (kind == 3)
            {
                a.inc(cx);
                if (a.Instructions.Count == 16)
                    break;
            }
        }, h => { h.Rax = 0; h.Write(Code + 0x100, [0x40, 0xf4]); h.State->Rip = start; });
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(kind == 0 ? ExitReason.Hlt : ExitReason.Exception, Run(both));
        Assert.True(kind == 0 ? fast.Rax == 2 : fast.Exit->Vector == Vector.GP);
        Assert.True(fast.Cpu.Translator.Counters.Entries > 0);
    }

    /// <summary>One piece of code by two names: calls return to the name that they came from, and the pages of one of them need not be translated.</summary>
    [Theory]
    [InlineData(0x0100)]
    [InlineData(0x0108)]
    public void OnePieceOfCode_HasManySegments(int paragraphs)
    {
        // CALL BX, HLT; in another page INC AX, RET.
        byte[] code = new byte[0x1010];
        ((ReadOnlySpan<byte>)[0xff, 0xd3, 0xf4]).CopyTo(code);
        ((ReadOnlySpan<byte>)[0x40, 0xc3]).CopyTo(code.AsSpan(0x1000));
        using CpuHarness h = Machine(code, 1, World.Real, 0x2000, true);
        for (int round = 0; round < 8; round++)
        {
            uint moved = round % 2 == 0 ? 0 : (uint)paragraphs << 4;
            h.State->Cs.Base = Code + moved;
            (h.State->Rip, h.Rbx, h.Rax) = (0x2000 - moved, 0x3000 - moved, 7);
            h.RunToHlt();
            Assert.Equal((8UL, 0x2003UL - moved), (h.Rax, h.State->Rip));
        }
        Assert.True(h.Cpu.Translator.Counters.Translated > 16);
    }

    /// <summary>A trace that loads segments sees what it has loaded.</summary>
    [Fact]
    public void SegmentsThatTheCodeLoads_AreThoseOfTheNextAccess()
    {
        var both = Both(World.Real, 0x1000, a =>
        {
            Label again = a.CreateLabel();
            a.mov(cx, (short)20);
            a.Label(ref again);
            a.mov(ds, ax);
            a.add(dx, __word_ptr[bx]);
            a.mov(es, dx);
            a.mov(__word_ptr.es[bx], dx);
            Form(a, Iced.Intel.Code.Pushw_ES, Register.ES);
            Form(a, Iced.Intel.Code.Popw_FS, Register.FS);
            a.add(ax, 3);
            a.add(dx, __word_ptr.fs[bx]);
            a.and(dx, 0x3ff);
            a.or(dx, 0x5000);
            a.loop(again);
            a.hlt();
        }, h => (h.Rax, h.Rdx, h.Rbx) = (0x4000, 0x5010, 0x22));
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(ExitReason.Hlt, Run(both));
        Assert.True(fast.Cpu.Translator.Counters.Translated > 100);
    }

    /// <summary>A stack of another width than the code is the interpreter's.</summary>
    [Fact]
    public void StackOfAnotherWidth_IsInterpreted()
    {
        var both = Both(World.Word, 0x1000, a => { a.push(ax); a.pop(bx); a.hlt(); }, h => { h.State->Ss.Access |= Cpu.Segment.DB; h.Rsp = 0x8000; });
        using CpuHarness fast = both.Fast, slow = both.Slow;
        Assert.Equal(ExitReason.Hlt, Run(both));
        Assert.Equal(0, fast.Cpu.Translator.Counters.Entries);
    }
}

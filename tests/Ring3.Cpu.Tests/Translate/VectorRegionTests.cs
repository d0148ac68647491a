using Iced.Intel;
using Ring3.Arch;
using Ring3.Cpu.Tests.Vec;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Vector and x87 instructions in translated code, against single steps of the interpreter; and what must leave translated code.</summary>
public sealed unsafe class VectorRegionTests
{
    private const ulong Data = CpuHarness.DataAddress;
    private static readonly AssemblerRegister64[] s_r64 = [rax, rcx, rdx, rbx, r8, r9, r10, r11, r12];
    private static readonly Code[] s_codes =
        [.. Enum.GetValues<Code>().Where(c => VectorTableTests.IsVectorCode(c) && VectorRules.CanEmit(new Instruction { Code = c }))];

    [Fact]
    public void EveryListedForm_IsAmongThem() => Assert.True(s_codes.Length > 500, $"{s_codes.Length}");

    private static Instruction Compose(Random r, Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        Instruction i = new() { Code = code };
        bool memory = r.Next(2) == 0;
        for (int n = 0; n < info.OpCount; n++)
        {
            string name = info.GetOpKind(n).ToString();
            int number = r.Next(4) == 0 ? r.Next(16) : r.Next(4);
            if (name == "imm8")
            {
                i.SetOpKind(n, Iced.Intel.OpKind.Immediate8);
                i.Immediate8 = (byte)r.Next(256);
            }
            else if (name == "mem" || memory && name.EndsWith("_or_mem", StringComparison.Ordinal))
            {
                i.SetOpKind(n, Iced.Intel.OpKind.Memory);
                i.MemoryBase = r.Next(2) == 0 ? Register.RSI : Register.R14;
                i.MemoryDisplacement64 = (ulong)(r.Next(64) * 16 + (r.Next(24) == 0 ? r.Next(16) : 0) + (r.Next(60) == 0 ? 4096 - 520 : 0));
                i.MemoryDisplSize = 8;
                if (r.Next(4) == 0)
                    (i.MemoryIndex, i.MemoryIndexScale) = (Register.RBP, 8);
            }
            else
            {
                i.SetOpKind(n, Iced.Intel.OpKind.Register);
                Register general = s_r64[r.Next(s_r64.Length)];
                i.SetOpRegister(n, name[..3] switch
                {
                    "xmm" => Register.XMM0 + number,
                    "ymm" => Register.YMM0 + number,
                    "mm_" => Register.MM0 + (number & 7),
                    "r32" => Register.EAX + (general - Register.RAX),
                    _ => general,
                });
            }
        }
        return i;
    }

    private static void X87(Assembler a, Random r)
    {
        AssemblerRegisterST st = new AssemblerRegisterST[] { st1, st2, st3, st7 }[r.Next(4)];
        AssemblerMemoryOperand m = rsi + 8 * r.Next(64);
        switch (r.Next(24))
        {
            case 0: a.fld1(); break;
            case 1: a.fldpi(); break;
            case 2: a.fld(__qword_ptr[m]); break;
            case 3: a.fld(__dword_ptr[m]); break;
            case 4: a.fld(__tbyte_ptr[m]); break;
            case 5: a.fild(__word_ptr[m]); break;
            case 6: a.fst(__qword_ptr[m]); break;
            case 7: a.fstp(__tbyte_ptr[m]); break;
            case 8: a.fistp(__dword_ptr[m]); break;
            case 9: a.fisttp(__qword_ptr[m]); break;
            case 10: a.fadd(st0, st); break;
            case 11: a.fmulp(st, st0); break;
            case 12: a.fdiv(__qword_ptr[m]); break;
            case 13: a.fsqrt(); break;
            case 14: a.fcomip(st0, st); break;
            case 15: a.fcmovbe(st0, st); break;
            case 16: a.fucom(st0, st); a.fnstsw(ax); break;
            case 17: a.fnstsw(__word_ptr[m]); break;
            case 18: a.fldcw(__word_ptr[rsi + 0xe00 + 2 * r.Next(4)]); break;
            case 19: a.fnstcw(__word_ptr[m]); break;
            case 20: a.fxch(st0, st); break;
            case 21: a.wait(); break;
            case 22: a.ffree(st); break;
            default: a.fclex(); break;
        }
    }

    /// <summary>What is rare among all forms: MMX that begins, ends or stores behind x87.</summary>
    private static void Mmx(Assembler a, Random r)
    {
        AssemblerRegisterMM x = new[] { mm0, mm3, mm7 }[r.Next(3)], y = new[] { mm1, mm2, mm3 }[r.Next(3)];
        AssemblerMemoryOperand m = rsi + 8 * r.Next(64);
        switch (r.Next(8))
        {
            case 0 or 1: a.emms(); break;
            case 2: a.movq(__qword_ptr[m], x); break;
            case 3: a.movntq(__qword_ptr[m], y); break;
            case 4: a.lea(rdi, __[m]); a.maskmovq(x, y); break;
            case 5: a.movq(x, __qword_ptr[m]); a.fld(st2); break;
            case 6: a.movq2dq(xmm3, y); a.movdq2q(x, xmm2); break;
            default: a.cvtpi2ps(xmm1, x); a.cvtpi2ps(xmm2, __qword_ptr[m]); break;
        }
    }

    private static byte[] Program(int seed)
    {
        Random r = new(seed);
        return RegionProgram.Assemble(r.Next(2, 16), a => Emit(a, r), a => a.AddInstruction(Compose(r, s_codes[r.Next(s_codes.Length)])));
    }

    private static void Emit(Assembler a, Random r)
    {
        switch (r.Next(16))
        {
            case 6 or 7 or 8: X87(a, r); break;
            case 0: a.add(rax, rdx); a.adc(r9, 5); break;
            case 1: a.cmp(rcx, __qword_ptr[rsi + 8]); a.setb(bl); break;
            case 2: a.ldmxcsr(__dword_ptr[rsi + 0xc00 + 4 * r.Next(4)]); break;
            // A handler in the middle of the trace.
            case 3: a.rdfsbase(r12); break;
            case 4: a.vzeroupper(); break;
            case 5: a.stmxcsr(__dword_ptr[rsi + 0xd00]); break;
            case 9: Mmx(a, r); break;
            default: a.AddInstruction(Compose(r, s_codes[r.Next(s_codes.Length)])); break;
        }
    }

    private static CpuHarness Create(byte[] code, int seed, ProcessorModel model, bool translate)
    {
        CpuHarness h = CpuHarness.Long(code, model: model, translate: translate);
        Random r = new(seed);
        CpuState* c = h.State;
        for (int i = 0; i < 64; i++)
            ((ulong*)c->Ymm)[i] = Number(r);
        for (int i = 0; i < 16; i++)
            if (i != 4)
                c->Gpr[i] = Number(r);
        c->Gpr[5] = (ulong)(2 * r.Next(0, 9));
        c->Gpr[6] = Data;
        c->Gpr[14] = Data + 0x400;
        for (ulong i = 0; i < 0x1800; i += 8)
            h.Word(Data + i) = Number(r);
        for (ulong i = 0; i < 4; i++)
            *(uint*)(h.Memory + Data + 0xc00 + 4 * i) = Control(r);
        for (ulong i = 0; i < 4; i++)
            *(ushort*)(h.Memory + Data + 0xe00 + 2 * i) = (ushort)(r.Next(3) == 0 ? r.Next(0x10000) : 0x3f + 0x100 * r.Next(16));
        c->Mxcsr = Control(r);
        c->Fcw = (ushort)(r.Next(8) == 0 ? 0x340 + r.Next(64) : 0x37f);
        h.RflagsValue = 2 | (ulong)(uint)r.Next() & Flags.Status;
        // Exits and pages that are not there.
        if (r.Next(3) == 0)
            h.NestedEntry(Data + 0x1000) = 0;
        return h;
    }

    private static uint Control(Random r) => r.Next(4) switch
    {
        0 => 0x1f80,
        1 => 0x1f80u | (uint)r.Next(4) << 13 | (uint)r.Next(2) << 15 | (uint)r.Next(2) << 6,
        2 => 0x1fbf,
        _ => (uint)r.Next(0x10000) & (r.Next(2) == 0 ? 0xffffu : 0xe07fu) | (r.Next(2) == 0 ? 0x1f80u : 0),
    };

    private static ulong Number(Random r) => r.Next(6) switch
    {
        0 => BitConverter.DoubleToUInt64Bits((r.NextDouble() - 0.5) * 1000),
        1 => (ulong)r.NextInt64(),
        2 => BitConverter.SingleToUInt32Bits(r.NextSingle() * 100) * 0x1_0000_0001UL,
        3 => (ulong)r.Next(-3, 4),
        4 => 0x7ff0_0000_0000_0000 + (ulong)r.Next(2),
        _ => (ulong)r.Next() << 31,
    };

    /// <summary>Whole programs: results, upper halves, MXCSR, memory, and which instruction raises what.</summary>
    [Theory]
    [InlineData("intel")]
    [InlineData("amd")]
    public void Programs_BehaveLikeSingleInstructions(string name)
    {
        Assert.True(ProcessorModel.TryParse(name, out ProcessorModel model));
        int faults = 0;
        ulong translated = 0, retired = 0;
        for (int seed = 1; seed <= 800; seed++)
        {
            byte[] code = Program(seed);
            using CpuHarness fast = Create(code, seed, model, true), slow = Create(code, seed, model, false);
            slow.Machine.TranslationThreshold = int.MaxValue;
            faults += RegionProgram.Run(fast, slow, seed) == ExitReason.Hlt ? 0 : 1;
            translated += fast.Cpu.Translator.Counters.Translated;
            retired += fast.State->InstructionsRetired;
            Same(fast, slow, seed);
        }
        Assert.InRange(faults, 50, 700);
        // Unmasked exceptions are the interpreter's.
        Assert.True(translated > retired / 2, $"{translated} of {retired} instructions translated");
    }

    private static void Same(CpuHarness fast, CpuHarness slow, int seed)
    {
        RegionProgram.Same(fast, slow, seed);
        CpuState* f = fast.State, s = slow.State;
        for (int i = 0; i < 64; i++)
        {
            ulong got = ((ulong*)f->Ymm)[i], singly = ((ulong*)s->Ymm)[i];
            Assert.True(got == singly, $"seed {seed}: vector register {i / 4}, word {i & 3}: {got:x}, singly {singly:x}");
        }
        Assert.True(new Span<byte>(f->X87, 128).SequenceEqual(new Span<byte>(s->X87, 128)), $"seed {seed}: x87 registers");
        Assert.True((f->Fsw, f->Ftw, f->Fcw) == (s->Fsw, s->Ftw, s->Fcw), $"seed {seed}: x87 words");
        Assert.Equal((s->Fip, s->Fdp, s->Fop, s->FipSelector, s->FdpSelector), (f->Fip, f->Fdp, f->Fop, f->FipSelector, f->FdpSelector));
        Assert.True(f->Mxcsr == s->Mxcsr, $"seed {seed}: MXCSR is {f->Mxcsr:x}, singly {s->Mxcsr:x}");
        Assert.True(fast.Data(Data, 0x1800).SequenceEqual(slow.Data(Data, 0x1800)), $"seed {seed}: memory");
    }

    private static CpuHarness Translated(Action<Assembler> program)
    {
        CpuHarness h = CpuHarness.Long(CoreSmokeTests.Assemble(64, program), translate: true);
        h.Rsi = Data;
        return h;
    }

    /// <summary>The units may be taken away by an instruction of the trace itself.</summary>
    [Theory]
    [InlineData(Cr0.TS, Vector.NM)]
    [InlineData(Cr0.EM, Vector.UD)]
    public void UnitsThatAreTakenAway_RaiseAtTheInstruction(ulong bit, byte vector)
    {
        using CpuHarness h = Translated(a =>
        {
            a.movdqu(xmm1, __[rsi]);
            a.mov(rax, cr0);
            a.or(rax, (int)bit);
            a.mov(cr0, rax);
            a.paddd(xmm1, xmm1);
            a.hlt();
        });
        h.Word(Data) = 21;
        Assert.Equal(ExitReason.Exception, h.Run());
        Assert.Equal((vector, 21UL), (h.Exit->Vector, *(ulong*)(h.State->Ymm + 32)));
        h.State->Cr0 &= ~bit;
        h.Cpu.RecomputeMode();
        h.RunToHlt();
        Assert.Equal(42UL, *(ulong*)(h.State->Ymm + 32));
    }

    /// <summary>With OSFXSR clear legacy forms are undefined and VEX forms are not; a trace with both stops at the right one.</summary>
    [Fact]
    public void GatesOfLegacyAndVex_AreApart()
    {
        using CpuHarness h = Translated(a => { a.vpaddd(xmm2, xmm1, xmm1); a.vpaddd(ymm2, ymm2, ymm1); a.paddd(xmm1, xmm1); a.hlt(); });
        h.State->Cr4 &= ~Cr4.OSFXSR;
        h.Cpu.RecomputeMode();
        *(ulong*)(h.State->Ymm + 32) = 5;
        Assert.Equal(ExitReason.Exception, h.Run());
        Assert.Equal((Vector.UD, 15UL, 5UL), (h.Exit->Vector, *(ulong*)(h.State->Ymm + 64), *(ulong*)(h.State->Ymm + 32)));
    }

    /// <summary>A store of a vector register over the instruction that follows it.</summary>
    [Fact]
    public void StoreIntoTheRunningTrace_IsSeenByTheNextInstruction()
    {
        byte[] code = CoreSmokeTests.Assemble(64, a =>
        {
            Label target = a.CreateLabel();
            a.movdqu(xmm0, __[rsi]);
            a.lea(rdi, __[target]);
            a.movdqu(__[rdi], xmm0);
            a.Label(ref target);
            a.mov(eax, 1);
            for (int i = 0; i < 16; i++)
                a.nop();
            a.hlt();
        });
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        h.Rsi = Data;
        CoreSmokeTests.Assemble(64, a => { a.mov(eax, 2); a.paddq(xmm0, xmm0); a.hlt(); }).CopyTo(h.Data(Data, 16));
        ulong first = h.Word(Data);
        h.RunToHlt();
        Assert.Equal((2UL, first + first), (h.Rax, *(ulong*)h.State->Ymm));
    }

    /// <summary>
    /// The host's own MXCSR is what managed code expects while the guest rounds upwards and flushes to zero.
    /// </summary>
    [Fact]
    public void HandlersRunWithTheHostsMxcsr()
    {
        using CpuHarness h = Translated(a => { a.divsd(xmm0, xmm1); a.rdfsbase(rax); a.divsd(xmm2, xmm1); a.hlt(); });
        h.State->Mxcsr = 0x1f80 | 2 << 13 | 1 << 15;
        *(double*)h.State->Ymm = 1;
        *(double*)(h.State->Ymm + 32) = 3;
        *(double*)(h.State->Ymm + 64) = 2;
        h.RunToHlt();
        Assert.Equal((Math.BitIncrement(1.0 / 3), 0x1f80u | 2 << 13 | 1 << 15 | 0x20), (*(double*)h.State->Ymm, h.State->Mxcsr));
        Assert.True(*(double*)(h.State->Ymm + 64) >= 2.0 / 3);
        Assert.Equal(MxcsrUnit.Default, MxcsrUnit.ReadHost() & ~MxcsrUnit.StatusMask);
    }
}

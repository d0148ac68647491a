using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Translated 32-bit code against single steps of the interpreter.</summary>
/// <remarks>SAFETY: works on the harness's state and memory.</remarks>
public sealed unsafe class NarrowRegionTests
{
    private const uint Data = (uint)CpuHarness.DataAddress, Counter = Data + 0x8000;
    private const int DataBytes = 0x9000;

    /// <summary>One of a loop's instructions; ESI and EDI point to data, EBX is a small index.</summary>
    private static void Emit(Assembler a, Random r)
    {
        AssemblerRegister32 pointer = r.Next(2) == 0 ? esi : edi, x = new[] { eax, ecx, edx }[r.Next(3)];
        AssemblerMemoryOperand m = r.Next(3) == 0 ? __[pointer + ebx * (1 << r.Next(4)) + r.Next(-40, 40)] : __[pointer + r.Next(-100, 100)];
        AssemblerMemoryOperand fixedAt = __[Data + 0x4000 + 4 * r.Next(64)];
        Label f = a.CreateLabel(), end = a.CreateLabel();
        switch (r.Next(30))
        {
            case 0: a.mov(x, __dword_ptr[m]); break;
            case 1: a.mov(__dword_ptr[m], x); break;
            case 2: a.adc(x, __dword_ptr[m]); break;
            case 3: a.adc(__word_ptr[m], ax); break;
            case 4: a.inc(x); break;
            case 5: a.dec(cx); break;
            case 6: a.push(x); a.push(r.Next()); a.push(-5); a.pop(edx); a.pop(ecx); a.pop(eax); break;
            case 7: a.push(esp); a.pop(x); break;
            case 8: a.call(f); a.jmp(end); a.Label(ref f); a.lea(x, __[x + ebx * 4 + 12]); a.ret(); a.Label(ref end); a.nop(); break;
            case 9: a.push(x); a.call(f); a.jmp(end); a.Label(ref f); a.mov(x, __dword_ptr[esp + 4]); a.ret(4); a.Label(ref end); a.nop(); break;
            case 10: a.mov(eax, __dword_ptr[fixedAt]); break;
            case 11: a.mov(__dword_ptr[fixedAt], eax); break;
            case 12: a.mov(__byte_ptr[fixedAt], al); break;
            case 13: a.mov(x, __dword_ptr.fs[ebx * 4 + 8]); break;
            case 14: a.add(__dword_ptr.fs[ebx + 0x100], x); break;
            case 15: a.pushfd(); a.pop(x); break;
            case 16: a.pushfd(); a.xor(__dword_ptr[esp], 0x8d5); a.popfd(); break;
            case 17: a.push(ecx); a.push(esi); a.push(edi); a.mov(ecx, r.Next(40)); a.rep.movsd(); a.pop(edi); a.pop(esi); a.pop(ecx); break;
            case 18: a.push(ecx); a.push(edi); a.mov(ecx, ebx); a.rep.stosb(); a.pop(edi); a.pop(ecx); break;
            case 19: a.push(ebp); a.mov(ebp, esp); a.sub(esp, 24); a.mov(__dword_ptr[ebp - 8], x); a.add(x, __dword_ptr[ebp - 8]); a.leave(); break;
            case 20: a.movups(xmm0, __xmmword_ptr[m]); break;
            case 21: a.paddd(xmm1, xmm0); a.movups(__xmmword_ptr[m], xmm1); break;
            case 22: a.mov(ah, dl); a.add(ah, al); break;
            case 23: a.add(ch, __byte_ptr[m]); break;
            case 24: a.cmp(__dword_ptr[m], x); a.cmovb(eax, __dword_ptr[m]); a.seta(__byte_ptr[m]); break;
            case 25: a.xchg(__dword_ptr[m], x); break;
            case 26: a.bts(__dword_ptr[esi], ebx); a.cmp(x, 5); break;
            case 27: a.push(__dword_ptr[m]); a.pop(x); break;
            case 28: a.imul(x, __dword_ptr[m], r.Next(-9, 99)); a.test(x, x); break;
            default: a.sub(pointer, 8); a.mov(x, __dword_ptr[pointer + 4]); a.add(pointer, 8); break;
        }
    }

    private static byte[] Program(int seed) => CoreSmokeTests.Assemble(32, a =>
    {
        Random r = new(seed);
        Label again = a.CreateLabel();
        a.Label(ref again);
        for (int n = r.Next(3, 30); n > 0; n--)
            Emit(a, r);
        a.dec(__dword_ptr[Counter]);
        a.jnz(again);
        a.hlt();
    });

    private static CpuHarness Machine(byte[] code, int seed, bool translate)
    {
        CpuHarness h = CpuHarness.Protected32(code, translate: translate);
        if (!translate)
            h.Machine.TranslationThreshold = int.MaxValue;
        Random r = new(seed);
        for (ulong i = 0; i < DataBytes; i += 8)
            h.Word(Data + i) = (ulong)r.NextInt64();
        for (int i = 0; i < 4; i++)
            h.State->Gpr[i] = (uint)r.Next();
        for (int i = 0; i < 128; i++)
            h.State->Ymm[i] = (byte)r.Next();
        // Some windows reach across a page's end.
        (h.Rbx, h.Rsi, h.Rdi) = ((ulong)r.Next(16), Data + (r.Next(2) == 0 ? 0x1fc0u : 0x1200u), Data + 0x3000 + (uint)r.Next(64));
        *(uint*)(h.Memory + Counter) = 4;
        h.State->Fs.Base = Data + 0x5000;
        return h;
    }

    private static void Compare(CpuHarness fast, CpuHarness slow, int seed)
    {
        RegionProgram.Same(fast, slow, seed);
        Assert.True(fast.Data(Data, DataBytes).SequenceEqual(slow.Data(Data, DataBytes)), $"seed {seed}: memory");
        Assert.True(new Span<byte>(fast.State->Ymm, 512).SequenceEqual(new Span<byte>(slow.State->Ymm, 512)), $"seed {seed}: vector registers");
    }

    [Fact]
    public void FlatCode_IsAsWithoutTranslation()
    {
        ulong translated = 0;
        for (int seed = 0; seed < 150; seed++)
        {
            byte[] code = Program(seed);
            using CpuHarness fast = Machine(code, seed, true), slow = Machine(code, seed, false);
            Assert.Equal(ExitReason.Hlt, RegionProgram.Run(fast, slow, seed));
            Compare(fast, slow, seed);
            translated += fast.Cpu.Translator.Counters.Translated;
        }
        Assert.True(translated > 10_000, $"{translated} instructions in translated code");
    }

    /// <summary>Segments whose limits matter: the instruction is the interpreter's, and faults there.</summary>
    [Fact]
    public void SegmentWithALimit_FaultsWhereTheInterpreterDoes()
    {
        byte[] code = CoreSmokeTests.Assemble(32, a =>
        {
            Label again = a.CreateLabel();
            a.Label(ref again);
            a.add(eax, __dword_ptr.fs[edx]);
            a.add(edx, 0x100);
            a.jmp(again);
        });
        using CpuHarness fast = Machine(code, 1, true), slow = Machine(code, 1, false);
        foreach (CpuHarness h in (CpuHarness[])[fast, slow])
            (h.State->Fs.Limit, h.Rdx) = (0xfff, 0);
        Assert.Equal(ExitReason.Exception, RegionProgram.Run(fast, slow, 1));
        Assert.Equal((Vector.GP, 0x1000UL), (fast.Exit->Vector, fast.Rdx));
        Compare(fast, slow, 1);
    }

    /// <summary>CS is not to be written to, whatever is stored.</summary>
    [Fact]
    public void StoreOfASelectorThroughCs_Faults()
    {
        byte[] code = CoreSmokeTests.Assemble(32, a =>
        {
            a.mov(__word_ptr.cs[esi], ds);
            a.hlt();
        });
        using CpuHarness fast = Machine(code, 1, true), slow = Machine(code, 1, false);
        Assert.Equal(ExitReason.Exception, RegionProgram.Run(fast, slow, 1));
        Assert.Equal(Vector.GP, fast.Exit->Vector);
        Compare(fast, slow, 1);
    }

    /// <summary>An address that goes round at 4 GiB, with its segment's base and without.</summary>
    [Fact]
    public void Addresses_GoRoundAt4GiB()
    {
        byte[] code = CoreSmokeTests.Assemble(32, a =>
        {
            a.mov(eax, __dword_ptr[esi + 0x2000]);
            a.add(eax, __dword_ptr.fs[edi + 8]);
            a.mov(__dword_ptr[esi + ebx * 4 + 0x2010], eax);
            a.hlt();
        });
        using CpuHarness fast = Machine(code, 2, true), slow = Machine(code, 2, false);
        foreach (CpuHarness h in (CpuHarness[])[fast, slow])
            (h.Rsi, h.Rdi, h.Rbx) = (unchecked(Data - 0x2000u), unchecked(0u - 0x5000u), 0xffff_fffc);
        Assert.Equal(ExitReason.Hlt, RegionProgram.Run(fast, slow, 2));
        Compare(fast, slow, 2);
        Assert.True(fast.Cpu.Translator.Counters.Translated >= 3);
    }

    /// <summary>The same bytes at the same address mean different things in 64-bit and in compatibility mode.</summary>
    [Fact]
    public void Modes_DoNotShareJumps()
    {
        byte[] code = new byte[0x1008];
        // CALL RAX or EAX, HLT; in the next page INC RBX, or DEC EAX and INC EBX; RET.
        ((ReadOnlySpan<byte>)[0xff, 0xd0, 0xf4]).CopyTo(code);
        ((ReadOnlySpan<byte>)[0x48, 0xff, 0xc3, 0xc3]).CopyTo(code.AsSpan(0x1000));
        using CpuHarness h = CpuHarness.Long(code, translate: true);
        for (int round = 0; round < 6; round++)
        {
            bool wide = round % 2 == 0;
            CpuState* c = h.State;
            c->Cs.Access = c->Cs.Access & ~(Segment.L | Segment.DB) | (wide ? Segment.L : Segment.DB);
            c->Rip = CpuHarness.CodeAddress;
            h.Cpu.RecomputeMode();
            (h.Rax, h.Rbx, h.Rsp) = (CpuHarness.CodeAddress + 0x1000, 7, CpuHarness.StackTop);
            h.RunToHlt();
            Assert.Equal((CpuHarness.CodeAddress + 0x1000 - (wide ? 0UL : 1), 8UL, CpuHarness.StackTop), (h.Rax, h.Rbx, h.Rsp));
        }
        Assert.True(h.Cpu.Translator.Counters.Translated > 12);
    }
}

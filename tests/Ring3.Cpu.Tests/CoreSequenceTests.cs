using Iced.Intel;
using Xunit;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>
/// The inline loop with its fused branches and uncomputed flags against the same programs one instruction at a time, where nothing can be fused or left out.
/// </summary>
public sealed unsafe class CoreSequenceTests
{
    private static readonly AssemblerRegister64[] s_r64 = [rax, rcx, rdx, rbx, rbp, rdi, r8, r9, r10, r15];
    private static readonly AssemblerRegister32[] s_r32 = [eax, ecx, edx, ebx, ebp, edi, r8d, r9d, r10d, r15d];
    private static readonly AssemblerRegister32[] s_p32 = [eax, ecx, edx, ebx, ebp, edi];

    private static T Pick<T>(Random r, T[] of) => of[r.Next(of.Length)];

    private static void Emit64(Assembler a, Random r, bool defined)
    {
        AssemblerRegister64 d = Pick(r, s_r64), s = Pick(r, s_r64);
        AssemblerRegister32 d3 = Pick(r, s_r32), s3 = Pick(r, s_r32);
        AssemblerRegister8 d1 = Pick(r, [al, cl, dl, bl]), s1 = Pick(r, [al, cl, dl, bl]);
        AssemblerMemoryOperand m = rsi + r.Next(16) * 8;
        AssemblerMemoryOperand m64 = __qword_ptr[m], m32 = __dword_ptr[m], m8 = __byte_ptr[m];
        int imm = r.Next(4) == 0 ? r.Next() : r.Next(-130, 130);
        byte count = (byte)r.Next(1, 32);
        int choice = r.Next(66);
        switch (choice)
        {
            case 0: a.add(d, s); break;
            case 1: a.add(d3, s3); break;
            case 2: a.sub(d, s); break;
            case 3: a.sub(d3, imm); break;
            case 4: a.and(d, s); break;
            case 5: a.and(d3, s3); break;
            case 6: a.or(d, imm); break;
            case 7: a.xor(d3, s3); break;
            case 8: a.adc(d, s); break;
            case 9: a.sbb(d, imm); break;
            case 10: a.adc(d3, s3); break;
            case 11: a.cmp(d, s); break;
            case 12: a.cmp(d3, imm); break;
            case 13: a.test(d, s); break;
            case 14: a.inc(d); break;
            case 15: a.dec(d3); break;
            case 16: a.neg(d); break;
            case 17: a.not(d3); break;
            case 18: a.shl(d, count); break;
            case 19: a.shr(d3, count); break;
            case 20: a.sar(d, count); break;
            case 21: a.sar(d3, count); break;
            case 22: a.shl(d3, cl); break;
            case 23: a.shr(d, cl); break;
            case 24: a.sar(d3, cl); break;
            case 25: a.rol(d, count); break;
            case 26: a.ror(d3, count); break;
            case 27: a.imul(d, s); break;
            case 28: a.imul(d3, s3, imm); break;
            case 29: a.mul(s); break;
            case 30: a.mulx(d, s, Pick(r, s_r64)); break;
            case 31: a.adcx(d, s); break;
            case 32: a.adox(d, s); break;
            case 33: a.mov(d, s); break;
            case 34: a.mov(d3, s3); break;
            case 35: a.mov(d, imm); break;
            case 36: a.lea(d, __[s + d * 4 + imm]); break;
            case 37: a.lea(d3, __[s + 7]); break;
            case 38: a.movzx(d3, s1); break;
            case 39: a.movsx(d, s1); break;
            case 40: a.movsxd(d, s3); break;
            case 41: a.cdqe(); break;
            case 42: a.cqo(); break;
            case 43: a.setb(d1); break;
            case 44: a.setne(d1); break;
            case 45: a.setle(d1); break;
            case 46: a.cmovae(d, s); break;
            case 47: a.cmovl(d3, s3); break;
            case 48: a.cmova(d, s); break;
            case 49: a.mov(d, m64); break;
            case 50: a.mov(m64, s); break;
            case 51: a.mov(d3, m32); break;
            case 52: a.add(d, m64); break;
            case 53: a.add(m64, s); break;
            case 54: a.cmp(m32, imm); break;
            case 55: a.cmp(d, m64); break;
            case 56: a.inc(m32); break;
            case 57: a.adc(m64, s); break;
            case 58: a.movzx(d3, m8); break;
            case 59: a.movsx(d3, m8); break;
            case 60: a.push(d); a.pop(s); break;
            case 61: a.test(m8, 0x55); break;
            case 62: a.cmp(d1, s1); break;
            case 63: a.test(d1, 0x21); break;
            case 64: a.bt(d, s); break;
            default: a.mov(m32, imm); break;
        }
        // Shifts, rotations, multiplications and bit tests.
        if (defined && choice is >= 18 and <= 29 or 64 && defined)
            a.test(d, d);
    }

    private static void Emit32(Assembler a, Random r, bool defined)
    {
        AssemblerRegister32 d = Pick(r, s_p32), s = Pick(r, s_p32);
        AssemblerMemoryOperand m32 = __dword_ptr[esi + r.Next(16) * 4];
        int imm = r.Next(-200, 200);
        byte count = (byte)r.Next(1, 32);
        int choice = r.Next(24);
        switch (choice)
        {
            case 0: a.add(d, s); break;
            case 1: a.sub(d, imm); break;
            case 2: a.adc(d, s); break;
            case 3: a.sbb(d, imm); break;
            case 4: a.xor(d, s); break;
            case 5: a.cmp(d, s); break;
            case 6: a.test(d, s); break;
            case 7: a.inc(d); break;
            case 8: a.dec(d); break;
            case 9: a.shl(d, count); break;
            case 10: a.shr(d, cl); break;
            case 11: a.mov(d, m32); break;
            case 12: a.mov(m32, s); break;
            case 13: a.add(d, m32); break;
            case 14: a.cmp(m32, imm); break;
            case 15: a.push(d); a.pop(s); break;
            case 16: a.lea(d, __[s + d * 2 + imm]); break;
            case 17: a.movzx(d, bl); break;
            case 18: a.setb(al); break;
            case 19: a.cmovne(d, s); break;
            case 20: a.imul(d, s); break;
            case 21: a.add(m32, s); break;
            case 22: a.neg(d); break;
            default: a.mov(d, imm); break;
        }
        // Shifts and multiplications.
        if (defined && choice is 9 or 10 or 20)
            a.test(d, d);
    }

    private static void Branch(Assembler a, Random r, Label to)
    {
        switch (r.Next(16))
        {
            case 0: a.jo(to); break;
            case 1: a.jno(to); break;
            case 2: a.jb(to); break;
            case 3: a.jae(to); break;
            case 4: a.je(to); break;
            case 5: a.jne(to); break;
            case 6: a.jbe(to); break;
            case 7: a.ja(to); break;
            case 8: a.js(to); break;
            case 9: a.jns(to); break;
            case 10: a.jp(to); break;
            case 11: a.jnp(to); break;
            case 12: a.jl(to); break;
            case 13: a.jge(to); break;
            case 14: a.jle(to); break;
            default: a.jg(to); break;
        }
    }

    private static byte[] Program(int bits, int seed, bool defined = false)
    {
        Random r = new(seed);
        return CoreSmokeTests.Assemble(bits, a =>
        {
            Label[] labels = [.. Enumerable.Range(0, 12).Select(_ => a.CreateLabel())];
            for (int i = 0; i < labels.Length; i++)
            {
                for (int n = r.Next(1, 7); n > 0; n--)
                    if (bits == 64)
                        Emit64(a, r, defined);
                    else
                        Emit32(a, r, defined);
                Branch(a, r, labels[r.Next(i, labels.Length)]);
                a.Label(ref labels[i]);
                a.nop();
            }
            a.hlt();
        });
    }

    private static CpuHarness Create(int bits, byte[] code, int seed, bool translate = false)
    {
        CpuHarness h = bits == 64 ? CpuHarness.Long(code, translate: translate) : CpuHarness.Protected32(code);
        Random r = new(seed);
        for (int i = 0; i < 16; i++)
            if (i != 4)
            {
                ulong value = r.Next(3) switch { 0 => (ulong)r.Next(-3, 4), 1 => (ulong)r.NextInt64(), _ => (ulong)r.Next() << 31 };
                h.State->Gpr[i] = bits == 64 ? value : (uint)value;
            }
        h.Rsi = CpuHarness.DataAddress;
        r.NextBytes(h.Data(CpuHarness.DataAddress, 256));
        h.RflagsValue = 2 | (ulong)r.Next() & Flags.Status;
        return h;
    }

    /// <summary>
    /// Translated programs against single steps of the interpreter. The programs read no flag that the manuals leave undefined: there the translated
    /// instruction has what the host's processor gives.
    /// </summary>
    [Fact]
    public void TranslatedProgramsBehaveLikeSingleInstructions()
    {
        for (int seed = 1; seed <= 400; seed++)
        {
            byte[] code = Program(64, seed, defined: true);
            using CpuHarness fast = Create(64, code, seed, translate: true), slow = Create(64, code, seed);
            slow.State->HostSingleStep = 1;
            fast.RunToHlt();
            ExitReason reason;
            while ((reason = slow.Run()) == ExitReason.SingleStep)
            { }
            Assert.Equal(ExitReason.Hlt, reason);
            Assert.True(fast.Machine.Blocks.RegionsMade != 0);
            Same(fast, slow, seed);
        }
    }

    private static void Same(CpuHarness fast, CpuHarness slow, int seed)
    {
        for (int i = 0; i < 16; i++)
            Assert.True(fast.State->Gpr[i] == slow.State->Gpr[i], $"seed {seed}: register {i} is {fast.State->Gpr[i]:x}, singly {slow.State->Gpr[i]:x}");
        Assert.True(fast.RflagsValue == slow.RflagsValue, $"seed {seed}: flags are {fast.RflagsValue:x}, singly {slow.RflagsValue:x}");
        Assert.True(fast.Data(CpuHarness.DataAddress, 256).SequenceEqual(slow.Data(CpuHarness.DataAddress, 256)), $"seed {seed}: memory");
        Assert.Equal(slow.State->InstructionsRetired, fast.State->InstructionsRetired);
        Assert.Equal(slow.State->Rip, fast.State->Rip);
    }

    [Theory]
    [InlineData(64, 1, 700)]
    [InlineData(32, 10_000, 300)]
    public void OptimizedBlocksBehaveLikeSingleInstructions(int bits, int firstSeed, int programs)
    {
        for (int seed = firstSeed; seed < firstSeed + programs; seed++)
        {
            // Translated instructions leave in undefined flags what the host's processor leaves there.
            byte[] code = Program(bits, seed, defined: Engine.Threshold != int.MaxValue);
            using CpuHarness fast = Create(bits, code, seed), slow = Create(bits, code, seed);
            slow.State->HostSingleStep = 1;
            fast.RunToHlt();
            ExitReason reason;
            while ((reason = slow.Run()) == ExitReason.SingleStep)
            { }
            Assert.Equal(ExitReason.Hlt, reason);
            Same(fast, slow, seed);
        }
    }
}

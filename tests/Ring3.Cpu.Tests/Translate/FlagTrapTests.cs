using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests.Translate;

/// <summary>Flags where other translators have lost them: at faults, around inserted checks, over edges, with every operand.</summary>
public sealed unsafe class FlagTrapTests
{
    private const ulong Data = RegionMachine.Data, Gone = Data + 0x2_0000;
    private static readonly AssemblerRegister64[] s_r64 = [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15];
    private static readonly AssemblerRegister32[] s_r32 = [eax, ecx, edx, ebx, esp, ebp, esi, edi, r8d, r9d, r10d, r11d, r12d, r13d, r14d, r15d];
    private static readonly AssemblerRegister16[] s_r16 = [ax, cx, dx, bx, sp, bp, si, di, r8w, r9w, r10w, r11w, r12w, r13w, r14w, r15w];
    private static readonly AssemblerRegister8[] s_r8 = [al, cl, dl, bl, spl, bpl, sil, dil, r8b, r9b, r10b, r11b, r12b, r13b, r14b, r15b];

    private static void Values(CpuHarness h, int seed)
    {
        Random r = new(seed);
        for (int i = 0; i < 16; i++)
            h.State->Gpr[i] = r.Next(4) == 0 ? (ulong)r.Next(-2, 3) : (ulong)r.NextInt64() * 3;
        h.RflagsValue = 2 | (ulong)(uint)r.Next() & Flags.Status;
        for (ulong i = 0; i < 0x200; i += 8)
            h.Word(Data + i) = (ulong)r.NextInt64() * 5;
        h.State->Gpr[6] = Data;
        h.State->Gpr[4] = CpuHarness.StackTop;
    }

    private static readonly Action<Assembler, int, int>[] s_producers =
    [
        (a, x, y) => a.add(s_r64[x], s_r64[y]), (a, x, y) => a.sub(s_r32[x], s_r32[y]), (a, x, y) => a.cmp(s_r16[x], s_r16[y]), (a, x, y) =>
            a.and(s_r8[x], s_r8[y]),
        (a, x, y) => a.or(s_r64[x], -5), (a, x, y) => a.xor(s_r32[x], s_r32[y]), (a, x, y) => a.test(s_r64[x], s_r64[y]), (a, x, y) =>
            a.adc(s_r32[x], s_r32[y]), (a, x, y) => a.sbb(s_r64[x], s_r64[y]),
        (a, x, y) => a.inc(s_r16[x]), (a, x, y) => a.dec(s_r64[x]), (a, x, y) => a.neg(s_r8[x]), (a, x, y) => a.add(s_r16[x], -129), (a, x, y) =>
            a.sub(s_r8[x], (sbyte)7), (a, x, y) => a.cmp(s_r64[x], 1),
        (a, x, y) => a.shl(s_r32[x], 1), (a, x, y) => a.rcl(s_r64[x], 1), (a, x, y) => a.add(s_r64[x], __qword_ptr[rsi + 8]), (a, x, y) =>
            a.sub(__dword_ptr[rsi + 16], s_r32[y]), (a, x, y) => a.cmp(__byte_ptr[rsi + 24], 3),
        (a, x, y) => a.xadd(s_r32[x], s_r32[y]), (a, x, y) => a.cmpxchg(s_r64[x], s_r64[y]), (a, x, y) => a.popcnt(s_r32[x], s_r32[y]), (a, x, y) =>
            { a.mov(s_r64[x], s_r64[y]); a.stc(); },
        (a, x, y) => a.cmp(__qword_ptr[rsi + 32], s_r64[y]), (a, x, y) => a.cmp(s_r32[x], __dword_ptr[rsi + 40]), (a, x, y) => a.cmp(__word_ptr[rsi + 8], 9),
        (a, x, y) => a.test(__byte_ptr[rsi + 16], s_r8[y]), (a, x, y) => a.test(__qword_ptr[rsi + 24], -3), (a, x, y) => a.sub(s_r16[x], __word_ptr[rsi + 8]),
        (a, x, y) => a.add(__qword_ptr[rsi + 16], s_r64[y]), (a, x, y) => a.add(__byte_ptr[rsi + 16], (sbyte)-1),
        (a, x, y) => a.and(__dword_ptr[rsi + 8], s_r32[y]),
        (a, x, y) => a.or(__word_ptr[rsi + 8], s_r16[y]), (a, x, y) => a.xor(__qword_ptr[rsi + 8], 1), (a, x, y) => a.neg(__dword_ptr[rsi + 24]),
        (a, x, y) => a.inc(__qword_ptr[rsi + 8]), (a, x, y) => a.sub(s_r64[x], s_r64[x]), (a, x, y) => a.add(s_r32[x], s_r32[x]),
        (a, x, y) => a.shr(s_r64[x], 3), (a, x, y) => a.sar(s_r32[x], 5), (a, x, y) => a.shl(s_r64[x], 60), (a, x, y) => a.shr(s_r16[x], 1),
    ];

    private const int LeftShift = 15;

    /// <summary>The instruction behind the producer of the flags faults; with what overwrites the producer's operands in between, and without.</summary>
    [Fact]
    public void ProducerBeforeAFault()
    {
        for (int producer = 0; producer < s_producers.Length; producer++)
            for (int x = 0; x < 16; x++)
            {
                int y = (x * 7 + producer) & 15;
                if (x is 6 or 4 || y is 6 or 4)
                    continue;
                for (int between = 0; between < 3; between++)
                {
                    using RegionMachine m = new(a =>
                    {
                        s_producers[producer](a, x, y);
                        if (between == 1)
                            a.mov(s_r64[x], 12345);
                        if (between == 2)
                            a.lea(s_r32[y], __[rsi + 3]);
                        a.mov(__[0x12_0000], eax);
                        a.hlt();
                    }, h => { Values(h, producer * 100 + x); h.NestedEntry(Gone) = 0; });
                    // AF of a shift is what the host's processor makes of it.
                    if (producer == LeftShift)
                        m.FlagMask = ~Rflags.AF;
                    Assert.Equal(ExitReason.NestedFault, m.Run($"producer {producer}, {s_r64[x]}, {s_r64[y]}, {between}"));
                    Assert.True(m.Translated > 0);
                }
            }
    }

    /// <summary>
    /// A condition of each kind is read behind accesses, which cost the host's flags, and then in another region, to which the flags go in the state.
    /// </summary>
    [Fact]
    public void ProducerBeforeReaders_HereAndInAnotherPage()
    {
        for (int producer = 0; producer < s_producers.Length; producer++)
            for (int x = 0; x < 16; x++)
            {
                int y = (x * 5 + producer) & 15;
                if (x is 6 or 4 || y is 6 or 4)
                    continue;
                int condition = 2 + 3 * ((x + producer) % 5);
                using RegionMachine m = new(a =>
                {
                    Label away = a.CreateLabel();
                    s_producers[producer](a, x, y);
                    a.lea(s_r64[x], __[rsi + 0x80]);
                    a.mov(__[rsi + 0x100], s_r64[y]);
                    a.mov(s_r32[y], __[rsi + 0x60]);
                    Set(a, condition, 0x120);
                    a.jmp(away);
                    for (int n = 0; n < 4096; n++)
                        a.int3();
                    a.Label(ref away);
                    Set(a, condition, 0x121);
                    a.hlt();
                }, h => Values(h, producer * 1000 + x * 16 + condition));
                // Undefined: OF and AF of shifts, AF of logical operations is what processors do.
                m.FlagMask = ~(Rflags.AF | Rflags.OF);
                Assert.Equal(ExitReason.Hlt, m.Run($"producer {producer}, {s_r64[x]}, {s_r64[y]}, condition {condition}"));
            }
    }

    private static void Set(Assembler a, int condition, int at)
    {
        switch (condition)
        {
            case 2: a.setb(__byte_ptr[rsi + at]); break;
            case 5: a.setne(__byte_ptr[rsi + at]); break;
            case 8: a.sets(__byte_ptr[rsi + at]); break;
            case 11: a.setnp(__byte_ptr[rsi + at]); break;
            default: a.setbe(__byte_ptr[rsi + at]); break;
        }
    }

    /// <summary>Flags of an operation on RSP in front of a call, an indirect call or a return, which move RSP themselves.</summary>
    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    public void ProducerOnRsp_BeforeATransfer(int how)
    {
        for (int n = -24; n <= 24; n += 8)
        {
            using RegionMachine m = new(a =>
            {
                Label target = a.CreateLabel();
                a.lea(rbx, __[target]);
                if (how == 2)
                    a.mov(__qword_ptr[rsp + n], rbx);
                a.add(rsp, n);
                if (how == 0)
                    a.call(target);
                else if (how == 1)
                    a.call(rbx);
                else
                    a.ret();
                a.int3();
                a.Label(ref target);
                a.mov(eax, 5);
                a.hlt();
            }, h => Values(h, n));
            Assert.Equal(ExitReason.Hlt, m.Run($"add rsp, {n}, then {how}"));
        }
    }

    /// <summary>Carry out of shifts into ADC and a branch, at all counts for which it is defined.</summary>
    [Fact]
    public void CarryOfShifts_AtEveryCount()
    {
        for (int size = 0; size < 4; size++)
            for (int form = 0; form < 3; form++)
                for (int count = 0; count <= 66; count++)
                {
                    if ((count & (size == 3 ? 63 : 31)) > 8 << size)
                        continue;
                    using RegionMachine m = new(a =>
                    {
                        Label over = a.CreateLabel();
                        a.mov(ecx, count);
                        Shift(a, form, size);
                        a.jc(over);
                        a.inc(r10);
                        a.Label(ref over);
                        a.mov(rax, __[rsi]);
                        a.mov(ecx, count);
                        Shift(a, form, size);
                        a.mov(__[rsi + 8], rdx);
                        a.adc(r9, 0);
                        a.hlt();
                    }, h => Values(h, count + 1000 * size));
                    Assert.Equal(ExitReason.Hlt, m.Run($"size {size}, form {form}, count {count}"));
                }
    }

    private static void Shift(Assembler a, int form, int size)
    {
        switch (form * 4 + size)
        {
            case 0: a.shl(dl, cl); break;
            case 1: a.shl(dx, cl); break;
            case 2: a.shl(edx, cl); break;
            case 3: a.shl(rdx, cl); break;
            case 4: a.shr(dl, cl); break;
            case 5: a.shr(dx, cl); break;
            case 6: a.shr(r12d, cl); break;
            case 7: a.shr(r13, cl); break;
            case 8: a.sar(dl, cl); break;
            case 9: a.sar(bp, cl); break;
            case 10: a.sar(edx, cl); break;
            default: a.sar(r15, cl); break;
        }
    }

    /// <summary>Carry of 16-bit double shifts, read in another block.</summary>
    [Fact]
    public void CarryOfDoubleShifts_OverABlocksEdge()
    {
        for (int count = 1; count <= 16; count++)
            for (int way = 0; way < 4; way++)
            {
                using RegionMachine m = new(a =>
                {
                    Label next = a.CreateLabel();
                    a.mov(ecx, count);
                    if (way == 0)
                        a.shrd(dx, bx, (byte)count);
                    else if (way == 1)
                        a.shrd(r12w, bx, cl);
                    else if (way == 2)
                        a.shld(__word_ptr[rsi], bx, (byte)count);
                    else
                        a.shld(dx, r14w, cl);
                    a.jmp(next);
                    a.int3();
                    a.Label(ref next);
                    a.adc(r9, 0);
                    a.hlt();
                }, h => Values(h, count * 4 + way));
                Assert.Equal(ExitReason.Hlt, m.Run($"count {count}, {way}"));
            }
    }

    /// <summary>SBB and ADC of all pairs of registers, of all sizes, one behind the other through the carry.</summary>
    [Fact]
    public void BorrowsOfEveryPairOfRegisters()
    {
        for (int size = 0; size < 4; size++)
            for (int x = 0; x < 16; x++)
            {
                using RegionMachine m = new(a =>
                {
                    for (int y = 0; y < 16; y++)
                        switch (size)
                        {
                            case 0: a.sbb(s_r8[x], s_r8[y]); a.adc(s_r8[y], s_r8[x]); break;
                            case 1: a.sbb(s_r16[x], s_r16[y]); a.adc(s_r16[y], s_r16[x]); break;
                            case 2: a.sbb(s_r32[x], s_r32[y]); a.adc(s_r32[y], s_r32[x]); break;
                            default: a.sbb(s_r64[x], s_r64[y]); a.adc(s_r64[y], s_r64[x]); break;
                        }
                    a.hlt();
                }, h => { Values(h, x + size * 16); h.State->Gpr[6] = 77; h.State->Gpr[4] = ulong.MaxValue; });
                Assert.Equal(ExitReason.Hlt, m.Run($"size {size}, {s_r64[x]}"));
                Assert.True(m.Translated >= 32);
            }
    }

    /// <summary>All six flags of CMPXCHG, equal and unequal, to registers and memory.</summary>
    [Fact]
    public void FlagsOfCmpxchg()
    {
        for (int seed = 0; seed < 60; seed++)
        {
            using RegionMachine m = new(a =>
            {
                switch (seed % 6)
                {
                    case 0: a.cmpxchg(rdx, rbx); break;
                    case 1: a.cmpxchg(__dword_ptr[rsi + 4], r13d); break;
                    case 2: a.@lock.cmpxchg(__byte_ptr[rsi + 3], cl); break;
                    case 3: a.cmpxchg(r12w, r15w); break;
                    case 4: a.@lock.cmpxchg(__qword_ptr[rsi], r8); break;
                    default: a.cmpxchg(dl, r14b); break;
                }
                a.hlt();
            }, h =>
            {
                Values(h, seed);
                if (seed % 4 == 0)
                {
                    h.State->Gpr[0] = h.State->Gpr[2] = h.State->Gpr[12];
                    h.Word(Data) = h.Rax;
                }
            });
            Assert.Equal(ExitReason.Hlt, m.Run($"seed {seed}"));
        }
    }

    /// <summary>Every condition, with accesses, pushes and loads between the comparison and its reader.</summary>
    [Fact]
    public void AccessesBetweenProducerAndConsumer()
    {
        for (int condition = 0; condition < 16; condition++)
            for (int seed = 0; seed < 24; seed++)
            {
                byte[] code = CoreSmokeTests.Assemble(64, a =>
                {
                    if (seed % 3 == 0)
                        a.cmp(edx, ebx);
                    else if (seed % 3 == 1)
                        a.sub(r12, r13);
                    else
                        a.add(__dword_ptr[rsi + 32], ecx);
                    a.mov(__[rsi + 40], rdi);
                    a.push(rbp);
                    a.mov(r8d, __[rsi + 12]);
                    a.pop(r9);
                    a.movzx(r10d, __word_ptr[rsi + 2]);
                    // SETcc [rsi + 64], CMOVcc r11, rdi, and Jcc over an INC.
                    a.db(0x0f, (byte)(0x90 + condition), 0x46, 0x40);
                    a.db(0x4c, 0x0f, (byte)(0x40 + condition), 0xdf);
                    a.mov(__[rsi + 48], r11);
                    a.db((byte)(0x70 + condition), 3, 0x48, 0xff, 0xc0);
                    a.hlt();
                });
                using RegionMachine m = new(code, h =>
                {
                    Values(h, seed);
                    if (seed % 4 == 0)
                        (h.State->Gpr[3], h.State->Gpr[13]) = (h.Rdx, h.State->Gpr[12]);
                });
                Assert.Equal(ExitReason.Hlt, m.Run($"condition {condition:x}, seed {seed}"));
            }
    }

    /// <summary>BT, BTS, BTR and BTC change CF and keep ZF.</summary>
    [Fact]
    public void BitTests_KeepZero()
    {
        for (int bit = 0; bit < 70; bit++)
            for (int zero = 0; zero < 2; zero++)
            {
                using RegionMachine m = new(a =>
                {
                    a.mov(ecx, bit);
                    a.mov(eax, 1 - zero);
                    a.test(eax, eax);
                    a.bt(rdx, rcx);
                    a.setz(r8b);
                    a.bts(r12d, ecx);
                    a.setz(r9b);
                    a.btr(__word_ptr[rsi], cx);
                    a.setz(r10b);
                    a.btc(rdx, (byte)(bit & 63));
                    a.setz(r11b);
                    a.hlt();
                }, h => Values(h, bit));
                m.FlagMask = Rflags.ZF | Rflags.CF;
                Assert.Equal(ExitReason.Hlt, m.Run($"bit {bit}, ZF {zero}"));
                Assert.Equal(zero, (byte)m.Fast.State->Gpr[8] & (byte)m.Fast.State->Gpr[9] & (byte)m.Fast.State->Gpr[10] & (byte)m.Fast.State->Gpr[11]);
            }
    }

    /// <summary>BZHI with counts above the operand's size.</summary>
    [Fact]
    public void Bzhi_AtEveryCount()
    {
        for (int count = 0; count < 256; count++)
        {
            using RegionMachine m = new(a =>
            {
                a.mov(ecx, count | 0x7700);
                a.bzhi(rdx, rbx, rcx);
                a.setc(r8b);
                a.bzhi(r12d, r13d, ecx);
                a.setc(r9b);
                a.bzhi(rdi, __qword_ptr[rsi], rcx);
                a.hlt();
            }, h => Values(h, count));
            m.FlagMask = Rflags.ZF | Rflags.CF | Rflags.SF | Rflags.OF;
            Assert.Equal(ExitReason.Hlt, m.Run($"count {count}"));
            Assert.Equal((count > 63 ? 1 : 0, count > 31 ? 1 : 0), (m.Fast.State->Gpr[8] & 0xff, m.Fast.State->Gpr[9] & 0xff) is var (x, y) ? ((int)x, (int)y)
                : default);
        }
    }
}

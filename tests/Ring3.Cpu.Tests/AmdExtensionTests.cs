using Iced.Intel;
using Ring3.Arch;
using static Iced.Intel.AssemblerRegisters;

namespace Ring3.Cpu.Tests;

/// <summary>SSE4a, MXCSR.MM and CLZERO, which only the AMD model has: results by the manual's definitions, in the interpreter and in translated code.</summary>
public sealed unsafe class AmdExtensionTests
{
    private const ulong Data = CpuHarness.DataAddress, ReadOnly = 4 << 20;
    private const uint Mm = 1 << 17;

    public static TheoryData<bool> Engines => [false, true];

    private static CpuHarness Create(Action<Assembler> code, bool translate = false, int cpl = 0, ProcessorModel? model = null, int bits = 64)
    {
        byte[] bytes = Assemble(code, bits);
        model ??= ProcessorModel.Zen4;
        CpuHarness h = bits == 64 ? CpuHarness.Long(bytes, cpl, model: model, translate: translate) : CpuHarness.Protected32(bytes, cpl, model: model);
        Random random = new(17);
        random.NextBytes(h.Data(Data, 8192));
        return h;
    }

    private static byte[] Assemble(Action<Assembler> code, int bits)
    {
        var a = new Assembler(bits);
        code(a);
        a.int3();
        using var stream = new MemoryStream();
        a.Assemble(new StreamCodeWriter(stream), CpuHarness.CodeAddress);
        return stream.ToArray();
    }

    /// <summary>Runs to the end of the code, or to an exception; returns its vector.</summary>
    private static byte Run(CpuHarness h)
    {
        Assert.Equal(ExitReason.Exception, h.Run());
        return h.Exit->Vector;
    }

    private static ulong* Xmm(CpuHarness h, int n) => (ulong*)(h.State->Ymm + 32 * n);

    private static void SetXmm(CpuHarness h, int n, ulong low, ulong high)
    {
        Xmm(h, n)[0] = low;
        Xmm(h, n)[1] = high;
        Xmm(h, n)[2] = Xmm(h, n)[3] = 0x5555_5555_5555_5555;
    }

    /// <summary>A destination's low quadword; its upper one is zero, and what lies above an XMM register stays.</summary>
    private static ulong Result(CpuHarness h, int n)
    {
        Assert.Equal(0UL, Xmm(h, n)[1]);
        Assert.Equal((0x5555_5555_5555_5555UL, 0x5555_5555_5555_5555UL), (Xmm(h, n)[2], Xmm(h, n)[3]));
        return Xmm(h, n)[0];
    }

    /// <summary>Length, index, and the field of 0123456789ABCDEF. Only six bits of both count.</summary>
    public static TheoryData<byte, byte, ulong> Extractions => new()
    {
        { 8, 4, 0xde },
        { 8, 0, 0xef },
        { 1, 0, 1 },
        { 1, 63, 0 },
        { 1, 56, 1 },
        { 16, 48, 0x0123 },
        { 63, 0, 0x0123_4567_89ab_cdef },
        { 0, 0, 0x0123_4567_89ab_cdef },
        { 64, 64, 0x0123_4567_89ab_cdef },
        { 0xc8, 0x84, 0xde },
        // Beyond bit 63: undefined, zeros here.
        { 32, 48, 0x0123 },
        { 0, 60, 0 },
        { 0, 8, 0x01_2345_6789_abcd },
    };

    [Theory]
    [MemberData(nameof(Extractions))]
    public void Extrq_TakesTheField(byte length, byte index, ulong field)
    {
        foreach (bool translate in (bool[])[false, true])
        {
            using CpuHarness h = Create(a => { a.extrq(xmm1, length, index); a.extrq(xmm9, xmm10); }, translate);
            SetXmm(h, 1, 0x0123_4567_89ab_cdef, ulong.MaxValue);
            SetXmm(h, 9, 0x0123_4567_89ab_cdef, ulong.MaxValue);
            // Bits 5:0 and 13:8; all others are ignored.
            SetXmm(h, 10, 0xffff_ffff_ffff_0000 | (ulong)index << 8 | length, ulong.MaxValue);
            Assert.Equal(Vector.BP, Run(h));
            Assert.Equal((field, field), (Result(h, 1), Result(h, 9)));
        }
    }

    /// <summary>Length, index, and ones with the field of 0123456789ABCDEF in them.</summary>
    public static TheoryData<byte, byte, ulong> Insertions => new()
    {
        { 8, 4, 0xffff_ffff_ffff_feff },
        { 16, 0, 0xffff_ffff_ffff_cdef },
        { 16, 48, 0xcdef_ffff_ffff_ffff },
        { 32, 8, 0xffff_ff89_abcd_efff },
        { 0, 0, 0x0123_4567_89ab_cdef },
        { 0x90, 0xf0, 0xcdef_ffff_ffff_ffff },
        // Beyond bit 63: undefined, lost here.
        { 32, 48, 0xcdef_ffff_ffff_ffff },
        { 0, 16, 0x4567_89ab_cdef_ffff },
    };

    [Theory]
    [MemberData(nameof(Insertions))]
    public void Insertq_PlacesTheField(byte length, byte index, ulong result)
    {
        foreach (bool translate in (bool[])[false, true])
        {
            using CpuHarness h = Create(a => { a.insertq(xmm2, xmm3, length, index); a.insertq(xmm11, xmm12); }, translate);
            SetXmm(h, 2, ulong.MaxValue, 1);
            SetXmm(h, 3, 0x0123_4567_89ab_cdef, 2);
            SetXmm(h, 11, ulong.MaxValue, 1);
            // Bits 69:64 and 77:72.
            SetXmm(h, 12, 0x0123_4567_89ab_cdef, 0xffff_ffff_ffff_0000 | (ulong)index << 8 | length);
            Assert.Equal(Vector.BP, Run(h));
            Assert.Equal((result, result), (Result(h, 2), Result(h, 11)));
        }
    }

    /// <summary>Every length and index whose sum the manual defines, against a definition by single bits.</summary>
    [Fact]
    public void EveryDefinedField()
    {
        const ulong from = 0x9e37_79b9_7f4a_7c15, to = 0x0f1e_2d3c_4b5a_6978;
        using CpuHarness h = Create(a => { a.extrq(xmm1, xmm2); a.insertq(xmm3, xmm4); });
        for (int length = 1; length <= 64; length++)
        {
            for (int index = 0; index + length <= 64; index++)
            {
                ulong extracted = 0, inserted = to;
                for (int bit = 0; bit < length; bit++)
                {
                    extracted |= (from >> (index + bit) & 1UL) << bit;
                    inserted = inserted & ~(1UL << (index + bit)) | (from >> bit & 1) << (index + bit);
                }
                ulong control = (ulong)(index << 8 | length & 63);
                SetXmm(h, 1, from, 0);
                SetXmm(h, 2, control, 0);
                SetXmm(h, 3, to, 0);
                SetXmm(h, 4, from, control);
                h.State->Rip = CpuHarness.CodeAddress;
                Assert.Equal(Vector.BP, Run(h));
                Assert.True((extracted, inserted) == (Result(h, 1), Result(h, 3)), $"length {length} index {index}");
            }
        }
    }

    [Theory]
    [MemberData(nameof(Engines))]
    public void ScalarStores_WriteTheElementAlone(bool translate)
    {
        using CpuHarness h = Create(a =>
        {
            a.movntss(__dword_ptr[rsi + 1], xmm1);
            a.movntsd(__qword_ptr[rsi + 0xffc], xmm1);
        }, translate);
        byte[] expected = h.Data(Data, 8192).ToArray();
        SetXmm(h, 1, 0x0123_4567_89ab_cdef, ulong.MaxValue);
        h.Rsi = Data;
        Assert.Equal(Vector.BP, Run(h));
        BitConverter.TryWriteBytes(expected.AsSpan(1), 0x89ab_cdefu);
        BitConverter.TryWriteBytes(expected.AsSpan(0xffc), 0x0123_4567_89ab_cdefUL);
        Assert.True(h.Data(Data, 8192).SequenceEqual(expected));
    }

    private static readonly Action<Assembler>[] s_sse4a =
    [
        a => a.extrq(xmm0, 1, 1), a => a.extrq(xmm0, xmm1), a => a.insertq(xmm0, xmm1, 1, 1), a => a.insertq(xmm0, xmm1),
        a => a.movntss(__dword_ptr[rsi], xmm0), a => a.movntsd(__qword_ptr[rsi], xmm0),
    ];

    /// <summary>#UD on Intel's processors, without the bit, and where SSE is not enabled; #NM after a task switch.</summary>
    [Fact]
    public void Sse4a_WhereItIsNot_IsUndefined()
    {
        foreach (Action<Assembler> code in s_sse4a)
        {
            byte outcome(Action<CpuHarness> change, ProcessorModel? model = null)
            {
                using CpuHarness h = Create(code, model: model);
                h.Rsi = Data;
                change(h);
                h.Cpu.RecomputeMode();
                return Run(h);
            }
            Assert.Equal(Vector.BP, outcome(_ => { }));
            Assert.Equal(Vector.UD, outcome(_ => { }, ProcessorModel.EmeraldRapids));
            Assert.Equal(Vector.UD, outcome(h => h.Cpu.CpuidFeatures.Sse4a = false));
            Assert.Equal(Vector.UD, outcome(h => h.State->Cr4 &= ~Cr4.OSFXSR));
            Assert.Equal(Vector.UD, outcome(h => h.State->Cr0 |= Cr0.EM));
            Assert.Equal(Vector.NM, outcome(h => h.State->Cr0 |= Cr0.TS));
        }
    }

    // ---- MXCSR.MM

    /// <summary>The bit can be set where the processor has it, by all that load MXCSR, and the images' mask says so.</summary>
    [Theory]
    [InlineData("amd", true, true)]
    [InlineData("amd", false, false)]
    [InlineData("intel", true, false)]
    public void Mm_CanBeSet_WhereItIs(string vendor, bool reported, bool exists)
    {
        ProcessorModel.TryParse(vendor, out ProcessorModel model);
        Action<Assembler>[] loads =
        [
            a => a.ldmxcsr(__dword_ptr[rsi + 24]), a => a.vldmxcsr(__dword_ptr[rsi + 24]), a => a.fxrstor(__[rsi]), a => a.fxrstor64(__[rsi]),
            a => a.xrstor(__[rsi]), a => a.xrstor64(__[rsi]),
        ];
        foreach (Action<Assembler> load in loads)
        {
            using CpuHarness h = Create(a => { load(a); a.fxsave(__[rdi]); }, model: model);
            h.Cpu.CpuidFeatures.MisalignedSse &= reported;
            h.Data(Data, 8192).Clear();
            h.Word(Data + 24) = 0x1f80 | Mm;
            h.Word(Data + 512) = Xcr0.Sse;
            (h.Rsi, h.Rdi, h.Rax, h.Rdx) = (Data, Data + 0x1000, 7, 0);
            Assert.Equal(exists ? Vector.BP : Vector.GP, Run(h));
            Assert.Equal(exists ? 0x1f80 | Mm : 0x1f80, h.State->Mxcsr);
            if (exists)
                Assert.Equal((ulong)(0x1f80 | Mm) | 0x2_ffffUL << 32, h.Word(Data + 0x1000 + 24));
            // What lies beside it stays reserved.
            h.Word(Data + 24) = 0x1f80 | Mm | 1 << 16;
            h.State->Rip = CpuHarness.CodeAddress;
            Assert.Equal(Vector.GP, Run(h));
        }
    }

    private static readonly Action<Assembler>[] s_operands =
    [
        a => a.addps(xmm1, __xmmword_ptr[rsi]), a => a.mulpd(xmm1, __xmmword_ptr[rsi]), a => a.pxor(xmm1, __xmmword_ptr[rsi]),
        a => a.pshufb(xmm1, __xmmword_ptr[rsi]), a => a.cvtdq2ps(xmm1, __xmmword_ptr[rsi]), a => a.shufps(xmm1, __xmmword_ptr[rsi], 0x4e),
        a => a.roundps(xmm1, __xmmword_ptr[rsi], 3), a => a.aesenc(xmm1, __xmmword_ptr[rsi]), a => a.cvtpd2ps(xmm1, __xmmword_ptr[rsi]),
        a => a.ptest(xmm1, __xmmword_ptr[rsi]),
    ];

    /// <summary>Misaligned operands, also across a page, give what aligned ones give, again and again, as traces and runs of translated code too.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void MisalignedOperand_WithMm_IsReadWhereItIs(bool translate)
    {
        foreach (Action<Assembler> operand in s_operands)
        {
            foreach (uint masks in (uint[])[0x1f80, 0x1f00])
            {
                foreach (ulong at in (ulong[])[Data + 4, Data + 0xff7])
                {
                    using CpuHarness h = Create(a =>
                    {
                        Label again = a.CreateLabel();
                        a.Label(ref again);
                        a.movdqu(xmm1, xmm0);
                        operand(a);
                        a.paddd(xmm1, xmm2);
                        a.dec(ecx);
                        a.jne(again);
                    }, translate);
                    (ulong, ulong) run(ulong from, uint mxcsr)
                    {
                        // Numbers of ordinary size.
                        for (int i = 0; i < 4; i++)
                            *(float*)(h.Memory + from + 4 * i) = 1.5f * (i + 1);
                        SetXmm(h, 0, 0x3fc0_0000_4000_0000, 0x4040_0000_3fc0_0000);
                        SetXmm(h, 2, 1, 2);
                        h.State->Mxcsr = mxcsr;
                        (h.Rsi, h.Rcx) = (from, 200);
                        h.State->Rip = CpuHarness.CodeAddress;
                        Assert.Equal(Vector.BP, Run(h));
                        Assert.Equal(mxcsr & ~0x3fu, h.State->Mxcsr & ~0x3fu);
                        return (Xmm(h, 1)[0], Xmm(h, 1)[1]);
                    }
                    var aligned = run(Data + 0x800, masks);
                    Assert.Equal(aligned, run(Data + 0x800, masks | Mm));
                    Assert.Equal(aligned, run(at, masks | Mm));
                    // Without MM it is #GP, also in code that has been running.
                    h.State->Mxcsr = masks;
                    h.State->Rip = CpuHarness.CodeAddress;
                    h.Rcx = 1;
                    Assert.Equal(Vector.GP, Run(h));
                }
            }
        }
    }

    /// <summary>With alignment checks, #AC instead of #GP.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void MisalignedOperand_WithMm_HasAnAlignmentCheck(bool translate)
    {
        foreach (Action<Assembler> operand in s_operands)
        {
            using CpuHarness h = Create(operand, translate, cpl: 3);
            h.State->Cr0 |= Cr0.AM;
            h.Cpu.RecomputeMode();
            byte run(uint mxcsr, ulong flags, ulong at)
            {
                h.State->Mxcsr = mxcsr;
                h.RflagsValue = Rflags.Fixed1 | flags;
                h.Cpu.RecomputeMode();
                h.Rsi = at;
                h.State->Rip = CpuHarness.CodeAddress;
                return Run(h);
            }
            Assert.Equal(Vector.GP, run(0x1f80, 0, Data + 8));
            Assert.Equal(Vector.GP, run(0x1f80, Rflags.AC, Data + 8));
            Assert.Equal(Vector.BP, run(0x1f80 | Mm, 0, Data + 8));
            Assert.Equal(Vector.AC, run(0x1f80 | Mm, Rflags.AC, Data + 8));
            Assert.Equal(0u, h.Exit->ErrorCode);
            Assert.Equal(Vector.BP, run(0x1f80 | Mm, Rflags.AC, Data + 16));
        }
    }

    /// <summary>The moves that are there for aligned operands, and state images, take no notice of MM.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void AlignedMoves_WithMm_AreStillGeneralProtection(bool translate)
    {
        Action<Assembler>[] moves =
        [
            a => a.movaps(xmm1, __xmmword_ptr[rsi]), a => a.movapd(xmm1, __xmmword_ptr[rsi]), a => a.movdqa(xmm1, __xmmword_ptr[rsi]),
            a => a.movntdqa(xmm1, __xmmword_ptr[rsi]), a => a.movaps(__xmmword_ptr[rsi], xmm1), a => a.movapd(__xmmword_ptr[rsi], xmm1),
            a => a.movdqa(__xmmword_ptr[rsi], xmm1), a => a.movntps(__xmmword_ptr[rsi], xmm1), a => a.movntpd(__xmmword_ptr[rsi], xmm1),
            a => a.movntdq(__xmmword_ptr[rsi], xmm1), a => a.vmovaps(xmm1, __xmmword_ptr[rsi]), a => a.vmovdqa(ymm1, __ymmword_ptr[rsi]),
            a => a.vmovntps(__ymmword_ptr[rsi], ymm1), a => a.vmovntdqa(ymm1, __ymmword_ptr[rsi]),
            a => a.fxsave(__[rsi]), a => a.fxrstor(__[rsi]),
        ];
        foreach (Action<Assembler> move in moves)
        {
            using CpuHarness h = Create(move, translate);
            h.State->Mxcsr = 0x1f80 | Mm;
            h.Rsi = Data + 8;
            Assert.Equal(Vector.GP, Run(h));
        }
    }

    // ---- CLZERO

    [Theory]
    [MemberData(nameof(Engines))]
    public void Clzero_ZerosTheLineOfRax(bool translate)
    {
        using CpuHarness h = Create(a => a.clzero(), translate);
        for (int into = 0; into < 64; into += 21)
        {
            new Random(3).NextBytes(h.Data(Data, 8192));
            byte[] expected = h.Data(Data, 8192).ToArray();
            expected.AsSpan(0xfc0, 64).Clear();
            h.Rax = Data + 0xfc0 + (ulong)into;
            h.State->Rip = CpuHarness.CodeAddress;
            Assert.Equal(Vector.BP, Run(h));
            Assert.True(h.Data(Data, 8192).SequenceEqual(expected), $"{into}");
            Assert.Equal(Data + 0xfc0 + (ulong)into, h.Rax);
        }
    }

    /// <summary>Address size, segment, and every check of a store.</summary>
    [Fact]
    public void Clzero_IsAddressedAndChecked_AsAStore()
    {
        byte run(byte[] prefixes, ulong rax, Action<CpuHarness>? change = null, int bits = 64, int cpl = 0, ulong zeroed = 0)
        {
            using CpuHarness h = Create(a => a.db([.. prefixes, 0x0f, 0x01, 0xfc]), cpl: cpl, bits: bits);
            h.Rax = rax;
            change?.Invoke(h);
            h.Cpu.RecomputeMode();
            byte vector = Run(h);
            if (zeroed != 0)
            {
                Assert.True(h.Data(zeroed, 64).IndexOfAnyExcept((byte)0) < 0);
                Assert.True(h.Data(zeroed - 64, 64).IndexOfAnyExcept((byte)0) >= 0);
            }
            return vector;
        }
        Assert.Equal(Vector.UD, run([], Data, h => h.Cpu.CpuidFeatures.Clzero = false));
        Assert.Equal(Vector.BP, run([], Data + 64, cpl: 3, zeroed: Data + 64));
        // 67: EAX. FS has its base, DS none, in 64-bit mode.
        Assert.Equal(Vector.BP, run([0x67], 0xabcd_0000_0000_0000 | (Data + 64), zeroed: Data + 64));
        Assert.Equal(Vector.GP, run([], 0x8000_0000_0000));
        Assert.Equal(Vector.BP, run([0x64], 0x120, h => h.State->Fs.Base = Data + 0x31, zeroed: Data + 0x140));
        // The line begins below the segment's base.
        Assert.Equal(Vector.BP, run([0x64, 0x67], 0xabcd_0000_0000_0007, h => h.State->Fs.Base = Data + 0x60, zeroed: Data + 0x40));
        Assert.Equal(Vector.UD, run([0xf2], Data));
        Assert.Equal(Vector.UD, run([0xf3], Data));
        Assert.Equal(Vector.BP, run([0x66], Data + 64, zeroed: Data + 64));
        Assert.Equal(Vector.BP, run([0x3e], Data + 128, h => h.State->Ds.Base = 64, zeroed: Data + 128));
        Assert.Equal(Vector.BP, run([], Data + 64, h => h.State->Ds.Base = 64, bits: 32, zeroed: Data + 128));
        Assert.Equal(Vector.BP, run([0x64], 64, h => h.State->Fs.Base = Data, bits: 32, zeroed: Data + 64));
        // The line's last byte counts, and its first.
        Assert.Equal(Vector.BP, run([], Data + 64, h => h.State->Ds.Limit = (uint)Data + 127, bits: 32, zeroed: Data + 64));
        Assert.Equal(Vector.GP, run([], Data + 64, h => h.State->Ds.Limit = (uint)Data + 126, bits: 32));
        Assert.Equal(Vector.GP, run([], 4, h => (h.State->Ds.Base, h.State->Ds.Limit) = (Data + 32, 0xffff), bits: 32));
        Assert.Equal(Vector.SS, run([0x36], Data + 64, h => h.State->Ss.Limit = (uint)Data, bits: 32));
        Assert.Equal(Vector.GP, run([], Data, h => h.State->Ds.Access &= ~2u, bits: 32));
    }

    [Fact]
    public void Clzero_OfAReadOnlyPage_IsAPageFaultOfAWrite()
    {
        using CpuHarness h = Create(a => a.clzero(), cpl: 3);
        h.Word(h.Size - 0x4000 + 0x2000 + 8 * (ReadOnly >> 21)) &= ~Pte.W;
        h.Rax = ReadOnly + 0x123;
        Assert.Equal(Vector.PF, Run(h));
        Assert.Equal((PageFaultError.P | PageFaultError.W | PageFaultError.U, ReadOnly + 0x100), (h.Exit->ErrorCode, h.Exit->Payload));
    }

    /// <summary>Code in the line is gone.</summary>
    [Theory]
    [MemberData(nameof(Engines))]
    public void Clzero_OverwritesCode(bool translate)
    {
        const ulong code = CpuHarness.CodeAddress + 0x200;
        using CpuHarness h = Create(a => { a.mov(ebx, (int)code); a.call(rbx); a.clzero(); a.call(rbx); }, translate);
        // inc ecx; ret; zeros are add [rax], al: to their end, which is int3.
        h.Write(code, [0xff, 0xc1, 0xc3]);
        h.Write(code + 64, [0xcc]);
        h.Rax = code;
        Assert.Equal(Vector.BP, Run(h));
        Assert.Equal((1UL, code + 64), (h.Rcx, h.State->Rip));
    }
}

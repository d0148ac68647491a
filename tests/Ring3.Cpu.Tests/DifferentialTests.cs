using System.Text;
using Iced.Intel;
using Ring3.Differential;

namespace Ring3.Cpu.Tests;

/// <summary>The software machine against the host's own processor: a seeded sample of the differential fuzzer (tests/Ring3.Cpu.Fuzz runs more).</summary>
public class DifferentialTests
{
    private static FuzzSession Run(FuzzOptions options)
    {
        var session = new FuzzSession(options);
        session.Run();
        return session;
    }

    private static string Text(FuzzSession session)
    {
        var text = new StringWriter(new StringBuilder());
        session.Print(text);
        return text.ToString();
    }

    [Fact]
    public void RandomInstructions_ChangeTheSameState_AsOnTheHost() => Compare(64, 160_000);

    [Fact]
    public void RandomInstructions_InCompatibilityMode_ChangeTheSameState_AsOnTheHost() => Compare(32, 40_000);

    [Fact]
    public void RandomInstructions_InWordSegments_ChangeTheSameState_AsOnTheHost() => Compare(16, 20_000);

    /// <summary>The same with the translator: each case's code is emitted host code from its first execution on, where it can be.</summary>
    [Theory]
    [InlineData(64, 60_000)]
    [InlineData(32, 30_000)]
    [InlineData(32, 30_000, true)]
    [InlineData(16, 30_000)]
    public void RandomInstructions_Translated_ChangeTheSameState_AsOnTheHost(int bits, int cases, bool limits = false) =>
        Compare(bits, cases, translate: true, limits);

    /// <summary>MMX among x87 instructions that share its registers, and among SSE.</summary>
    [Fact]
    public void Mmx_Translated_ChangesTheSameState_AsOnTheHost()
    {
        if (HostProbes.Find().Missing(64) is { } missing)
            Assert.Skip(missing);
        const string filter = "_mm,emms,_sti,_m64fp,_m32int,fld1,fincstp,ffree,fnstsw,_xmm_xmmm64";
        FuzzSession session = Run(new FuzzOptions { Cases = 20_000, Seed = 6, Threads = 1, Bits = 64, Translate = true, Filter = filter });
        Assert.True(session.Mismatches == 0, $"{session.Mismatches} mismatches\n{Text(session)}");
        Assert.True(session.Translated > 0.5, $"{session.Translated:P0} translated");
    }

    /// <summary>Instructions with two results, which are not often among the others: neither takes the other's register in translated code.</summary>
    [Fact]
    public void TwoResults_Translated_ChangeTheSameState_AsOnTheHost()
    {
        if (HostProbes.Find().Missing(64) is { } missing)
            Assert.Skip(missing);
        FuzzSession session = Run(new FuzzOptions { Cases = 20_000, Seed = 5, Threads = 1, Bits = 64, Translate = true, Filter = "Mulx" });
        Assert.True(session.Mismatches == 0, $"{session.Mismatches} mismatches\n{Text(session)}");
    }

    private static void Compare(int bits, int cases, bool translate = false, bool limits = false)
    {
        if (HostProbes.Find().Missing(bits) is { } missing)
            Assert.Skip(missing);
        ulong seed = translate ? 2027u : 2026;
        FuzzSession session = Run(new FuzzOptions { Cases = cases, Seed = seed, Threads = 2, Bits = bits, Translate = translate, Limits = limits });
        Assert.True(session.Cases + session.PassedOver.Values.Sum() >= cases && session.Cases > cases / 2);
        // Where every x87 instruction notes its pointers, those of 16- and 32-bit code are the interpreter's.
        double least = bits != 64 && ProcessorModel.Host.NotesEveryX87 ? 0.4 : 0.5;
        Assert.True(!translate || session.Translated > least, $"{session.Translated:P0} translated");
        Assert.True(session.Mismatches == 0, $"{session.Mismatches} mismatches\n{Text(session)}");
    }

    [Fact]
    public void RandomBytes_AreRefused_WhereTheHostRefusesThem()
    {
        FuzzSession session = Run(new FuzzOptions { Cases = 20_000, Seed = 7, Threads = 2, Raw = 100 });
        Assert.True(session.Mismatches == 0, $"{session.Mismatches} mismatches\n{Text(session)}");
    }

    /// <summary>Control: two native runs agree, so that a mismatch means the machine, not the harness.</summary>
    [Fact]
    public void Host_AgreesWithItself()
    {
        FuzzSession session = Run(new FuzzOptions { Cases = 10_000, Seed = 3, Threads = 1, Self = true });
        Assert.True(session.Mismatches == 0, Text(session));
    }

    /// <summary>
    /// What a case puts into memory is on the data pages: both sides write it without a look. In this batch a string of equal bytes runs down from
    /// offset 12, so that its start wraps; it ended the native process.
    /// </summary>
    [Fact]
    public void Patches_AreOnTheDataPages()
    {
        const ulong start = Sandbox.DataAddress;
        Assert.True(Placement.IsWritable(start, Sandbox.DataWritable) && Placement.IsWritable(start + Sandbox.DataWritable - 1, 1));
        Assert.False(Placement.IsWritable(start, Sandbox.DataWritable + 1) || Placement.IsWritable(start + Sandbox.DataWritable - 1, 2)
            || Placement.IsWritable(start - 1, 1) || Placement.IsWritable(ulong.MaxValue - 19, 32));
        using var memory = new LocalCaseMemory();
        var batch = new CaseBatch(memory, new FuzzSession(new FuzzOptions { Bits = 32 }).SelectCodes(), 32, 3, UndefinedFlags.Load());
        batch.Fill(6062, 932);
    }

    /// <summary>Instructions that the fuzzer passes over because the machine lacks them must not be ones that CPUID reports.</summary>
    [Fact]
    public void EveryReportedInstruction_TakesPart()
    {
        CpuidFeature[] reported =
        [
            CpuidFeature.INTEL8086, CpuidFeature.INTEL186, CpuidFeature.INTEL286, CpuidFeature.INTEL386, CpuidFeature.INTEL486, CpuidFeature.X64,
                CpuidFeature.CMOV, CpuidFeature.CX8, CpuidFeature.CMPXCHG16B,
            CpuidFeature.MULTIBYTENOP, CpuidFeature.FPU, CpuidFeature.FPU287, CpuidFeature.FPU387, CpuidFeature.MMX, CpuidFeature.SSE, CpuidFeature.SSE2,
                CpuidFeature.SSE3, CpuidFeature.SSSE3, CpuidFeature.SSE4_1,
            CpuidFeature.SSE4_2, CpuidFeature.POPCNT, CpuidFeature.AES, CpuidFeature.PCLMULQDQ, CpuidFeature.SHA, CpuidFeature.AVX, CpuidFeature.AVX2,
                CpuidFeature.FMA, CpuidFeature.F16C, CpuidFeature.BMI1, CpuidFeature.BMI2,
            CpuidFeature.LZCNT, CpuidFeature.MOVBE, CpuidFeature.ADX, CpuidFeature.FXSR, CpuidFeature.CLFSH, CpuidFeature.CLFLUSHOPT, CpuidFeature.FSGSBASE,
                CpuidFeature.PREFETCHW,
            CpuidFeature.SSE4A, CpuidFeature.CLZERO,
            .. VectorFeatures.Gfni ? [CpuidFeature.GFNI] : ReadOnlySpan<CpuidFeature>.Empty,
            .. VectorFeatures.Vaes ? [CpuidFeature.VAES] : ReadOnlySpan<CpuidFeature>.Empty,
            .. VectorFeatures.Vpclmulqdq ? [CpuidFeature.VPCLMULQDQ] : ReadOnlySpan<CpuidFeature>.Empty,
        ];
        Exclusions exclusions = Exclusions.Load();
        string[] missing =
        [
            .. InstructionSource.AllCodes(exclusions, c => !GuestProcessor.Supports(c, ProcessorModel.Zen4))
                .Where(c => c.CpuidFeatures().All(f => reported.Contains(f))).Select(c => c.ToString()),
        ];
        Assert.True(missing.Length == 0, $"no handler for {missing.Length} instructions: {string.Join(' ', missing)}");
    }
}

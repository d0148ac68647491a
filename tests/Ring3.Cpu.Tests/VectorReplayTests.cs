using Ring3.Differential;

namespace Ring3.Cpu.Tests;

/// <summary>
/// The software machine against recorded results of real processors: no host is needed, so a change made on one vendor's machine is checked against the
/// others too.
/// </summary>
public class VectorReplayTests
{
    public static TheoryData<string> Sets =>
        [.. Directory.GetFiles(Vectors.Path("replay"), "*.r3v").Select(f => Path.GetFileName(f)).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Sets))]
    public void RecordedResults_AreTheMachines(string set)
    {
        using var replay = new Replay();
        replay.Run(Path.Combine(Vectors.Path("replay"), set));
        Assert.True(replay.Cases > 100);
        Assert.True(replay.Mismatches.Count == 0, $"{replay.Mismatches.Count} mismatches\n{string.Join('\n', replay.Mismatches.Take(20))}");
    }

    /// <summary>
    /// The same results as a family's that no model knows: what the manuals leave open is counted by rule, and is no mismatch; anything else still is.
    /// </summary>
    [Fact]
    public unsafe void UnknownFamilies_AreReported()
    {
        using var replay = new Replay();
        foreach (string set in (string[])["amd-zen4-32.r3v", "intel-emerald-rapids-32.r3v"])
        {
            (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(Path.Combine(Vectors.Path("replay"), set));
            using var file = new TemporaryFile();
            VectorFile.Write(file.Path, host with { Family = 5 }, cases);
            replay.Run(file.Path);
            Assert.Empty(replay.Mismatches);
            RecordedCase retired = cases.First(c => c.Meta.Kind == CaseKind.Compare && c.Native.Vector == CaseOutput.NoVector
                && c.Meta.Instruction.Mnemonic == Iced.Intel.Mnemonic.Push);
            retired.Native.Gpr[15] ^= 1;
            VectorFile.Write(file.Path, host, [retired]);
            using var known = new Replay();
            known.Run(file.Path);
            Assert.Single(known.Mismatches);
        }
        Assert.True(replay.LeftOpenDifferences.Values.Sum() > 100);
    }

    /// <summary>Control: a file whose results are not the machine's is caught, in each part of the state.</summary>
    [Fact]
    public unsafe void ChangedResults_AreMismatches()
    {
        (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(Path.Combine(Vectors.Path("replay"), "amd-zen5-64.r3v"));
        List<RecordedCase> chosen = [.. cases.Where(c => c.Meta.Kind == CaseKind.Compare && c.Native.Vector == CaseOutput.NoVector
            && c.Native.Diffs == 1).Take(6)];
        chosen[0].Native.Gpr[15] ^= 1;
        chosen[1].Native.Rip ^= 1;
        chosen[2].Native.Xsave[XsaveArea.YmmHigh + 255] ^= 1;
        chosen[3].Native.Xsave[XsaveArea.St + 7 * 16] ^= 1;
        chosen[4].Native.DiffBytes[63] ^= 1;
        chosen[5].Native.Vector = 13;
        using var file = new TemporaryFile();
        VectorFile.Write(file.Path, host, chosen);
        using var replay = new Replay();
        replay.Run(file.Path);
        Assert.Equal(6, replay.Mismatches.Count);
    }

    /// <summary>Another processor's approximation is right within the manual's bound, and nowhere else: not beyond it, and not in other instructions.</summary>
    [Fact]
    public unsafe void Approximations_OfAnotherHost_AreCompared_ByTheirBound()
    {
        (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(Path.Combine(Vectors.Path("replay"), "amd-zen5-64.r3v"));
        using var replay = new Replay();
        using var file = new TemporaryFile();
        RecordedCase reciprocal = cases.First(c => c.Meta is { Count: 1, Instruction.Mnemonic: Iced.Intel.Mnemonic.Rcpps }
            && c.Native.Vector == CaseOutput.NoVector && float.IsNormal(Lane(c)));
        RecordedCase other = cases.First(c => c.Meta is { Count: 1, Instruction.Mnemonic: Iced.Intel.Mnemonic.Addps } && c.Native.Vector == CaseOutput.NoVector
            && float.IsNormal(Lane(c)));
        Assert.Equal(0, Mismatches(1, reciprocal));
        Assert.Equal(1, Mismatches(1.01f, reciprocal));
        Assert.Equal(1, Mismatches(1.0001f, other));

        int Mismatches(float factor, RecordedCase c)
        {
            CaseOutput native = c.Native;
            float* lane = (float*)(native.Xsave + XsaveArea.Xmm + 16 * (c.Meta.Instruction.Op0Register - Iced.Intel.Register.XMM0));
            *lane *= factor;
            var changed = new RecordedCase { Input = c.Input, Meta = c.Meta, Slot = c.Slot, Code = c.Code, Data = c.Data, Native = native };
            VectorFile.Write(file.Path, host with { Model = 0xff }, [changed]);
            int before = replay.Mismatches.Count;
            replay.Run(file.Path);
            return replay.Mismatches.Count - before;
        }

        static float Lane(RecordedCase c)
        {
            fixed (CaseOutput* native = &c.Native)
                return *(float*)(native->Xsave + XsaveArea.Xmm + 16 * (c.Meta.Instruction.Op0Register - Iced.Intel.Register.XMM0));
        }
    }

    /// <summary>What a file holds is what was written.</summary>
    [Fact]
    public void Files_KeepWhatTheyAreGiven()
    {
        string from = Path.Combine(Vectors.Path("replay"), "amd-zen5-64.r3v");
        (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(from);
        using var file = new TemporaryFile();
        VectorFile.Write(file.Path, host, cases);
        Assert.Equal(File.ReadAllBytes(from), File.ReadAllBytes(file.Path));
        Assert.Equal(("AuthenticAMD", 26), (host.Vendor, host.Family));
    }

    private sealed class TemporaryFile : IDisposable
    {
        internal string Path { get; } = System.IO.Path.GetTempFileName();

        public void Dispose() => File.Delete(Path);
    }
}

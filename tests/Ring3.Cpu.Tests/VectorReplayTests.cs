using Ring3.Differential;

namespace Ring3.Cpu.Tests;

/// <summary>The software machine against recorded results of real processors: no host is needed, so a change made on one vendor's machine is checked against the others too.</summary>
public class VectorReplayTests
{
    public static TheoryData<string> Sets => [.. Directory.GetFiles(Vectors.Path("replay"), "*.r3v").Select(f => Path.GetFileName(f)).Order(StringComparer.Ordinal)];

    [Theory]
    [MemberData(nameof(Sets))]
    public void RecordedResults_AreTheMachines(string set)
    {
        using var replay = new Replay();
        replay.Run(Path.Combine(Vectors.Path("replay"), set));
        Assert.True(replay.Cases > 100);
        Assert.True(replay.Mismatches.Count == 0, $"{replay.Mismatches.Count} mismatches\n{string.Join('\n', replay.Mismatches.Take(20))}");
    }

    /// <summary>The same results as a family's that no model knows: what the manuals leave open is counted by rule, and is no mismatch; anything else still is.</summary>
    [Fact]
    public unsafe void UnknownFamilies_AreReported()
    {
        using var replay = new Replay();
        foreach (string set in (string[])["amd-zen4-32.r3v", "intel-sapphire-rapids-32.r3v"])
        {
            (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(Path.Combine(Vectors.Path("replay"), set));
            using var file = new TemporaryFile();
            VectorFile.Write(file.Path, host with { Family = 5 }, cases);
            replay.Run(file.Path);
            Assert.Empty(replay.Mismatches);
            RecordedCase retired = cases.First(c => c.Meta.Kind == CaseKind.Compare && c.Native.Vector == CaseOutput.NoVector && c.Meta.Instruction.Mnemonic == Iced.Intel.Mnemonic.Push);
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
        List<RecordedCase> chosen = [.. cases.Where(c => c.Meta.Kind == CaseKind.Compare && c.Native.Vector == CaseOutput.NoVector && c.Native.Diffs == 1).Take(6)];
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

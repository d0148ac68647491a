using System.Globalization;
using System.Text.RegularExpressions;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>
/// Every bit that CPUID and the feature MSRs can report has a line in tests/vectors/cpuid-bits.csv that says what proves it; where that is cheap the
/// line is the proof and is carried out here.
/// </summary>
public sealed unsafe class CpuidWalkTests
{
    private const uint Data = 0x20000;

    private sealed record Line(int Number, string Place, int High, int Low, string Kind, string Proof)
    {
        public bool Covers(string place, int bit) => bit >= Low && bit <= High
            && Regex.IsMatch(place, "^" + Regex.Escape(Place).Replace("\\*", "[0-9a-z]+", StringComparison.Ordinal) + "$");
    }

    private static readonly string s_root = FindRoot();
    private static readonly Line[] s_lines = Read();

    private static string FindRoot()
    {
        string? at = AppContext.BaseDirectory;
        while (at is not null && !File.Exists(Path.Combine(at, "Ring3.slnx")))
            at = Path.GetDirectoryName(at);
        return at ?? throw new DirectoryNotFoundException("no Ring3.slnx above the tests");
    }

    private static Line[] Read()
    {
        List<Line> lines = [];
        int number = 0;
        foreach (string text in File.ReadLines(Path.Combine(s_root, "tests", "vectors", "cpuid-bits.csv")))
        {
            number++;
            if (text.Length == 0 || text[0] == '#')
                continue;
            string[] f = text.Split(',', 4);
            string[] bits = f[1].Split(':');
            int high = int.Parse(bits[0], CultureInfo.InvariantCulture), low = int.Parse(bits[^1], CultureInfo.InvariantCulture);
            lines.Add(new Line(number, f[0], high, low, f[2], f[3]));
        }
        return [.. lines];
    }

    public static TheoryData<string> Models => ["host", "intel", "amd"];

    private static ProcessorModel Model(string name) => ProcessorModel.TryParse(name, out ProcessorModel model) ? model : throw new ArgumentException(name);

    /// <summary>All reported bits by place: LEAF:REGISTER, LEAF.INDEX:REGISTER or msr:INDEX.</summary>
    private static IEnumerable<(string Place, int Bit)> Reported(ProcessorModel model)
    {
        foreach (kvm_cpuid_entry2 e in SupportedCpuid.Of(model).ToArray())
        {
            string leaf = (e.flags & KvmApi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0 ? $"{e.function:x}.{e.index:x}" : $"{e.function:x}";
            foreach ((string register, uint value) in ((string, uint)[])[("eax", e.eax), ("ebx", e.ebx), ("ecx", e.ecx), ("edx", e.edx)])
                for (int bit = 0; bit < 32; bit++)
                    if ((value >> bit & 1) != 0)
                        yield return ($"{leaf}:{register}", bit);
        }
        foreach (uint msr in KvmSystem.MsrFeatureIndexListOf(model).ToArray())
        {
            Assert.True(KvmSystem.TryGetFeatureMsr(msr, out ulong value, model), $"feature MSR {msr:x}");
            for (int bit = 0; bit < 64; bit++)
                if ((value >> bit & 1) != 0)
                    yield return ($"msr:{msr:x}", bit);
        }
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void EveryReportedBit_HasALine(string name)
    {
        string[] missing = [.. Reported(Model(name)).Where(b => !Array.Exists(s_lines, l => l.Covers(b.Place, b.Bit))).Select(b => $"{b.Place} bit {b.Bit}")];
        Assert.True(missing.Length == 0, "no line in cpuid-bits.csv: " + string.Join("; ", missing));
    }

    [Fact]
    public void EveryLine_NamesAProof()
    {
        string[] sources = [.. Directory.EnumerateFiles(Path.Combine(s_root, "tests"), "*.cs", SearchOption.AllDirectories)];
        HashSet<string> tests = [];
        foreach (string source in sources)
        {
            string text = File.ReadAllText(source);
            foreach (Match m in Regex.Matches(text, @"\[(?:Fact|Theory)\b[^\n]*\n(?:\s*\[[^\n]*\n)*\s*public [^\n(]*\bvoid (\w+)\("))
                foreach (Match c in Regex.Matches(text, @"\bclass (\w+)"))
                    tests.Add($"{c.Groups[1].Value}.{m.Groups[1].Value}");
        }
        List<string> wrong = [];
        foreach (Line l in s_lines)
        {
            bool good = l.Kind switch
            {
                "test" => tests.Contains(l.Proof),
                "why" => l.Proof.Length >= 20,
                "runs" or "gated" or "cr4" or "efer" or "msr" => l.High == l.Low || l.Kind == "runs",
                _ => false,
            };
            if (!good)
                wrong.Add($"line {l.Number}: {l.Kind} {l.Proof}");
            foreach (Line other in s_lines)
                if (other.Number > l.Number && other.Place == l.Place && other.Low <= l.High && l.Low <= other.High)
                    wrong.Add($"lines {l.Number} and {other.Number} are about the same bit");
        }
        Assert.True(wrong.Count == 0, string.Join("; ", wrong));
    }

    /// <summary>1, or the vector at which the code ends, in a guest with the model's CPUID, less the bit if it is to be without.</summary>
    private static int Outcome(ProcessorModel model, Line line, bool with, ReadOnlySpan<byte> code)
    {
        using TestGuest g = new(options: new VmOptions { Processor = model }, cpuid: false);
        kvm_cpuid_entry2[] entries = SupportedCpuid.Of(model).ToArray();
        if (!with)
            Clear(entries, line);
        Assert.Equal(0, g.Cpu.SetCpuid2(entries));
        // Pages of the supervisor: SMEP and SMAP let it go on.
        g.Vm.Memory.TryWrite(TestGuest.Tables, TestGuest.Tables + 0x1000 | 3UL);
        foreach (int vector in (int[])[6, 7, 13, 14])
            g.SetVector(vector, 0x11000 + 16 * (ulong)vector).LoadAt(0x11000 + 16 * (ulong)vector, 0xb0, (byte)vector, 0xe6, 0xf4);
        List<byte> all = [];
        bool avx = (SupportedCpuid.SupportedXcr0 & Xcr0.Avx) != 0;
        if (avx && line.Kind == "runs")
        {
            // mov rax, cr4; bts eax, 18; mov cr4, rax; xor ecx, ecx; xor edx, edx; mov eax, 7; xsetbv
            all.AddRange([0x0f, 0x20, 0xe0, 0x0f, 0xba, 0xe8, 18, 0x0f, 0x22, 0xe0, 0x31, 0xc9, 0x31, 0xd2, 0xb8, 7, 0, 0, 0, 0x0f, 0x01, 0xd1]);
        }
        // xor eax, eax; xor ecx, ecx; xor edx, edx; mov esi, Data
        all.AddRange([0x31, 0xc0, 0x31, 0xc9, 0x31, 0xd2, 0xbe, .. Little(Data)]);
        all.AddRange(code);
        all.AddRange([0xb0, 1, 0xe6, 0xf4]);
        g.Load(all.ToArray());
        return g.RunToEnd();
    }

    private static void Clear(kvm_cpuid_entry2[] entries, Line line)
    {
        foreach (ref kvm_cpuid_entry2 e in entries.AsSpan())
        {
            string leaf = (e.flags & KvmApi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX) != 0 ? $"{e.function:x}.{e.index:x}" : $"{e.function:x}";
            uint keep = ~(1u << line.Low);
            if (line.Covers($"{leaf}:eax", line.Low)) e.eax &= keep;
            if (line.Covers($"{leaf}:ebx", line.Low)) e.ebx &= keep;
            if (line.Covers($"{leaf}:ecx", line.Low)) e.ecx &= keep;
            if (line.Covers($"{leaf}:edx", line.Low)) e.edx &= keep;
        }
    }

    private static byte[] Bytes(string hex) => Convert.FromHexString(hex.Replace(" ", "", StringComparison.Ordinal));

    private static byte[] Little(uint value) => BitConverter.GetBytes(value);

    /// <summary>The code of a line, and the vector at which it ends in a guest without the bit: 0 where that is nobody's business.</summary>
    private static (byte[] Code, int Without) Probe(Line l)
    {
        byte number = l.Kind is "cr4" or "efer" ? byte.Parse(l.Proof, CultureInfo.InvariantCulture) : (byte)0;
        return l.Kind switch
        {
            "runs" => (Bytes(l.Proof), 0),
            "gated" => (Bytes(l.Proof), 6),
            // mov rax, cr4; bts rax, n; mov cr4, rax
            "cr4" => ([0x0f, 0x20, 0xe0, 0x48, 0x0f, 0xba, 0xe8, number, 0x0f, 0x22, 0xe0], 13),
            // mov ecx, EFER; rdmsr; bts eax, n; wrmsr
            "efer" => ([0xb9, .. Little(Msr.EFER), 0x0f, 0x32, 0x0f, 0xba, 0xe8, number, 0x0f, 0x30], 13),
            // mov ecx, n; rdmsr
            _ => ([0xb9, .. Little(uint.Parse(l.Proof, NumberStyles.HexNumber, CultureInfo.InvariantCulture)), 0x0f, 0x32], 13),
        };
    }

    [Theory]
    [MemberData(nameof(Models))]
    public void LinesThatAreProofs_Hold(string name)
    {
        ProcessorModel model = Model(name);
        HashSet<(string, int)> reported = [.. Reported(model)];
        List<string> wrong = [];
        int carriedOut = 0;
        foreach (Line l in s_lines.Where(l => l.Kind is "runs" or "gated" or "cr4" or "efer" or "msr"))
        {
            if (!reported.Any(b => l.Covers(b.Item1, b.Item2)))
                continue;
            carriedOut++;
            var (code, without) = Probe(l);
            if (Outcome(model, l, with: true, code) is not 1 and var vector)
                wrong.Add($"line {l.Number} ({l.Place} {l.Low}): exception {vector}");
            if (without != 0 && Outcome(model, l, with: false, code) is var other && other != without)
                wrong.Add($"line {l.Number} ({l.Place} {l.Low}) without the bit: {other}, not exception {without}");
        }
        Assert.True(wrong.Count == 0, string.Join("; ", wrong));
        Assert.True(carriedOut > 50, $"{carriedOut} lines");
    }
}

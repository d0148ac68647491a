using System.Text.RegularExpressions;

namespace Ring3.Architecture.Tests;

/// <summary>Rules of CONTRIBUTING.md that a reader cannot be trusted to keep by eye.</summary>
public partial class SourceRuleTests
{
    private const int MaxLines = 800;

    /// <summary>Native libraries that are not the host, and the file that calls each: it calls nothing else.</summary>
    private static readonly Dictionary<string, string> s_libraries = new() { ["src/Ring3.Vmm/Memory/PngCanvas.cs"] = "libcairo.so.2" };

    [Fact]
    public void NativeCalls_LiveInHostOnly() => Assert.Equal(
        s_libraries.Keys.Order(),
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where !name.StartsWith("src/Ring3.Host/", StringComparison.Ordinal) && NativeImport().IsMatch(File.ReadAllText(file))
        orderby name
        select name);

    [Fact]
    public void NativeCalls_OfALibrary_AreOfNoOther() => Assert.All(s_libraries, l =>
    {
        string text = File.ReadAllText(Path.Combine(Repository.Root, l.Key));
        Assert.Equal(["C"], NativeImport().Matches(text).Select(m => m.Groups[2].Value).Distinct());
        Assert.Contains($"private const string C = \"{l.Value}\";", text);
    });

    /// <summary>A project is a namespace; folders put its files in order and mean nothing to the compiler.</summary>
    [Fact]
    public void Namespaces_AreTheProjects() => Assert.Empty(
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        let project = name.Split('/')[1]
        from Match m in Namespace().Matches(File.ReadAllText(file))
        where m.Groups[1].Value != project
        select $"{name}: {m.Groups[1].Value}");

    [GeneratedRegex(@"^namespace ([\w.]+)", RegexOptions.Multiline)]
    private static partial Regex Namespace();

    [Fact]
    public void Files_StayReadable() => Assert.Empty(
        from file in Repository.Sources("src", "tests", "benchmarks")
        where !file.EndsWith(".g.cs", StringComparison.Ordinal)
        let lines = File.ReadLines(file).Count()
        where lines > MaxLines
        select $"{Repository.Relative(file)}: {lines} lines");

    /// <summary>Lines of a class, all of its files together, outside the processor.</summary>
    private const int MaxClassLines = 1500;

    [Fact]
    public void Classes_StayReadable() => Assert.Empty(
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where !name.StartsWith("src/Ring3.Cpu/", StringComparison.Ordinal)
        let text = File.ReadAllText(file)
        from Match m in TopLevelType().Matches(text)
        let end = text.IndexOf("\n}", m.Index, StringComparison.Ordinal)
        group end < 0 ? 1 : text.AsSpan(m.Index, end - m.Index).Count('\n') by $"{name.Split('/')[1]}.{m.Groups[1].Value}" into parts
        where parts.Sum() > MaxClassLines
        select $"{parts.Key}: {parts.Sum()} lines");

    [GeneratedRegex(@"^(?:\w+ )*(?:class|struct) (\w+)", RegexOptions.Multiline)]
    private static partial Regex TopLevelType();

    /// <summary>
    /// Tests wait for what happens, not for time to pass. Where one sleeps nevertheless, and what for: never does a pass depend on its length.
    /// </summary>
    private static readonly Dictionary<string, string> s_sleeps = new()
    {
        ["tests/Ring3.Kvm.Tests/LatencyTests.cs"] = "lets a long instruction get on before it is interrupted, which is right at any point",
        ["tests/Ring3.Mmu.Tests/StressTests.cs"] = "pace of threads that harvest all the time",
        ["tests/Ring3.Mutants.Tests/Defects.cs"] = "a mistake's window, made wider",
        ["tests/Ring3.Sync.Tests/LockTests.cs"] = "time in which what is forbidden could happen",
        ["tests/Ring3.Sync.Tests/RcuTests.cs"] = "time in which what is forbidden could happen",
        ["tests/Ring3.Xen.Tests/LitmusTests.cs"] = "the controls' windows, made wider; pace of the thread that looks whether the time is over",
    };

    [Fact]
    public void Tests_SleepForAReason() => Assert.Equal(
        s_sleeps.Keys.Order(),
        from file in Repository.Sources("tests")
        let name = Repository.Relative(file)
        where Regex.IsMatch(name, @"^tests/[\w.]+\.Tests/") && Sleep().IsMatch(File.ReadAllText(file))
        orderby name
        select name);

    [GeneratedRegex(@"\bThread\.Sleep\(|\bTask\.Delay\(")]
    private static partial Regex Sleep();

    [Fact]
    public void Sources_HaveNoStubs() => Assert.Empty(
        from file in Repository.Sources("src")
        where Stub().IsMatch(File.ReadAllText(file))
        select Repository.Relative(file));

    /// <summary>A command substitution replaces $?: the shell expands from left to right, and the check can then not fail.</summary>
    [Fact]
    public void Suites_DoNotLoseTheStatus() => Assert.Empty(
        from file in Directory.EnumerateFiles(Path.Combine(Repository.Root, "tests"), "*.sh", SearchOption.AllDirectories)
        from line in File.ReadLines(file)
        where StatusBehindSubstitution().IsMatch(line)
        select $"{Repository.Relative(file)}: {line.Trim()}");

    [GeneratedRegex(@"\b(verdict|expect)\b[^;]*""[^""]*\$\(.*"" \$\?")]
    private static partial Regex StatusBehindSubstitution();

    /// <summary>The build compares what a project shows with its baseline, where there is one.</summary>
    [Fact]
    public void Surfaces_HaveABaseline() => Assert.Equal(
        ["src/Ring3", "src/Ring3.DevKvm", "src/Ring3.Kvm", "src/Ring3.Machines"],
        from file in Directory.EnumerateFiles(Path.Combine(Repository.Root, "src"), "PublicAPI.Shipped.txt", SearchOption.AllDirectories)
        let project = Path.GetDirectoryName(Repository.Relative(file))
        orderby project
        select project);

    /// <summary>Columns of a line of product code.</summary>
    private const int MaxColumns = 160;

    [Fact]
    public void Lines_FitTheScreen() => Assert.Empty(
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        from line in File.ReadLines(file).Index()
        where line.Item.Length > MaxColumns
        select $"{name}:{line.Index + 1}: {line.Item.Length} columns");

    /// <summary>Lines above a fence in which its partner must be named.</summary>
    private const int NearFence = 8;

    [Fact]
    public void Fences_NameTheirPartner() => Assert.Empty(
        from file in Repository.Sources("src")
        let lines = File.ReadAllLines(file)
        from i in Enumerable.Range(0, lines.Length)
        where Fence().IsMatch(lines[i]) && !lines[Math.Max(0, i - NearFence)..i].Any(l => l.Contains("PAIRS-WITH:", StringComparison.Ordinal))
        select $"{Repository.Relative(file)}:{i + 1}");

    /// <summary>A partner that is named as Type.Member is there.</summary>
    [Fact]
    public void Fences_HaveTheirPartner()
    {
        string[] texts = [.. Repository.Sources("src").Select(File.ReadAllText)];
        Assert.Empty(
            from text in texts
            from Match m in Partner().Matches(text)
            let type = new Regex($@"\b(class|struct|interface|record|enum) {m.Groups[1].Value}\b")
            let member = new Regex($@"\b{m.Groups[2].Value}\b")
            where !texts.Any(t => type.IsMatch(t) && member.IsMatch(t))
            select m.Value);
    }

    /// <summary>
    /// Who yields gives a whole time slice away, and with several in a row the turn of hundreds of milliseconds on a busy host (see
    /// Ring3.Sync.Backoff). Here the yield is what was asked for, or the thread is nobody's vCPU.
    /// </summary>
    private static readonly string[] s_yields =
    [
        "src/Ring3.Cli/", "src/Ring3.Host/Terminal.cs", "src/Ring3.Kvm/Vcpu/Paravirt/Hypercalls.cs", "src/Ring3.Kvm/Vcpu/Vcpu.Run.cs",
            "src/Ring3.Kvm/Xen/XenProcessor.cs", "src/Ring3.Mmu/TdpMmu.ZapRoots.cs", "src/Ring3.Sync/MmuLock.cs",
    ];

    [Fact]
    public void Yielding_IsNoWayToWait() => Assert.Empty(
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where Regex.IsMatch(File.ReadAllText(file), @"Thread\.Yield\(|\.SpinOnce\(") && !Array.Exists(s_yields, name.StartsWith)
        select name);

    /// <summary>
    /// Where locked host instructions meet memory by address, and why none of them can cross a cache line. Few hosts can be asked whether one was: the
    /// places are counted instead.
    /// </summary>
    private static readonly Dictionary<string, string> s_lockedAccesses = new()
    {
        ["src/Ring3.Cpu/Interp/MachineBus.cs"] = "own memory, aligned",
        ["src/Ring3.Cpu/Interp/SplitAccess.cs"] = "the aligned words at both sides of the line's end",
        ["src/Ring3.Cpu/Interp/Width.cs"] = "handlers ask IsSplit first",
        ["src/Ring3.Cpu/Interp/Exchange.cs"] = "Pair8 asks IsSplit first",
        ["src/Ring3.Cpu/Paging/GuestWalk.cs"] = "entries of page tables are aligned",
        ["src/Ring3.Cpu/Paging/NestedWalk.cs"] = "entries of page tables are aligned",
        ["src/Ring3.Cpu/Segments/Descriptors.cs"] = "the aligned word around one byte",
    };

    [Fact]
    public void LockedAccesses_NeverCrossALine() => Assert.Equal(
        s_lockedAccesses.Keys.Order(),
        from file in Repository.Sources("src")
        let name = Repository.Relative(file)
        where (name.StartsWith("src/Ring3.Cpu/", StringComparison.Ordinal) || name.StartsWith("src/Ring3.Memory/", StringComparison.Ordinal)
            || name.StartsWith("src/Ring3.Xen/", StringComparison.Ordinal))
            && LockedAccess().IsMatch(File.ReadAllText(file))
        orderby name
        select name);

    /// <summary>Handlers that make a locked access of any width ask first whether it crosses a line.</summary>
    [Fact]
    public void LockedHandlers_AskForTheLine() => Assert.Empty(
        from file in Repository.Sources("src")
        let text = File.ReadAllText(file)
        where file.Contains("/Ring3.Cpu/") && Regex.IsMatch(text, @"\bW\.(CompareExchange|Exchange)\(") && !text.Contains("IsSplit(")
        select Repository.Relative(file));

    /// <summary>Emitted host code has no locked instruction at all.</summary>
    [Fact]
    public void EmittedCode_HasNoLockedInstruction() => Assert.Empty(
        from file in Repository.Sources("src")
        where Regex.IsMatch(file, "/Ring3.Cpu/(Emit|Vector|X87)/") && Regex.IsMatch(File.ReadAllText(file), @"LockPrefix|Code\.Xchg_rm|Code\.Cmpxchg")
        select Repository.Relative(file));

    /// <summary>Whoever makes a FlushBatch pays it: a method that has one names it to Finish, or to the reclaimer.</summary>
    [Fact]
    public void FlushBatches_AreConsumedWhereTheyAreMade() => Assert.Empty(
        from file in Repository.Sources("src")
        let text = File.ReadAllText(file)
        from Match made in MadeBatch().Matches(text)
        let end = text.IndexOf("\n    }\n", made.Index, StringComparison.Ordinal)
        let rest = text[made.Index..(end < 0 ? text.Length : end)]
        where !Regex.IsMatch(rest, $@"\b(Finish\(ref|Defer\() ?{made.Groups[1].Value}\)")
        select $"{Repository.Relative(file)}: {made.Value}");

    /// <summary>Bugs on purpose are in Ring3.Mutants.Tests, which copies the product.</summary>
    [Fact]
    public void Product_KnowsNoDefect() => Assert.Empty(
        from file in Repository.Sources("src")
        where DefectOnPurpose().IsMatch(File.ReadAllText(file))
        select Repository.Relative(file));

    [GeneratedRegex(@"\b[A-Z]\w*Defects?\b|\bDefects?\.\w|\bMutants?\b|\bSuppress(es|ed)?\w*(Flush|Site)\w*|\bLeavesOut\b")]
    private static partial Regex DefectOnPurpose();

    [GeneratedRegex(@"\bvar (\w+) = new FlushBatch\(")]
    private static partial Regex MadeBatch();

    [GeneratedRegex(@"\bInterlocked\.MemoryBarrier(ProcessWide)?\(")]
    private static partial Regex Fence();

    [GeneratedRegex(@"PAIRS-WITH: ([A-Z]\w+)\.([A-Z]\w+)")]
    private static partial Regex Partner();

    [GeneratedRegex(@"Interlocked\.\w+\(ref \*")]
    private static partial Regex LockedAccess();

    [GeneratedRegex(@"\[(DllImport|LibraryImport)\(([^,)]*)")]
    private static partial Regex NativeImport();

    [GeneratedRegex(@"NotImplementedException|\b(TODO|FIXME|XXX|HACK)\b")]
    private static partial Regex Stub();
}

using System.Text.RegularExpressions;

namespace Ring3.Architecture.Tests;

/// <summary>Rules of CONTRIBUTING.md that a reader cannot be trusted to keep by eye.</summary>
public partial class SourceRuleTests
{
    private const int MaxLines = 800;

    [Fact]
    public void NativeCalls_LiveInHostOnly() => Assert.Empty(
        from file in Repository.Sources("src")
        where !file.Contains("/Ring3.Host/") && NativeImport().IsMatch(File.ReadAllText(file))
        select Repository.Relative(file));

    [Fact]
    public void Files_StayReadable() => Assert.Empty(
        from file in Repository.Sources("src", "tests", "benchmarks")
        where !file.EndsWith(".g.cs", StringComparison.Ordinal)
        let lines = File.ReadLines(file).Count()
        where lines > MaxLines
        select $"{Repository.Relative(file)}: {lines} lines");

    [Fact]
    public void UnsafeFiles_SayWhyTheyAreSound() => Assert.Empty(
        from file in Repository.Sources("src")
        let text = File.ReadAllText(file)
        where UnsafeBlock().IsMatch(text) && !text.Contains("SAFETY:")
        select Repository.Relative(file));

    [Fact]
    public void Sources_HaveNoStubs() => Assert.Empty(
        from file in Repository.Sources("src")
        where Stub().IsMatch(File.ReadAllText(file))
        select Repository.Relative(file));

    [Fact]
    public void Sleeping_IsNoWayToWait() => Assert.Empty(
        from file in Repository.Sources("src")
        where File.ReadAllText(file).Contains("Thread.Sleep(")
        select Repository.Relative(file));

    [GeneratedRegex(@"\[(DllImport|LibraryImport)\(")]
    private static partial Regex NativeImport();

    [GeneratedRegex(@"\bunsafe\s*\{|\bunsafe\b.*\b(class|struct)\b")]
    private static partial Regex UnsafeBlock();

    [GeneratedRegex(@"NotImplementedException|\b(TODO|FIXME|XXX|HACK)\b")]
    private static partial Regex Stub();
}

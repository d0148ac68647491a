using System.Text.RegularExpressions;

namespace Ring3.Architecture.Tests;

/// <summary>
/// What the documentation names is there: links, files, commands, models. Its C# is compiled by Ring3.Tests (ReadmeTests), its table of locks compared
/// by <see cref="LockTableTests"/>.
/// </summary>
public partial class DocumentationTests
{
    /// <summary>Everything for readers, except the changelog, which tells of things that are gone.</summary>
    private static IEnumerable<string> Documents() =>
        from folder in new[] { "", "docs", "models", "src", "tests", "benchmarks" }
        let path = Path.Combine(Repository.Root, folder)
        from file in Directory.EnumerateFiles(path, "*.md", folder is "" or "docs" or "models" ? SearchOption.TopDirectoryOnly : SearchOption.AllDirectories)
        where Path.GetFileName(file) != "CHANGELOG.md" && !file.Contains("/obj/") && !file.Contains("/bin/")
        select file;

    private static IEnumerable<(string Document, string Text)> Found(Regex what) =>
        from document in Documents()
        from Match m in what.Matches(File.ReadAllText(document))
        select (Repository.Relative(document), m.Groups[1].Value);

    private static bool Exists(string path) => File.Exists(path) || Directory.Exists(path);

    /// <summary>A file, a folder, or files by a pattern in their last part.</summary>
    private static bool IsThere(string path)
    {
        string full = Path.Combine(Repository.Root, path);
        if (!path.Contains('*'))
            return Exists(full);
        string folder = Path.GetDirectoryName(full)!;
        return Directory.Exists(folder) && Directory.EnumerateFileSystemEntries(folder, Path.GetFileName(full)).Any();
    }

    [Fact]
    public void Links_LeadSomewhere() => Assert.Empty(
        from link in Found(Link())
        let path = Path.Combine(Repository.Root, Path.GetDirectoryName(link.Document)!, link.Text)
        where !Exists(path)
        select $"{link.Document}: {link.Text}");

    [Fact]
    public void Files_AreThere() => Assert.Empty(
        from name in Found(NamedFile()) where !IsThere(name.Text) select $"{name.Document}: {name.Text}");

    /// <summary>Test classes that prove what is said beside their names.</summary>
    [Fact]
    public void Tests_AreThere()
    {
        string[] tests = [.. Repository.Sources("tests").Select(File.ReadAllText)];
        Assert.Empty(
            from name in Found(TestClass())
            where !tests.Any(t => Regex.IsMatch(t, $@"\bclass {name.Text}\b"))
            select $"{name.Document}: {name.Text}");
    }

    [Fact]
    public void Commands_AreThere()
    {
        string commands = string.Concat(Repository.Sources("src/Ring3.Cli").Select(File.ReadAllText));
        string[] ring3 = [.. NewCommand().Matches(commands).Select(m => m.Groups[1].Value)];
        string[] suites = [.. Words("test", "known="), "nightly", "load"], benches = [.. Words("bench", "# usage: ./bench NAME [ARGS...]    names: ")];
        Assert.Contains("boot", ring3);
        Assert.Empty(
            from use in Found(CommandLine())
            let words = use.Text.Split(' ', 2)
            let known = words[0] switch { "test" => suites, "bench" => benches, _ => ring3 }
            from argument in words[1].Split('|')
            where !known.Contains(argument)
            select $"{use.Document}: ./{use.Text}");
    }

    /// <summary>The words behind a mark in a script.</summary>
    private static string[] Words(string script, string mark) =>
        File.ReadLines(Path.Combine(Repository.Root, script)).First(l => l.StartsWith(mark, StringComparison.Ordinal))[mark.Length..].Trim('"').Split(' ');

    [Fact]
    public void Models_AreListed() => Assert.Equal(
        Directory.EnumerateFiles(Path.Combine(Repository.Root, "models"), "*.pml").Select(f => Path.GetFileName(f)).Order(),
        ModelRow().Matches(File.ReadAllText(Path.Combine(Repository.Root, "models", "README.md"))).Select(m => m.Groups[1].Value).Order());

    [GeneratedRegex(@"\]\(([^)#:\s]+)(?:#[^)]*)?\)")]
    private static partial Regex Link();

    [GeneratedRegex(@"`((?:src|tests|docs|models|samples|benchmarks)/[^` {]*)`")]
    private static partial Regex NamedFile();

    [GeneratedRegex(@"`(\w+Tests)(?:\.\w+)?`")]
    private static partial Regex TestClass();

    [GeneratedRegex(@"\./((?:test|bench|ring3) [a-z][a-z|]*)")]
    private static partial Regex CommandLine();

    [GeneratedRegex(@"new Command\(""(\w+)""")]
    private static partial Regex NewCommand();

    [GeneratedRegex(@"^\| `([\w-]+\.pml)` \|", RegexOptions.Multiline)]
    private static partial Regex ModelRow();
}

using System.Text.RegularExpressions;

namespace Ring3.Architecture.Tests;

/// <summary>The table of locks in docs/locking.md, LockRank, and the locks that the sources declare say the same.</summary>
public partial class LockTableTests
{
    /// <summary>A row: rank, owner and member, kind.</summary>
    private sealed record Row(string Rank, string Lock, string Kind);

    private static readonly string s_ranks = Path.Combine(Repository.Root, "src", "Ring3.Host", "LockRank.cs");

    /// <summary>Types of locks, and the files that define them.</summary>
    private static readonly string[] s_definitions = ["src/Ring3.Host/LockOrder.cs", "src/Ring3.Host/RankedLock.cs", "src/Ring3.Sync/FutexMutex.cs",
        "src/Ring3.Sync/MmuLock.cs", "src/Ring3.Sync/TinyLock.cs"];

    private static IEnumerable<string> Products() => Repository.Sources("src").Where(f => !s_definitions.Contains(Repository.Relative(f)));

    private static Row[] Table() =>
    [
        .. from line in File.ReadLines(Path.Combine(Repository.Root, "docs", "locking.md"))
           let m = TableRow().Match(line)
           where m.Success
           select new Row(m.Groups[1].Value, m.Groups[2].Value, m.Groups[3].Value),
    ];

    /// <summary>Every lock that is made, as the table spells it.</summary>
    private static Row[] Declared() =>
    [
        .. from file in Products()
           let text = File.ReadAllText(file)
           from Match m in Declaration().Matches(text)
           select new Row(m.Groups["rank"].Value, $"{OwnerOf(text, m.Index)}.{m.Groups["name"].Value}", m.Groups["kind"].Value),
    ];

    /// <summary>The type that declares what stands at an index: the last one before it with less indentation.</summary>
    private static string OwnerOf(string text, int at)
    {
        int indentation = Indentation(text, at);
        return TypeDeclaration().Matches(text[..at]).Last(t => t.Groups[1].Length < indentation).Groups[2].Value;
    }

    private static int Indentation(string text, int at)
    {
        int line = text.LastIndexOf('\n', at) + 1;
        return text.Length - line - text[line..].TrimStart(' ').Length;
    }

    [Fact]
    public void Locks_AreInTheTable() => Assert.Equal(Table().OrderBy(r => r.Rank), Declared().OrderBy(r => r.Rank));

    [Fact]
    public void Table_HasTheOrderOfTheRanks() => Assert.Equal(
        from Match m in Rank().Matches(File.ReadAllText(s_ranks)) where m.Groups[1].Value is not ("None" or "ReadSection") select m.Groups[1].Value,
        Table().Select(r => r.Rank));

    /// <summary>A lock of the runtime has no rank: what is taken and where is not asserted.</summary>
    [Fact]
    public void Locks_HaveRanks() => Assert.Empty(
        from file in Products()
        from line in File.ReadLines(file).Index()
        where Unranked().IsMatch(line.Item)
        select $"{Repository.Relative(file)}:{line.Index + 1}: {line.Item.Trim()}");

    [GeneratedRegex(@"^\| `(\w+)` \| `(\w+\.\w+)` \| (\w+) \|")]
    private static partial Regex TableRow();

    [GeneratedRegex(@"\b(?<kind>RankedLock|FutexMutex|MmuLock|TinyLock) (?<name>\w+) (\{ get; \} )?= new\(LockRank\.(?<rank>\w+)")]
    private static partial Regex Declaration();

    [GeneratedRegex(@"^( *)(?:\w+ )*(?:class|struct) (\w+)", RegexOptions.Multiline)]
    private static partial Regex TypeDeclaration();

    [GeneratedRegex(@"^    (\w+)(?: = \w+)?,", RegexOptions.Multiline)]
    private static partial Regex Rank();

    [GeneratedRegex(@"^(?! *//).*(\block \(|\b(Lock|SemaphoreSlim|Mutex|SpinLock) \w+ (=|;|\{ get)|\b(RankedLock|FutexMutex|MmuLock|TinyLock)\?? [_s]\w+;|new (Lock|RankedLock|TinyLock)\(\))")]
    private static partial Regex Unranked();
}

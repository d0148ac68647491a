using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;

namespace Ring3.Machines.Tests;

/// <summary>The lines that README.md shows.</summary>
public sealed class ReadmeTests
{
    /// <summary>Compiled, not run: samples/LinuxMachine does the same with a disk that is there.</summary>
    private static PcEnd Sample()
    {
        // README.md begins
        using Pc pc = Pc.Boot(new PcOptions { Disks = [new PcDisk("disk.img")], Network = new PcNetwork() });
        pc.Type("echo hello >/dev/vda; poweroff -f\n");
        PcEnd end = pc.Wait();
        // README.md ends
        return end;
    }

    [Fact]
    public void Sample_IsTheOneThatCompiles()
    {
        string compiled = Regex.Match(File.ReadAllText(ThisFile()), @" // README\.md begins\n(.*?) *// README\.md ends",
            RegexOptions.Singleline).Groups[1].Value;
        string readme = Path.Combine(Path.GetDirectoryName(ThisFile())!, "..", "..", "README.md");
        string printed = Regex.Matches(File.ReadAllText(readme), "```csharp\n(.*?)```", RegexOptions.Singleline)[1].Groups[1].Value;
        Assert.Equal(Regex.Replace(compiled, "^        ", "", RegexOptions.Multiline), printed);
        Assert.Equal(nameof(Sample), ((Func<PcEnd>)Sample).Method.Name);
    }

    private static string ThisFile([CallerFilePath] string path = "") => path;
}

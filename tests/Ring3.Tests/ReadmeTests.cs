using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;

namespace Ring3.Tests;

/// <summary>The C# of README.md is what is compiled and run here.</summary>
public class ReadmeTests
{
    /// <summary>out 0x10, al.</summary>
    private static readonly byte[] s_code = [0xe6, 0x10];

    [Fact]
    public void Sample_Runs()
    {
        ReadOnlySpan<byte> code = s_code;
        // README.md begins
        using var vm = VirtualMachine.Create();
        vm.MapMemory(0x1000, 4096);
        vm.Memory.Write(0x1000, code);

        VirtualCpu cpu = vm.CreateCpu();
        cpu.StartInRealMode(0x1000);
        CpuExit exit = cpu.Run();            // PortWrite, PortRead, MmioWrite, Halt, Shutdown ...
        // README.md ends
        Assert.Equal(CpuExitKind.PortWrite, exit.Kind);
        Assert.All(["PortRead", "MmioWrite", "Halt", "Shutdown"], kind => Assert.True(Enum.TryParse<CpuExitKind>(kind, out _)));
    }

    [Fact]
    public void Sample_IsTheOneThatRuns()
    {
        string compiled = Regex.Match(File.ReadAllText(ThisFile()), @" // README\.md begins\n(.*?) *// README\.md ends",
            RegexOptions.Singleline).Groups[1].Value;
        string readme = Path.Combine(Path.GetDirectoryName(ThisFile())!, "..", "..", "README.md");
        string printed = Regex.Match(File.ReadAllText(readme), "```csharp\n(.*?)```", RegexOptions.Singleline).Groups[1].Value;
        Assert.Equal(Regex.Replace(compiled, "^        ", "", RegexOptions.Multiline), printed);
    }

    private static string ThisFile([CallerFilePath] string path = "") => path;
}

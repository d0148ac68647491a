using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>What a VM tells of its translated code.</summary>
public sealed class TranslationSummaryTests
{
    /// <summary>mov ecx, 50,000,000; loop: dec ecx; jnz loop; xor eax, eax; out 0xf4, al.</summary>
    private static readonly byte[] s_loop = Convert.FromHexString("b980f0fa02ffc975fc31c0e6f4");

    [Fact]
    public void Translator_NamesTheHotLoop()
    {
        List<string> seen = [];
        using TestGuest g = new(options: new() { TranslationThreshold = 4, RegionObserver = seen.Add });
        g.Load(s_loop);
        Assert.Equal(0, g.RunToEnd());
        TranslationSummary t = g.Vm.SummarizeTranslation(1);
        Assert.InRange(t.Regions, 1ul, 8ul);
        Assert.InRange(t.Instructions, 99_000_000ul, 101_000_000ul);
        HotRegion hot = Assert.Single(g.Vm.SummarizeTranslation(8).Hottest, r => r.Address == TestGuest.Code + 5);
        Assert.InRange(hot.Instructions, 2, 4);
        Assert.Single(t.Hottest);
        Assert.Contains(seen, text => text.StartsWith("region of", StringComparison.Ordinal) && text.Contains("dec ecx", StringComparison.Ordinal));
    }

    [Fact]
    public void Interpreter_HasNothingToTell()
    {
        using TestGuest g = new(options: new() { TranslationThreshold = int.MaxValue, RegionObserver = _ => Assert.Fail("a region") });
        g.Load(Convert.FromHexString("31c0e6f4"));
        Assert.Equal(0, g.RunToEnd());
        Assert.Equal(0ul, g.Vm.SummarizeTranslation(1).Regions);
        Assert.Empty(g.Vm.SummarizeTranslation(1).Hottest);
    }
}

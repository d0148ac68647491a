using Ring3.Differential;

namespace Ring3.Cpu.Tests;

/// <summary>The machine as one model against the machine as another.</summary>
public class ModelContrastTests
{
    /// <summary>What the manuals define is the same in every model; and the models do differ, or the comparison would prove nothing.</summary>
    [Theory]
    [InlineData(64, "intel", "amd")]
    [InlineData(32, "intel", "amd")]
    [InlineData(16, "intel", "amd")]
    public void Models_DifferOnlyInWhatTheManualsLeaveOpen(int bits, string one, string other)
    {
        Assert.True(ProcessorModel.TryParse(one, out ProcessorModel first) & ProcessorModel.TryParse(other, out ProcessorModel second));
        var options = new FuzzOptions { Cases = 40_000, Seed = 5150, Bits = bits, Model = first };
        List<Contrast.Difference> differences = Contrast.Run(options, new FuzzSession(options).SelectCodes(), second);
        Assert.True(differences.Count > 50, $"{differences.Count} differences");
        string[] defined = [.. differences.Where(d => d.Rule is null).Select(d => d.Text)];
        Assert.True(defined.Length == 0, $"{defined.Length} differences in what is defined\n{string.Join('\n', defined.Take(10))}");
    }

    [Fact]
    public void Zen5_DiffersFromZen4InCmpsAlone()
    {
        var options = new FuzzOptions { Cases = 40_000, Seed = 5150, Bits = 32, Model = ProcessorModel.Zen5 };
        List<Contrast.Difference> differences = Contrast.Run(options, new FuzzSession(options).SelectCodes(), ProcessorModel.Zen4);
        Assert.NotEmpty(differences);
        Assert.All(differences, d => Assert.Equal("which operand faults first", d.Rule));
    }
}

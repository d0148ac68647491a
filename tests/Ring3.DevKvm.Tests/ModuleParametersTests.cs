using Ring3.Cpu;
using Ring3.Kvm;

namespace Ring3.DevKvm.Tests;

/// <summary>RING3_PARAMETERS.</summary>
public sealed class ModuleParametersTests
{
    [Theory]
    [InlineData("cpu=intel,pml=N", "intel")]
    [InlineData(" nx_huge_pages=1, cpu=AMD ", "amd")]
    [InlineData("cpu=host", "host")]
    [InlineData("cpu=cyrix", "host")]
    [InlineData(null, "host")]
    public void Cpu_ChoosesTheModel(string? text, string name)
    {
        VmOptions options = ModuleParameters.Apply(new VmOptions(), ModuleParameters.Parse(text));
        Assert.True(ProcessorModel.TryParse(name, out ProcessorModel expected));
        Assert.Same(expected, options.Processor);
    }
}

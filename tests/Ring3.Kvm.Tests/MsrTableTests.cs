using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>The table that every MSR access goes through.</summary>
public class MsrTableTests
{
    [Fact]
    public void Registers_DoNotOverlap()
    {
        HashSet<uint> numbers = [];
        foreach (MsrRegister r in MsrTable.Registers)
            for (uint msr = r.First; msr <= r.Last; msr++)
                Assert.True(numbers.Add(msr), $"{msr:x}");
        Assert.NotEmpty(numbers);
    }

    [Fact]
    public void Find_KnowsWhereARegisterBeginsAndEnds()
    {
        foreach (MsrRegister r in MsrTable.Registers)
        {
            Assert.Same(r, MsrTable.Find(r.First));
            Assert.Same(r, MsrTable.Find(r.Last));
            Assert.NotSame(r, MsrTable.Find(r.First - 1));
            Assert.NotSame(r, MsrTable.Find(r.Last + 1));
        }
        Assert.Null(MsrTable.Find(0xffff_ffff));
    }

    [Fact]
    public void Features_HaveValues()
    {
        foreach (string name in (string[])["intel", "amd"])
        {
            Assert.True(ProcessorModel.TryParse(name, out ProcessorModel? model));
            uint[] features = MsrTable.Features(model);
            Assert.NotEmpty(features);
            foreach (MsrRegister r in MsrTable.Registers)
                for (uint msr = r.First; msr <= r.Last; msr++)
                    Assert.Equal(features.Contains(msr), MsrTable.TryGetFeature(model, msr, out _));
        }
    }
}

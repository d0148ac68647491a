using Ring3.Cpu;

namespace Ring3.Kvm.Tests;

/// <summary>The table that every MSR access goes through.</summary>
public class MsrTableTests
{
    [Fact]
    public void Registers_DoNotOverlap()
    {
        ReadOnlySpan<MsrRegister> all = MsrTable.Registers;
        Assert.NotEqual(0, all.Length);
        for (int i = 1; i < all.Length; i++)
            Assert.True(all[i - 1].Last < all[i].First, $"{all[i - 1].First:x}-{all[i - 1].Last:x} and {all[i].First:x}-{all[i].Last:x}");
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

using Ring3.Abi;
using Ring3.Arch;

namespace Ring3.Mmu.Tests;

/// <summary>Huge mappings without X: splits on execution, and what the recovery takes back.</summary>
public class NxHugePageTests
{
    private const ulong M = 1 << 20;

    private static MmuFixture Fixture(bool nx = true)
    {
        var f = new MmuFixture();
        f.Tdp.NxHugePages = nx;
        f.Tdp.MaxLevel = PgLevel.Level2M;
        f.AddRam(0, 0, 16 * M);
        return f;
    }

    private static void Execute(MmuFixture f, ulong gpa)
    {
        Assert.True(f.V.Mmu.LoadRoot());
        for (int i = 0; i < 3; i++)
        {
            ulong leaf = f.V.Leaf(gpa, out int _);
            if ((leaf & Spte.X) != 0)
                return;
            Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, gpa, AccessKind.Execute | (Spte.IsPresent(leaf) ? AccessKind.Present : 0)));
        }
        Assert.Fail("not executable after three faults");
    }

    private static (ulong Huge, ulong Small, ulong Splits) Counts(MmuFixture f)
    {
        MmuStats s = f.Tdp.GetStats();
        return (s.Pages2M, s.Pages4K, s.NxSplits);
    }

    [Fact]
    public void Execution_SplitsWhatIsHuge_AndMapsTheRestSmall()
    {
        using MmuFixture f = Fixture();
        f.V.Access(0, false);
        f.V.Access(2 * M, true);
        Assert.Equal((2UL, 0UL, 0UL), Counts(f));
        Assert.Equal(0UL, f.V.Leaf(0, out _) & Spte.X);
        Execute(f, 0x3000);
        Assert.Equal((1UL, 512UL, 1UL), Counts(f));
        Execute(f, 4 * M);
        Assert.Equal((1UL, 513UL, 2UL), Counts(f));
        // The children of the split are all executable, and writes go on as before.
        Execute(f, 0x5000);
        f.V.Access(0x3000, true);
        f.V.Access(4 * M, true);
        Assert.Equal((1UL, 513UL, 2UL), Counts(f));
        f.Tdp.CheckInvariants();
    }

    [Fact]
    public void WithoutTheMitigation_HugePagesAreExecuted()
    {
        using MmuFixture f = Fixture(nx: false);
        Execute(f, 0);
        Assert.Equal((1UL, 0UL, 0UL), Counts(f));
    }

    [Fact]
    public void Recovery_ZapsTheOldest_AndReadsAreHugeAgain()
    {
        using MmuFixture f = Fixture();
        for (ulong i = 0; i < 4; i++)
            Execute(f, i * 2 * M);
        Assert.Equal((0UL, 4UL, 4UL), Counts(f));
        Assert.Equal(0, f.Tdp.RecoverNxSplits(0));
        Assert.Equal(2, f.Tdp.RecoverNxSplits(3));
        Assert.Equal((0UL, 2UL, 2UL), Counts(f));
        f.V.Access(0, false);
        Assert.Equal((1UL, 2UL, 2UL), Counts(f));
        Assert.NotEqual(0UL, f.V.Leaf(6 * M, out _) & Spte.X);
        Assert.Equal(2, f.Tdp.RecoverNxSplits(1));
        Assert.Equal((1UL, 0UL, 0UL), Counts(f));
        Assert.Equal(0, f.Tdp.RecoverNxSplits(1));
        Execute(f, 0);
        Assert.Equal((0UL, 512UL, 1UL), Counts(f));
        f.Tdp.CheckInvariants();
    }

    [Fact]
    public void SplitsOfLoggedSlots_AreForgotten_AndEndWithTheLog()
    {
        using MmuFixture f = Fixture();
        Execute(f, 0);
        f.SetFlags(0, KvmApi.KVM_MEM_LOG_DIRTY_PAGES);
        Assert.Equal(0, f.Tdp.RecoverNxSplits(1));
        Assert.Equal((0UL, 1UL, 0UL), Counts(f));
        f.SetFlags(0, 0);
        Assert.Equal((1UL, 0UL, 0UL), Counts(f));
        Assert.Equal(0UL, f.V.Leaf(0, out _) & Spte.X);
    }

    [Fact]
    public void Turning_MakesMappingsObsolete()
    {
        using MmuFixture f = Fixture(nx: false);
        Execute(f, 0);
        f.Tdp.NxHugePages = true;
        f.V.HandleRequests();
        Execute(f, 0);
        Assert.Equal((0UL, 1UL, 1UL), Counts(f));
    }
}

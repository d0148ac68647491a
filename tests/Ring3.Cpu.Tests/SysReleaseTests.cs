namespace Ring3.Cpu.Tests;

/// <summary>Tests that look at the whole process run alone.</summary>
[CollectionDefinition(nameof(SysReleaseTests), DisableParallelization = true)]
public sealed class SysReleaseCollection;

/// <summary>What a dropped machine leaves behind.</summary>
[Collection(nameof(SysReleaseTests))]
public sealed unsafe class SysReleaseTests
{
    [Fact]
    public void DroppedProcessorsGiveTheirMemoryBack()
    {
        static long MappedKib() => long.Parse(File.ReadAllText("/proc/self/statm").Split(' ')[0]) * 4;
        static void Churn(int machines)
        {
            for (int i = 0; i < machines; i++)
                using (SysMachine m = new())
                    Assert.True(m.P.TranslateGva(0x5000, out _, out _, out _));
        }
        Churn(50);
        Collect();
        long before = MappedKib();
        Churn(400);
        Collect();
        long left = MappedKib() - before;
        Assert.True(left < 400 * 100, $"{left} KiB were left by 400 machines");
    }

    private static void Collect()
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
    }
}

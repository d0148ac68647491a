using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Tests.Shared;

namespace Ring3.Kvm.Tests;

/// <summary>The short, seeded version of <see cref="SlotStorm"/>. RING3_STRESS_SECONDS makes it longer.</summary>
public class SlotStormTests
{
    [Theory]
    [InlineData(1, RootZapPolicy.Worker, 50, true)]
    [InlineData(2, RootZapPolicy.Worker, 5, false)]
    [InlineData(3, RootZapPolicy.Sync, 50, true)]
    [InlineData(4, RootZapPolicy.Inline, 50, true)]
    public void SlotsChange_WhileGuestsRunMigrateAndAreAged(int seed, RootZapPolicy policy, int share, bool zapAll)
    {
        using var storm = new SlotStorm(seed, 2, policy, share, zapAll, (DirtyTracking)(seed % 4));
        int seconds = int.TryParse(Environment.GetEnvironmentVariable("RING3_STRESS_SECONDS"), out int s) ? s : 0;
        // On a busy host a phase may pass without a change: there are as many as it takes to have seen everything.
        for (int more = 0; more == 0 || more < 50 && !HasSeenEnough(storm); more++)
            Assert.Null(storm.Run(1, seconds == 0 ? 60 : seconds * 100));
        Assert.True(HasSeenEnough(storm), storm.Counts.ToString());
    }

    private static bool HasSeenEnough(SlotStorm storm)
    {
        var (iterations, mmio, changes, migrations, roots) = storm.Counts;
        return iterations > 1000 && mmio > 0 && changes >= 10 && migrations >= 3 && roots >= 1;
    }

    /// <summary>The detectors are awake: memory that goes away under a slot which was not deleted is noticed.</summary>
    [Fact]
    public void Control_MemoryTakenWithoutDeletion_IsNoticed()
    {
        for (int seed = 1; seed <= 20; seed++)
        {
            using var storm = new SlotStorm(seed, 2, RootZapPolicy.Worker) { SkipDeletion = true };
            if (storm.Run(3, 100) is not null)
                return;
        }
        Assert.Fail("inconclusive: the defect was not detected");
    }
}

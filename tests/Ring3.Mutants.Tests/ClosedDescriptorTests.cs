using Ring3.Kvm.Tests;

namespace Ring3.Mutants.Tests;

/// <summary>
/// Faults injected into the closed-descriptor races: time between finding a descriptor and using it, and a close that does not wait for that. Either
/// the close waits, and no scene sees a descriptor of others touched; or it does not,
/// and each scene does.
/// </summary>
[Collection(nameof(Defects))]
public sealed class ClosedDescriptorTests : IDisposable
{
    private const int Rounds = 100, Many = 20_000;

    public ClosedDescriptorTests()
    {
        Defects.None();
        Defects.WidensWindows = true;
    }

    public void Dispose() => Defects.None();

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Doorbell_ThatWaits_IsSilent(bool mmio)
    {
        DescriptorScenes.Result r = DescriptorScenes.Doorbell(mmio, Rounds);
        Assert.Equal((0, 0ul), (r.Screams, r.Late));
        Assert.NotEqual(0ul, r.Signals);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Doorbell_ThatDoesNotWait_RingsOthers(bool mmio)
    {
        Defects.ClosesEarly = true;
        Assert.NotEqual(0, DescriptorScenes.Doorbell(mmio, Many, untilScream: true).Screams);
    }

    [Fact]
    public void Resample_ThatWaits_IsSilent()
    {
        DescriptorScenes.Result r = DescriptorScenes.Resample(Rounds);
        Assert.Equal((0, 0ul), (r.Screams, r.Late));
        Assert.NotEqual(0ul, r.Signals);
    }

    [Fact]
    public void Resample_ThatDoesNotWait_SignalsOthers()
    {
        Defects.ClosesEarly = true;
        Assert.NotEqual(0, DescriptorScenes.Resample(Many, untilScream: true).Screams);
    }

    [Fact]
    public void Irqfd_ThatWaits_ReadsNobodyElses()
    {
        DescriptorScenes.Result r = DescriptorScenes.Irqfd(20 * Rounds);
        Assert.Equal(0, r.Screams);
        Assert.NotEqual(0ul, r.Signals);
    }

    [Fact]
    public void Irqfd_ThatDoesNotWait_ReadsOthers()
    {
        Defects.ClosesEarly = true;
        Assert.NotEqual(0, DescriptorScenes.Irqfd(Many, untilScream: true).Screams);
    }
}

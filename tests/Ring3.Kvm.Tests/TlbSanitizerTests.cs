using Ring3.Cpu;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Kvm.Tests;

/// <summary>The TLB sanitizer reports nothing where every flush is made. The controls, the same scenes without the flush, are in Ring3.Mutants.Tests.</summary>
public sealed class TlbSanitizerTests
{
    [Theory]
    [MemberData(nameof(TlbScenes.Sites), MemberType = typeof(TlbScenes))]
    public void EverySite_MakesItsFlush(FlushSite site) => Assert.True(TlbScenes.Play(site));

    [Theory]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    [InlineData(DirtyTracking.WriteProtect)]
    public void DirtyLog_InEveryMode(DirtyTracking tracking) => Assert.True(TlbScenes.PlayDirtyLog(tracking));

    [Fact]
    public void ObsoleteRoot_InARunningGuest() => Assert.True(TlbScenes.PlayObsoleteRoot());

    [Fact]
    public void Attributes() => Assert.True(TlbScenes.PlayAttributes());

    [Theory]
    [InlineData(GuestFlush.Cr3)]
    [InlineData(GuestFlush.Invlpg)]
    [InlineData(GuestFlush.Invpcid)]
    [InlineData(GuestFlush.Controls)]
    [InlineData(GuestFlush.StateWrite)]
    public void GuestsOwnFlushes(GuestFlush site) => Assert.True(TlbScenes.Play(site));

    [Fact]
    public void Reset_DropsGuestPhysicalTranslations() => Assert.True(TlbScenes.PlayReset());
}

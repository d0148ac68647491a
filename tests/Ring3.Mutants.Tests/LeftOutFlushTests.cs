using Ring3.Abi;
using Ring3.Cpu;
using Ring3.Kvm.Tests;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Mutants.Tests;

/// <summary>A flush that is left out is reported by the TLB sanitizer at the next use of what it should have dropped, at every site.</summary>
[Collection(nameof(Defects))]
public sealed unsafe class LeftOutFlushTests : IDisposable
{
    public LeftOutFlushTests() => Defects.None();

    public void Dispose() => Defects.None();

    [Theory]
    [MemberData(nameof(TlbScenes.Sites), MemberType = typeof(TlbScenes))]
    public void EverySite_IsMissed(FlushSite site) => Assert.False(TlbScenes.Play(site, () => Defects.LeaveOut(site)));

    [Theory]
    [InlineData(DirtyTracking.DirtyLog)]
    [InlineData(DirtyTracking.DirtyScan)]
    [InlineData(DirtyTracking.WriteProtect)]
    public void DirtyLog_InEveryMode(DirtyTracking tracking) => Assert.False(TlbScenes.PlayDirtyLog(tracking, () => Defects.LeaveOut(FlushSite.GetDirtyLog)));

    [Fact]
    public void ObsoleteRoot_InARunningGuest() => Assert.False(TlbScenes.PlayObsoleteRoot(() => Defects.LeaveOut(FlushSite.ObsoleteRoots), ends: true));

    [Fact]
    public void Attributes() => Assert.False(TlbScenes.PlayAttributes(() => Defects.LeaveOut(FlushSite.Notifier)));

    [Theory]
    [InlineData(GuestFlush.Cr3)]
    [InlineData(GuestFlush.Invlpg)]
    [InlineData(GuestFlush.Invpcid)]
    [InlineData(GuestFlush.Controls)]
    [InlineData(GuestFlush.StateWrite)]
    public void GuestsOwnFlushes(GuestFlush site) => Assert.False(TlbScenes.Play(site, () => Defects.LeaveOut(site)));

    [Fact]
    public void Reset_DropsGuestPhysicalTranslations() => Assert.False(TlbScenes.PlayReset(() => Defects.LeaveOut(GuestFlush.Reset)));

    /// <summary>Nothing that is left out may be reported where it changes nothing.</summary>
    [Fact]
    public void AFlushThatCoversNothingCached_IsNotMissed()
    {
        using var s = new TlbScene();
        const ulong Gfn = TlbScene.Other >> 12;
        Assert.True(TlbScenes.Play(s, FlushSite.ZapRange, () => Defects.LeaveOut(FlushSite.ZapRange), () => s.Vm.Mmu.ZapGfnRange(Gfn, Gfn + 512)));
    }

    [Fact]
    public void AReportNamesEntryZapAndFlush()
    {
        using var s = new TlbScene();
        const ulong Gfn = TlbScene.Gpa >> 12;
        Assert.False(TlbScenes.Play(s, FlushSite.ZapRange, () => Defects.LeaveOut(FlushSite.ZapRange), () => s.Vm.Mmu.ZapGfnRange(Gfn, Gfn + 1)));
        Assert.Contains($"gpa 0x{TlbScene.Gpa:x}", s.Vm.BugMessage);
        Assert.Contains($"host 0x{s.Ram.Hva:x}", s.Vm.BugMessage);
        Assert.Contains("ZapRange", s.Vm.BugMessage);
        Assert.Equal(-Errno.EIO, s.V.Run());
    }
}

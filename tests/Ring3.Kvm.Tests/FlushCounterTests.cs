using Ring3.Mmu;

namespace Ring3.Kvm.Tests;

/// <summary>What is counted for flushes of ranges, and for those that join another.</summary>
public sealed class FlushCounterTests
{
    private const ulong First = 0x400, Stride = 128, Pages = 24;

    /// <summary>A guest that has written to 24 pages, half a megabyte apart, and does so again in each run.</summary>
    private static TestGuest Guest(int maxLevel)
    {
        var guest = new TestGuest();
        guest.Vm.Mmu.MaxLevel = maxLevel;
        // mov ebx, 0x400000; mov ecx, 24; again: inc dword [rbx]; add rbx, 0x80000; loop again; out 0xf4, al; jmp start
        guest.Load(0xbb, 0, 0, 0x40, 0, 0xb9, (byte)Pages, 0, 0, 0, 0xff, 0x03, 0x48, 0x81, 0xc3, 0, 0, 8, 0, 0xe2, 0xf5, 0xe6, 0xf4, 0xeb, 0xe7);
        guest.RunToEnd();
        return guest;
    }

    private static (long Requests, long Ranges, long Coalesced, long MetAGuest) Counts(TestGuest guest)
    {
        VmStats s = guest.Vm.Stats;
        return (s.remote_tlb_flush_requests, s.remote_tlb_flush_ranges, s.tlb_flush_coalesced, s.remote_tlb_flush);
    }

    private static (long Requests, long Ranges, long Coalesced, long MetAGuest) CountsOf(TestGuest guest, Action change)
    {
        var before = Counts(guest);
        change();
        var after = Counts(guest);
        return (after.Requests - before.Requests, after.Ranges - before.Ranges, after.Coalesced - before.Coalesced, after.MetAGuest - before.MetAGuest);
    }

    private static void Zap(TestGuest guest, ulong page) => guest.Vm.Mmu.ZapGfnRange(First + Stride * page, First + Stride * page + 1);

    [Fact]
    public void TwoSmallChanges_AreTwoRequests_AndOneFlushOfTheVcpu()
    {
        using TestGuest guest = Guest(PgLevel.Level4K);
        Assert.Equal((1, 1, 0, 0), CountsOf(guest, () => Zap(guest, 0)));
        // The vCPU has not entered in between: the second joins the first.
        Assert.Equal((1, 1, 1, 0), CountsOf(guest, () => Zap(guest, 1)));
        (ulong ranges, ulong full) = (guest.Cpu.Stats.tlb_flush_range, guest.Cpu.Stats.tlb_flush);
        guest.RunToEnd();
        Assert.Equal((ranges + 1, full), (guest.Cpu.Stats.tlb_flush_range, guest.Cpu.Stats.tlb_flush));
        // Now nothing is waiting.
        Assert.Equal((1, 1, 0, 0), CountsOf(guest, () => Zap(guest, 0)));
    }

    [Fact]
    public void WhatIsNotMapped_OwesNothing()
    {
        using TestGuest guest = Guest(PgLevel.Level4K);
        Zap(guest, 0);
        Assert.Equal((0, 0, 0, 0), CountsOf(guest, () => Zap(guest, 0)));
    }

    /// <summary>A change of one page of a huge mapping removes the mapping: a second change below it finds nothing to flush.</summary>
    [Fact]
    public void TwoChangesBelowOneHugeLeaf_AreOneFlush()
    {
        using TestGuest guest = Guest(PgLevel.Level2M);
        Assert.Equal((1, 1, 0, 0), CountsOf(guest, () => Zap(guest, 0)));
        Assert.Equal((0, 0, 0, 0), CountsOf(guest, () => Zap(guest, 1)));
        Assert.Equal((1, 1, 1, 0), CountsOf(guest, () => Zap(guest, 4)));
    }

    [Fact]
    public void TooMuchForRanges_IsAFullFlush()
    {
        using TestGuest guest = Guest(PgLevel.Level4K);
        Assert.Equal((1, 0, 0, 0), CountsOf(guest, () => guest.Vm.Mmu.ZapGfnRange(First, First + Stride * Pages)));
        (ulong ranges, ulong full) = (guest.Cpu.Stats.tlb_flush_range, guest.Cpu.Stats.tlb_flush);
        guest.RunToEnd();
        Assert.Equal((ranges, full + 1), (guest.Cpu.Stats.tlb_flush_range, guest.Cpu.Stats.tlb_flush));
    }
}

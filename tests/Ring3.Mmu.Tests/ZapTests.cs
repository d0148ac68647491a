using Ring3.Arch;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public class ZapTests
{
    private const ulong M = 1 << 20;

    [Fact]
    public void ZapGfnRange_RemovesExactlyTheRange_AndFlushesOnce()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M, 0, 0x1000);
        for (ulong gpa = 0; gpa < 16 * M; gpa += 0x1000)
            f.V.Access(gpa, true);
        f.Tdp.ZapGfnRange(0x100, 0x900);
        Assert.Equal(1, f.Host.Flushes);
        Assert.Equal(4096UL - 0x800, f.Tdp.GetStats().Pages4K);
        Assert.True(Spte.IsPresent(f.V.Leaf(0xff000, out _)) && Spte.IsPresent(f.V.Leaf(0x900000, out _)));
        Assert.False(Spte.IsPresent(f.V.Leaf(0x100000, out _)) || Spte.IsPresent(f.V.Leaf(0x8ff000, out _)));
        f.Queue.Drain();
        Assert.Equal(0, f.Tdp.Allocator.CountState(TablePageState.Unlinked));
        Assert.True(f.Tdp.GetStats().TablePagesFreed >= 3);
        f.Tdp.CheckInvariants();
        f.V.Access(0x100000, true);
    }

    [Fact]
    public void ZapGfnRange_InsideAHugePage_RemovesTheHugePage()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M);
        f.V.Access(2 * M, true);
        f.Tdp.ZapGfnRange(0x210, 0x211);
        Assert.Equal(0UL, f.Tdp.GetStats().Pages2M);
    }

    [Fact]
    public void Zap_OfNothing_DoesNotFlush()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M);
        f.V.Access(0, true);
        f.Tdp.ZapGfnRange(0x800, 0x900);
        Assert.Equal(0, f.Host.Flushes);
    }

    [Fact]
    public unsafe void Discard_ThroughTheNotifier_GivesZeroPages()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 16 * M);
        f.V.Access(0x3000, true, h => *(ulong*)h = 42);
        ulong seq = f.Slots.Notifier.InvalidateSeq;
        ram.Discard(0x3000, 0x1000, f.Slots.Notifier);
        Assert.Equal(seq + 1, f.Slots.Notifier.InvalidateSeq);
        Assert.Equal(1, f.Host.Flushes);
        ulong value = 1;
        f.V.Access(0x3000, false, h => value = *(ulong*)h);
        Assert.Equal(0UL, value);
    }

    [Fact]
    public void Fault_DuringAnInvalidation_RetriesInsideTheRangeOnly()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 16 * M, 0, 0x1000);
        f.V.Mmu.LoadRoot();
        ulong start = ram.Hva + 0x1000 + 0x3000, end = start + 0x1000;
        Assert.True(f.Slots.Notifier.InvalidateRangeStart(start, end));
        Assert.Equal(MmuResult.Retry, f.Tdp.Fault(f.V.Mmu, 0x3000, AccessKind.Read));
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 0x4000, AccessKind.Read));
        f.Slots.Notifier.InvalidateRangeEnd(start, end);
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 0x3000, AccessKind.Read));
    }

    [Fact]
    public void Fault_BesideAnInvalidation_MapsNothingInsideIt()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 16 * M);
        f.V.Mmu.LoadRoot();
        ulong start = ram.Hva + 0x3000, end = start + 0x1000;
        Assert.True(f.Slots.Notifier.InvalidateRangeStart(start, end));
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 0x4000, AccessKind.Read));
        Assert.Equal((1UL, 0UL), (f.Tdp.GetStats().Pages4K, f.Tdp.GetStats().Pages2M));
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 4 * M, AccessKind.Read));
        Assert.Equal(1UL, f.Tdp.GetStats().Pages2M);
        f.Slots.Notifier.InvalidateRangeEnd(start, end);
    }

    [Fact]
    public void Notifier_IgnoresForeignMemory()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 16 * M);
        Assert.False(f.Slots.Notifier.InvalidateRangeStart(0x10000, 0x20000));
        Assert.Equal(0, f.Slots.Notifier.InProgress);
    }

    [Fact]
    public void SlotDeletion_WithRangeZap_KeepsTheRoot()
    {
        using var f = new MmuFixture();
        f.Tdp.SlotZapAll = false;
        f.AddRam(0, 0, 16 * M);
        f.AddRam(1, 1UL << 32, 16 * M);
        f.V.Access(0, true);
        f.V.Access(1UL << 32, true);
        ulong root = f.V.Mmu.RootHva;
        f.Delete(0);
        Assert.Equal(MmuResult.Mmio, f.V.Access(0, true));
        Assert.Equal(root, f.V.Mmu.RootHva);
        Assert.Equal(1UL, f.Tdp.GetStats().Pages2M);
    }

    [Fact]
    public void SlotMove_TakesMemoryAlong()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 4 * M);
        f.V.Access(0x1000, true);
        Assert.Equal(0, f.Slots.SetRegion(0, 0, 64 * M, 4 * M, ram.Hva));
        Assert.Equal(MmuResult.Mmio, f.V.Access(0x1000, true));
        ulong seen = 0;
        Assert.Equal(MmuResult.Fixed, f.V.Access(64 * M + 0x1000, true, h => seen = h));
        Assert.Equal(ram.Hva + 0x1000, seen);
    }
}

using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public unsafe class FaultTests
{
    private const ulong M = 1 << 20, G = 1 << 30;

    [Theory]
    [InlineData(0UL, 4 * M, 0UL, 0x1000UL, 2)]          // aligned: 2 MiB
    [InlineData(0UL, 4 * M, 0x1000UL, 0x1000UL, 1)]     // hva and gpa differ modulo 2 MiB
    [InlineData(0UL, 0x1ff000UL, 0UL, 0x1000UL, 1)]     // 2 MiB does not fit into the slot
    [InlineData(0x1000UL, 4 * M, 0x1000UL, 0x1000UL, 1)] // aligned alike, but before the first whole 2 MiB
    [InlineData(0x1000UL, 4 * M, 0x1000UL, 0x200000UL, 2)]
    [InlineData(G, 2 * G, 0UL, G + 0x5000, 3)]
    [InlineData(512 * M, 2 * G, 512 * M, 512 * M + 0x5000, 2)]
    [InlineData(512 * M, 2 * G, 512 * M, G, 3)]
    public void Fault_MapsAtTheLargestLevelThatSlotAndAlignmentAllow(ulong base_, ulong size, ulong hvaOffset, ulong gpa, int level)
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, base_, size, 0, hvaOffset);
        ulong seen = 0;
        Assert.Equal(MmuResult.Fixed, f.V.Access(gpa + 0x123, write: true, h => seen = h));
        Assert.Equal(ram.Hva + hvaOffset + (gpa - base_) + 0x123, seen);
        Assert.True(Spte.IsPresent(f.V.Leaf(gpa, out int found)));
        Assert.Equal(level, found);
        Assert.Equal(1UL, f.V.Mmu.Stats.PfFixed);
        MmuStats stats = f.Tdp.GetStats();
        Assert.Equal((level == 1 ? 1UL : 0, level == 2 ? 1UL : 0, level == 3 ? 1UL : 0), (stats.Pages4K, stats.Pages2M, stats.Pages1G));
    }

    [Fact]
    public void Fault_SecondAccessDoesNotFault()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.V.Access(0x1000, false);
        f.V.Access(0x2000, true);
        Assert.Equal(1UL, f.V.Mmu.Stats.PfTaken);
    }

    [Fact]
    public void Fault_WithoutMemoryForATable_IsNoMemory_AndComesAfterwards()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x1000, true));
        f.Tdp.Allocator.IsHostExhausted = true;
        List<nint> taken = [];
        for (TablePage* page; (page = f.Tdp.Allocator.Allocate()) != null;)
            taken.Add((nint)page);
        f.AddRam(1, 64 * M, 4 * M, 0, 0x1000);
        Assert.Equal(MmuResult.NoMemory, f.Tdp.Fault(f.V.Mmu, 64 * M, AccessKind.Write));
        Assert.Equal(MmuResult.NoMemory, f.Tdp.PreFault(f.V.Mmu, 64 * M, 66 * M, out ulong end));
        Assert.Equal(64 * M, end);
        foreach (nint page in taken)
            f.Tdp.Allocator.Free((TablePage*)page, isZero: true);
        f.Tdp.Allocator.IsHostExhausted = false;
        Assert.Equal(MmuResult.Fixed, f.V.Access(64 * M, true));
    }

    [Fact]
    public void Counters_CountFaultsOfTheGuest_ByTheirOutcome()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M);
        f.AddRam(1, 64 * M, 4 * M);
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x1000, true));
        VcpuMmuStats one = f.V.Mmu.Stats;
        Assert.Equal((1UL, 1UL, 0UL, 0UL), (one.PfTaken, one.PfFixed, one.PfFast, one.PfSpurious));
        // Another vCPU was faster.
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 0x1000, AccessKind.Write));
        Assert.Equal(MmuResult.Fixed, f.Tdp.Fault(f.V.Mmu, 0x1000, AccessKind.Write | AccessKind.Present));
        VcpuMmuStats two = f.V.Mmu.Stats;
        Assert.Equal((3UL, 1UL, 1UL, 2UL), (two.PfTaken, two.PfFixed, two.PfFast, two.PfSpurious));
        Assert.Equal(MmuResult.Fixed, f.Tdp.PreFault(f.V.Mmu, 64 * M, 68 * M, out _));
        Assert.Equal(two, f.V.Mmu.Stats);
        Assert.Equal(MmuResult.Mmio, f.V.Access(0xfee00000, true));
        Assert.Equal((1UL, 1UL), (f.V.Mmu.Stats.PfEmulate, f.V.Mmu.Stats.PfMmioSpteCreated));
    }

    [Fact]
    public void Fault_WithoutSlot_InstallsMmioEntryAndReportsMmio()
    {
        using var f = new MmuFixture();
        Assert.Equal(MmuResult.Mmio, f.V.Access(0xfee00000, true));
        Assert.Equal(1UL, f.V.Mmu.Stats.PfTaken);
        ulong spte = f.V.Leaf(0xfee00000, out int level);
        Assert.True(Spte.IsMmio(spte));
        Assert.Equal(1, level);
        Assert.Equal(f.Slots.Generation & 0x3ffff, Spte.MmioGeneration(spte));
        Assert.Equal(MmuResult.Mmio, f.V.Access(0xfee00000, true));
        Assert.Equal(1UL, f.V.Mmu.Stats.PfTaken);
    }

    [Fact]
    public void SlotCreation_OverMmioEntries_MakesThemMemory()
    {
        using var f = new MmuFixture();
        Assert.Equal(MmuResult.Mmio, f.V.Access(0x5000, true));
        f.AddRam(0, 0, M);
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x5000, true));
    }

    [Fact]
    public void Fault_BeyondTheTables_IsNoSlot()
    {
        using var f = new MmuFixture();
        Assert.Equal(MmuResult.NoSlot, f.Tdp.Fault(Loaded(f), 1UL << 48, AccessKind.Read));
    }

    [Fact]
    public void Fault_WriteToReadOnlySlot_GoesToTheClient()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M, KvmApi.KVM_MEM_READONLY);
        Assert.Equal(MmuResult.Fixed, f.V.Access(0x1000, false));
        Assert.Equal(MmuResult.ReadOnlyWrite, f.V.Access(0x1000, true));
        ulong leaf = f.V.Leaf(0x1000, out _);
        Assert.False(Spte.IsWritable(leaf));
        Assert.NotEqual(0UL, leaf & Spte.WriteIsMmio);
        Assert.True(f.Tdp.IsMmio(f.V.Mmu, 0x1000, write: true));
        Assert.False(f.Tdp.IsMmio(f.V.Mmu, 0x1000, write: false));
    }

    [Fact]
    public void Fault_AllocatesNothingManaged()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0x1000, 64 * M, 0, 0x3000);
        VcpuMmu v = Loaded(f);
        for (ulong i = 0; i < 100; i++)
            f.Tdp.Fault(v, 0x1000 + i * 4096, AccessKind.Write);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (ulong i = 100; i < 5000; i++)
            f.Tdp.Fault(v, 0x1000 + i * 4096, AccessKind.Write);
        Assert.Equal(0, GC.GetAllocatedBytesForCurrentThread() - before);
    }

    [Fact]
    public void Vcpus_ShareARoot_SmmHasItsOwn()
    {
        using var f = new MmuFixture(3);
        f.AddRam(0, 0, 4 * M);
        foreach (FakeVcpu v in f.Vcpus)
            v.Access(0x1000, true);
        Assert.Equal(f.V.Mmu.RootHva, f.Vcpus[1].Mmu.RootHva);
        Assert.Equal(1, f.Tdp.GetStats().Roots);
        GuestRam smram = f.AddRam(1 << 16 | 0, 0, M);
        f.V.Mmu.AsId = 1;
        ulong seen = 0;
        f.V.Access(0x1000, true, h => seen = h);
        Assert.Equal(smram.Hva + 0x1000, seen);
        Assert.Equal(2, f.Tdp.GetStats().Roots);
        uint smmAsid = f.V.Mmu.Asid;
        f.V.Mmu.AsId = 0;
        Assert.NotEqual(smmAsid, f.V.Mmu.Asid);
    }

    [Fact]
    public void Dump_MergesNeighbours()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, 16 * M);
        f.V.Access(2 * M, true);
        f.V.Access(4 * M, true);
        f.V.Access(8 * M, false);
        f.V.Access(0xfee00000, false);
        var text = new StringWriter();
        f.Tdp.Dump(text);
        string[] lines = text.ToString().TrimEnd().Split('\n');
        Assert.Equal(4, lines.Length);
        Assert.Equal($"  gpa 0x200000-0x5fffff level 2 leaf 0x{ram.Hva + 2 * M:x} rwxad", lines[1]);
        Assert.Equal($"  gpa 0x800000-0x9fffff level 2 leaf 0x{ram.Hva + 8 * M:x} rwxa-", lines[2]);
        Assert.StartsWith("  gpa 0xfee00000-0xfee00fff level 1 mmio gen", lines[3]);
    }

    private static VcpuMmu Loaded(MmuFixture f)
    {
        Assert.True(f.V.Mmu.LoadRoot());
        return f.V.Mmu;
    }
}

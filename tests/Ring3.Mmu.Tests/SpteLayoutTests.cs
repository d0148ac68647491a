using Ring3.Arch;

namespace Ring3.Mmu.Tests;

public class SpteLayoutTests
{
    [Fact]
    public void SoftwareBits_LieInPositionsThatTheProcessorIgnores()
    {
        ulong processor = NestedPte.RWX | NestedPte.MemType | 1UL << 6 | NestedPte.PS | NestedPte.A | NestedPte.D | NestedPte.Address | 1UL << 63;
        ulong[] software = [Spte.WriteIsMmio, Spte.Present, Spte.HostWritable, Spte.MmuWritable];
        ulong seen = 0;
        foreach (ulong bit in software)
        {
            Assert.Equal(1, System.Numerics.BitOperations.PopCount(bit));
            Assert.Equal(0UL, bit & (processor | seen));
            seen |= bit;
        }
    }

    [Fact]
    public void Frozen_IsNotPresentForAnybody()
    {
        Assert.Equal(0UL, Spte.Frozen & (NestedPte.RWX | Spte.Present));
        Assert.False(Spte.IsPresent(Spte.Frozen) || Spte.IsMmio(Spte.Frozen));
        Assert.NotEqual(0UL, Spte.Frozen);
        // No mapping, table or MMIO entry has bit 62.
        Assert.NotEqual(0UL, Spte.Frozen & ~(NestedPte.Address | 0xfffUL) & (1UL << 62));
        Assert.Equal(0UL, Spte.MmioGenerationMask & Spte.Frozen & (1UL << 62));
    }

    [Fact]
    public void MmioGeneration_RoundTripsAndTouchesNothingElse()
    {
        Assert.Equal(Spte.MmioGenerationBits, System.Numerics.BitOperations.PopCount(Spte.MmioGenerationMask));
        Assert.Equal(0UL, Spte.MmioGenerationMask & (NestedPte.RWX | Spte.Present | Spte.AddressMask));
        for (int bit = 0; bit < Spte.MmioGenerationBits; bit++)
        {
            ulong spte = Spte.MakeMmio(0xfee00, 1UL << bit);
            Assert.True(Spte.IsMmio(spte) && Spte.IsWellFormed(spte, 1) && !Spte.IsPresent(spte));
            Assert.Equal(NestedPte.MmioValue, spte & NestedPte.MmioMask);
            Assert.Equal(1UL << bit, Spte.MmioGeneration(spte));
            Assert.Equal(0xfee00UL << 12, Spte.Address(spte));
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(3)]
    public void Leaf_HasExactlyTheRightsAskedFor(int level)
    {
        ulong hva = 0x7f00_0000_0000;
        foreach (bool hostWritable in new[] { false, true })
            foreach (bool writable in new[] { false, true })
                foreach (bool dirty in new[] { false, true })
                {
                    ulong spte = Spte.MakeLeaf(hva, level, hostWritable, writable, dirty);
                    Assert.True(Spte.IsWellFormed(spte, level), Spte.Describe(spte, level));
                    Assert.True(Spte.IsPresentLeaf(spte, level));
                    Assert.Equal(hva, Spte.Address(spte));
                    Assert.Equal(hostWritable && writable, Spte.IsWritable(spte));
                    Assert.Equal(hostWritable && writable && dirty, Spte.IsDirty(spte));
                    Assert.Equal(level > 1, (spte & Spte.PS) != 0);
                    Assert.Equal(Spte.MemTypeWriteBack, spte & NestedPte.MemType);
                }
    }

    [Fact]
    public void SplitChild_KeepsRightsAndState()
    {
        ulong huge = Spte.MakeLeaf(0x7f00_4000_0000, 3, true, true, true);
        ulong child = Spte.MakeSplitChild(huge, 3, 5);
        Assert.Equal(0x7f00_4000_0000 + 5 * 0x200000UL, Spte.Address(child));
        Assert.True(Spte.IsWellFormed(child, 2));
        ulong grandchild = Spte.MakeSplitChild(child, 2, 511);
        Assert.Equal(0x7f00_4000_0000 + 5 * 0x200000UL + 511 * 0x1000UL, Spte.Address(grandchild));
        Assert.True(Spte.IsWellFormed(grandchild, 1));
        Assert.Equal(huge & ~(Spte.AddressMask | Spte.PS), grandchild & ~Spte.AddressMask);
    }

    [Fact]
    public void TablePages_RecordsAndTablesFindEachOther()
    {
        using var allocator = new TablePageAllocator();
        unsafe
        {
            Assert.Equal(TablePage.Size, sizeof(TablePage));
            var pages = new List<nint>();
            for (int i = 0; i < 2000; i++)
            {
                TablePage* page = allocator.Allocate();
                ulong* table = TablePage.TableOf(page);
                Assert.Equal(0UL, (ulong)table & 4095);
                Assert.True(TablePage.Of(table + 511) == page);
                Assert.True(new Span<ulong>(table, 512).IndexOfAnyExcept(0UL) < 0);
                table[7] = 1;
                pages.Add((nint)page);
            }
            Assert.Equal(2000, allocator.Allocated);
            ulong reserved = allocator.ReservedBytes;
            foreach (nint page in pages)
                allocator.Free((TablePage*)page);
            Assert.Equal(0, allocator.Allocated);
            Assert.True(allocator.ReservedBytes < reserved);
            TablePage* again = allocator.Allocate();
            Assert.Equal(0UL, TablePage.TableOf(again)[7]);
            allocator.Free(again);
        }
    }

    /// <summary>
    /// Freeing in bulk: chunks that become empty go back to the host, what is freed in others is zero when it is allocated again, whatever the order
    /// and however many pages survive.
    /// </summary>
    [Theory]
    [InlineData(0, 1)]
    [InlineData(1, 1)]
    [InlineData(5, 3)]
    [InlineData(40, 7)]
    [InlineData(3, 400)]
    public unsafe void TablePages_FreedInBulk(int seed, int keepEvery)
    {
        using var allocator = new TablePageAllocator();
        var random = new Random(seed);
        var pages = new List<nint>();
        for (int i = 0; i < 5 * TablePageAllocator.TablesPerChunk; i++)
        {
            TablePage* page = allocator.Allocate();
            TablePage.TableOf(page)[i % 512] = ulong.MaxValue;
            pages.Add((nint)page);
        }
        ulong reserved = allocator.ReservedBytes;
        var kept = pages.Where((_, i) => keepEvery > 1 && i % keepEvery == 0).ToList();
        var freed = pages.Except(kept).ToArray();
        if (seed % 2 == 1)
            random.Shuffle(freed);
        nint dirty = 0;
        foreach (nint page in freed)
            TablePageAllocator.Note((TablePage*)page, ref dirty);
        while (dirty != 0)
            allocator.FreeNoted(ref dirty);
        Assert.Equal(kept.Count, allocator.Allocated);
        // Chunks were filled one after the other: without survivors all but the reserve are gone, with a survivor in each none is.
        Assert.Equal(keepEvery == 1 ? reserved / 5 : reserved, allocator.ReservedBytes);
        foreach (nint page in kept)
            Assert.True(new Span<ulong>(TablePage.TableOf((TablePage*)page), 512).IndexOf(ulong.MaxValue) >= 0);
        for (int i = 0; i < freed.Length; i++)
        {
            TablePage* again = allocator.Allocate();
            Assert.DoesNotContain((nint)again, kept);
            Assert.True(new Span<ulong>(TablePage.TableOf(again), 512).IndexOfAnyExcept(0UL) < 0);
        }
        Assert.Equal(pages.Count, allocator.Allocated);
        Assert.Equal(reserved, allocator.ReservedBytes);
    }
}

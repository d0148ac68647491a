using Ring3.Mmu.Power;
using System.Runtime.InteropServices;

namespace Ring3.Mmu.Tests;

/// <summary>The Power formats against a processor that plays the hardware.</summary>
public unsafe class PowerMmuTests
{
    private const ulong Page = 1 << 16, Pages = 4096, M2 = 32;

    private sealed class Machine : IDisposable
    {
        public readonly PowerMmu Mmu;
        public readonly PowerProcessor Cpu;
        private readonly void* _memory = NativeMemory.AlignedAlloc((nuint)(Pages * Page), 2 << 20);
        public int Flushes;

        public Machine()
        {
            Cpu = new PowerProcessor(() => Mmu!.Entry.Value);
            Action flush = PowerProcessor.Flush(Cpu);
            Mmu = new PowerMmu(Pages, () => { Flushes++; flush(); });
        }

        public ulong Hva(ulong gfn) => (ulong)_memory + gfn * Page;

        /// <summary>An access of a radix guest; faults as often as needed.</summary>
        public ulong Access(ulong gfn, bool write, int level = 1)
        {
            ulong seen = 0;
            for (int i = 0; i < 4; i++)
            {
                if (Cpu.Access(gfn * Page + 8, write, h => seen = h))
                    return seen;
                Assert.True(Mmu.Fault(gfn, Hva(level == 1 ? gfn : gfn & ~(M2 - 1)), write, level));
            }
            throw new InvalidOperationException("no progress");
        }

        public ulong[] Young(ulong start, ulong end)
        {
            ulong[] bitmap = new ulong[(end - start + 63) / 64];
            if (!Mmu.TestClearYoung(start, end, bitmap))
                Mmu.TestClearYoungLocked(start, end, bitmap);
            return bitmap;
        }

        public ulong[] Dirty()
        {
            ulong[] bitmap = new ulong[Pages / 64];
            Mmu.HarvestDirty(bitmap);
            return bitmap;
        }

        public void Dispose()
        {
            Mmu.Dispose();
            Assert.Equal(0, Mmu.Tables.Allocated);
            NativeMemory.AlignedFree(_memory);
        }
    }

    [Fact]
    public void Entries_HaveTheArchitectedLayout()
    {
        // V, L, RPN, R, C, EAA read/write/execute, most significant byte first.
        ulong leaf = RadixFormat.MakeLeaf(0x7f12_3456_0000, write: true);
        Assert.Equal([0xc0, 0, 0x7f, 0x12, 0x34, 0x56, 0x01, 0x87], new ReadOnlySpan<byte>(&leaf, 8).ToArray());
        ulong table = RadixFormat.MakeTable(0x7f12_3456_7800, level: 2);
        Assert.Equal([0x80, 0, 0x7f, 0x12, 0x34, 0x56, 0x78, 5], new ReadOnlySpan<byte>(&table, 8).ToArray());
        // HR, RTS 0b10101 in two parts, RPDB, RPDS 13; HTABORG and HTABSIZE.
        Assert.Equal(0xc000_7f12_3457_00adUL, PartitionEntry.Radix(0x7f12_3457_0000).Value);
        Assert.Equal(0x0000_7f12_3440_0004UL, PartitionEntry.Hash(0x7f12_3440_0000, 22).Value);
        var hash = new PartitionEntry(0x0000_7f12_3440_0004UL);
        Assert.Equal((false, 0x7f12_3440_0000UL, 22), (hash.IsRadix, hash.Table, hash.SizeField));
        // 13, 9, 9 and 5 bits above a page of 16.
        Assert.Equal(52, 16 + Enumerable.Range(1, 4).Sum(RadixFormat.IndexBits));
        Assert.All(Enumerable.Range(1, 3), l => Assert.Equal(RadixFormat.PagesShift(l) + RadixFormat.IndexBits(l), RadixFormat.PagesShift(l + 1)));
    }

    [Fact]
    public void Radix_MapsWhatTheProcessorTranslates()
    {
        using var m = new Machine();
        foreach (ulong gfn in (ulong[])[0, 1, 31, 32, 1000, Pages - 1])
            Assert.Equal(m.Hva(gfn) + 8, m.Access(gfn, gfn % 2 == 0));
        // A leaf of 2 MiB, then a write to it.
        Assert.Equal(m.Hva(2 * M2 + 5) + 8, m.Access(2 * M2 + 5, false, level: 2));
        Assert.Equal(m.Hva(2 * M2 + 7) + 8, m.Access(2 * M2 + 7, true, level: 2));
        Assert.False(m.Cpu.Access(1UL << 52, false));
        Assert.False(m.Cpu.Access(3 * M2 * Page, false));
    }

    [Fact]
    public void Radix_AgesWithoutLockOrFlush()
    {
        using var m = new Machine();
        foreach (ulong gfn in (ulong[])[3, 40, 70])
            m.Access(gfn, true);
        m.Access(96 + 7, false, level: 2);
        using (m.Mmu.Lock.Write())
            Assert.Equal([1UL << 3 | 1UL << 40, 1UL << 6 | 0xffff_ffff_0000_0000], m.Young(0, 128));
        Assert.Equal(0, m.Flushes);
        Assert.Equal([0UL, 0UL], m.Young(0, 128));
        // The processor has the translation cached: it sets R again only when it walks again.
        m.Access(40, true);
        Assert.Equal([0UL], m.Young(0, 64));
        Assert.Equal([1UL << 3 | 1UL << 40, 1UL << 6], m.Dirty()[..2]);
        m.Access(40, false);
        Assert.Equal([1UL << (40 - 33)], m.Young(33, 90));
    }

    [Fact]
    public void Radix_HarvestsDirtyPagesOnce()
    {
        using var m = new Machine();
        m.Access(5, true);
        m.Access(6, false);
        m.Access(64 + 9, true, level: 2);
        ulong[] dirty = m.Dirty();
        Assert.Equal([1UL << 5, 0xffff_ffffUL], dirty[..2]);
        Assert.All(m.Dirty(), w => Assert.Equal(0UL, w));
        m.Access(5, true);
        Assert.Equal(1UL << 5, m.Dirty()[0]);
    }

    [Fact]
    public void Radix_ZapKeepsDirtyBitsAndFreesTables()
    {
        using var m = new Machine();
        for (ulong gfn = 0; gfn < 200; gfn++)
            m.Access(gfn, gfn % 3 == 0);
        int tables = m.Mmu.Tables.Allocated;
        m.Mmu.ZapRange(10, 150);
        // Tables of 32 pages: 32 to 128 lie inside.
        Assert.Equal(tables - 3, m.Mmu.Tables.Allocated);
        Assert.False(m.Cpu.Access(10 * Page, false));
        Assert.False(m.Cpu.Access(100 * Page, false));
        Assert.True(m.Cpu.Access(9 * Page, false));
        ulong[] dirty = m.Dirty();
        for (ulong gfn = 0; gfn < 200; gfn++)
            Assert.Equal(gfn % 3 == 0, (dirty[gfn / 64] >> (int)(gfn % 64) & 1) != 0);
        Assert.Equal(m.Hva(100) + 8, m.Access(100, true));
    }

    [Fact]
    public void Hash_IsTranslatedAgedAndHarvestedUnderTheLock()
    {
        using var m = new Machine();
        m.Access(7, true);
        m.Mmu.SwitchToHash();
        Assert.False(m.Mmu.Fault(7, m.Hva(7), true));
        ulong va = 0x123_4567_0000, alias = 0x555_0000_0000;
        Assert.False(m.Cpu.Access(va, false));
        Assert.True(m.Mmu.Enter(va, false, 70, m.Hva(70), true));
        Assert.True(m.Mmu.Enter(alias, true, 70, m.Hva(70), false));
        ulong host = 0;
        Assert.True(m.Cpu.Access(alias + 16, false, h => host = h));
        Assert.Equal(m.Hva(70) + 16, host);
        Assert.False(m.Cpu.Access(alias, true));
        Assert.False(m.Mmu.TestClearYoung(0, 128, new ulong[2]));
        Assert.Equal([0UL, 1UL << 6], m.Young(0, 128));
        Assert.Equal([0UL, 0UL], m.Young(0, 128));
        Assert.True(m.Cpu.Access(va, true));
        // The write to the tree before the switch, and the one through the hashed table.
        Assert.Equal([1UL << 7, 1UL << 6], m.Dirty()[..2]);
        Assert.Equal([0UL, 0UL], m.Dirty()[..2]);
        Assert.True(m.Cpu.Access(va, true));
        m.Mmu.ZapRange(64, 128);
        Assert.False(m.Cpu.Access(va, false));
        Assert.Equal([0UL, 1UL << 6], m.Dirty()[..2]);
        m.Mmu.SwitchToRadix();
        Assert.Equal(m.Hva(7) + 8, m.Access(7, false));
    }

    [Fact]
    public void Hash_GroupTakesEightEntries()
    {
        using var m = new Machine();
        m.Mmu.SwitchToHash();
        // The same group for all: the segment number and the page number change together.
        ulong Va(ulong i) => (i << 28) | (i << 16);
        for (ulong i = 0; i < 8; i++)
            Assert.True(m.Mmu.Enter(Va(i), false, i, m.Hva(i), true));
        Assert.False(m.Mmu.Enter(Va(8), false, 8, m.Hva(8), true));
        Assert.True(m.Mmu.Enter(Va(8), true, 8, m.Hva(8), true));
        for (ulong i = 0; i < 9; i++)
        {
            ulong host = 0;
            Assert.True(m.Cpu.Access(Va(i), false, h => host = h));
            Assert.Equal(m.Hva(i), host);
        }
        m.Mmu.ZapRange(3, 4);
        Assert.True(m.Mmu.Enter(Va(8), false, 8, m.Hva(8), true));
    }
}

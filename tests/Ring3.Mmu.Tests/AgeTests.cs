using Ring3.Memory;

namespace Ring3.Mmu.Tests;

public class AgeTests
{
    private const ulong M = 1 << 20;

    [Fact]
    public void TestClearYoung_ReportsAndClears()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x1000, false);
        f.V.Access(0x45000, true);
        ulong[] bitmap = new ulong[4];
        Assert.True(f.Tdp.TestClearYoung(0, 256, bitmap));
        Assert.Equal([2UL, 32UL, 0, 0], bitmap);
        Array.Clear(bitmap);
        f.Tdp.TestClearYoung(0, 256, bitmap);
        Assert.Equal([0UL, 0, 0, 0], bitmap);
        Assert.Equal(0, f.Host.Flushes);
        // Dirty and the mapping survive.
        ulong spte = f.V.Leaf(0x45000, out _);
        Assert.True(Spte.IsPresent(spte) && Spte.IsDirty(spte) && !Spte.IsAccessed(spte));
    }

    [Fact]
    public void TestClearYoung_OffsetAndHugePage()
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 8 * M);
        f.V.Access(2 * M, true);
        ulong[] bitmap = new ulong[2];
        f.Tdp.TestClearYoung(0x1ff, 0x1ff + 66, bitmap);
        Assert.Equal([~1UL, 3UL], bitmap);
    }

    [Fact]
    public void Notifier_AgesByHostAddress()
    {
        using var f = new MmuFixture();
        GuestRam ram = f.AddRam(0, 0, M, 0, 0x1000);
        f.V.Access(0x3000, false);
        ulong hva = ram.Hva + 0x1000 + 0x3000;
        Assert.True(f.Slots.Notifier.TestYoung(hva, hva + 1));
        Assert.False(f.Slots.Notifier.TestYoung(hva + 0x1000, hva + 0x2000));
        Assert.True(f.Slots.Notifier.ClearYoung(hva, hva + 1));
        Assert.False(f.Slots.Notifier.TestYoung(hva, hva + 1));
    }
}

using Ring3.Arch;

namespace Ring3.Memory.Tests;

public unsafe class GuestRamTests
{
    [Fact]
    public void Ram_IsAlignedForTheLargestMapping_AndLazy()
    {
        using var small = new GuestRam(0x12345);
        Assert.Equal(0x13000UL, small.Size);
        Assert.Equal(0UL, small.Hva % Page.Size2M);
        using var large = new GuestRam(64UL << 30);
        Assert.Equal(0UL, large.Hva % Page.Size1G);
        large.Pointer[(63UL << 30) + 5] = 1;
        Assert.Equal(0, large.Pointer[0]);
    }

    [Fact]
    public void Discard_ZeroesWholePagesOnly()
    {
        using var ram = new GuestRam(0x4000);
        new Span<byte>(ram.Pointer, 0x4000).Fill(1);
        ram.Discard(0x800, 0x2000, null);
        Assert.Equal(1, ram.Pointer[0xfff]);
        Assert.Equal(0, ram.Pointer[0x1000]);
        Assert.Equal(0, ram.Pointer[0x1fff]);
        Assert.Equal(1, ram.Pointer[0x2000]);
        ram.Discard(0x3000, ulong.MaxValue, null);
        Assert.Equal(0, ram.Pointer[0x3fff]);
        ram.Discard(0x9000, 0x1000, null);
    }
}

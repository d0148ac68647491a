using Ring3.Host;

namespace Ring3.Xen.Tests;

/// <summary>Bits of words that the guest has placed anywhere, also across a cache line, where no locked host instruction may go.</summary>
public sealed unsafe class GuestBitsTests
{
    [Theory]
    [InlineData(0)]
    [InlineData(57)]
    [InlineData(60)]
    [InlineData(61)]
    [InlineData(63)]
    public void BitsChangeAndTheRestStays(int offset)
    {
        byte* memory = HostMemory.Map(4096);
        try
        {
            ulong at = (ulong)memory + (ulong)offset;
            *(ulong*)at = 0x1122_3344_5566_7788;
            Assert.True(GuestBits.Or64(at, 1UL << 63 | 2UL << 32 | 1, out ulong old));
            Assert.Equal((0x1122_3344_5566_7788UL, 0x9122_3346_5566_7789UL), (old, *(ulong*)at));
            Assert.True(GuestBits.AndNot32(at, 0xf000_000f, out uint old32));
            Assert.Equal((0x5566_7789u, 0x9122_3346_0566_7780UL), (old32, *(ulong*)at));
            Assert.True(GuestBits.Or32(at, 0xf000_0000, out old32));
            Assert.Equal((0x0566_7780u, 0x9122_3346_f566_7780UL), (old32, *(ulong*)at));
        }
        finally
        {
            HostMemory.Unmap(memory, 4096);
        }
    }

    [Fact]
    public void TwoThreadsLoseNoBit()
    {
        byte* memory = HostMemory.Map(4096);
        try
        {
            ulong at = (ulong)memory + 62;
            int wrong = 0;
            void Toggle(uint bit)
            {
                for (int round = 0; round < 200_000; round++)
                    if (!GuestBits.Or32(at, bit, out uint old) || (old & bit) != 0 || !GuestBits.AndNot32(at, bit, out old) || (old & bit) == 0)
                        Interlocked.Increment(ref wrong);
            }
            Thread other = new(() => Toggle(1u << 15));
            other.Start();
            Toggle(1u << 14);
            other.Join();
            Assert.Equal((0, 0u), (wrong, *(uint*)at));
        }
        finally
        {
            HostMemory.Unmap(memory, 4096);
        }
    }

    [Fact]
    public void ALockedAccessOfTheHostNeverCrossesALine()
    {
        byte* memory = HostMemory.Map(4096);
        try
        {
            Assert.False(UserCopy.CompareExchange((ulong)memory + 61, 1u, 0u, out _));
            Assert.False(UserCopy.CompareExchange((ulong)memory + 57, 1UL, 0UL, out _));
            Assert.True(UserCopy.CompareExchange((ulong)memory + 60, 1u, 0u, out _));
            Assert.True(UserCopy.CompareExchange((ulong)memory + 120, 1UL, 0UL, out _));
        }
        finally
        {
            HostMemory.Unmap(memory, 4096);
        }
    }
}

using System.Runtime.CompilerServices;

namespace Ring3.Host.Tests;

/// <summary>Accessors copy what they are told and report memory that is not there, whatever is wrong with it.</summary>
public unsafe class UserCopyTests : IDisposable
{
    private const nuint Page = 4096;
    private readonly byte* _map = HostMemory.Map(4 * Page);

    public void Dispose() => HostMemory.Unmap(_map, 4 * Page);

    [Fact]
    public void Copy_EveryLength_CopiesExactlyThatMuch()
    {
        Span<byte> source = new byte[1100], target = new byte[1200];
        for (int i = 0; i < source.Length; i++)
            source[i] = (byte)(i * 7 + 1);
        foreach (int n in Enumerable.Range(0, 80).Concat([255, 256, 257, 511, 512, 513, 1000]))
        {
            target.Fill(0xee);
            source[..n].CopyTo(new Span<byte>(_map + 5, n));
            fixed (byte* t = target)
                Assert.True(UserCopy.TryRead((ulong)_map + 5, t + 3, (nuint)n));
            Assert.True(target.Slice(3, n).SequenceEqual(source[..n]), $"{n}");
            Assert.Equal(-1, target[..3].IndexOfAnyExcept((byte)0xee));
            Assert.Equal(-1, target[(3 + n)..].IndexOfAnyExcept((byte)0xee));
        }
    }

    [Theory]
    [InlineData(1)]
    [InlineData(8)]
    [InlineData(16)]
    [InlineData(64)]
    [InlineData(5000)]
    public void PageWithoutAccess_IsReported(int n)
    {
        byte* buffer = stackalloc byte[5000];
        Assert.Equal(0, Libc.mprotect(_map + Page, Page, Libc.PROT_NONE));
        ulong edge = (ulong)_map + Page - (ulong)Math.Min(n, 4096) + 1;
        Assert.False(UserCopy.TryRead(edge, buffer, (nuint)n));
        Assert.False(UserCopy.TryWrite(edge, buffer, (nuint)n));
        Assert.False(UserCopy.Fill(edge, 1, (nuint)n));
        Assert.Equal(0, Libc.mprotect(_map + Page, Page, Libc.PROT_READ));
        Assert.True(UserCopy.TryRead(edge, buffer, (nuint)Math.Min(n, 4096)));
        Assert.False(UserCopy.TryWrite(edge, buffer, (nuint)n));
    }

    [Fact]
    public void NonCanonicalAndKernelAddresses_AreReported()
    {
        ulong v = 0;
        foreach (ulong bad in new ulong[] { 0, 0x1000, 0x8000_0000_0000, 0xdead_beef_dead_beef, 0xffff_8000_0000_0000, ulong.MaxValue })
        {
            Assert.False(UserCopy.TryRead(bad, &v, 8), $"{bad:x}");
            Assert.False(UserCopy.TryWrite(bad, &v, 8));
            Assert.False(UserCopy.TryRead8(bad, out _));
            Assert.False(UserCopy.TryWrite4(bad, 1));
            Assert.False(UserCopy.CompareExchange(bad, 1UL, 2UL, out _));
            Assert.False(UserCopy.CompareExchange(bad & ~15UL, (UInt128)1, 2, out _));
            Assert.False(UserCopy.ProbeWrite(bad));
            Assert.False(UserCopy.ProbeRead(bad));
        }
    }

    [Fact]
    public void FileThatShrank_IsReported_AndWorksAgain()
    {
        byte* name = stackalloc byte[] { (byte)'t', 0 };
        int fd = Libc.memfd_create(name, 1);
        Assert.Equal(0, Libc.ftruncate(fd, 8192));
        byte* p = HostMemory.MapShared(fd, 8192);
        Assert.True(UserCopy.TryWrite8((ulong)p + 4096, 77));
        Assert.Equal(0, Libc.ftruncate(fd, 4096));
        Assert.False(UserCopy.TryRead8((ulong)p + 4096, out _));
        Assert.False(UserCopy.ProbeWrite((ulong)p + 4096));
        Assert.Equal(0, Libc.ftruncate(fd, 8192));
        Assert.True(UserCopy.TryRead8((ulong)p + 4096, out ulong v));
        Assert.Equal(0UL, v);
        HostMemory.Unmap(p, 8192);
        _ = Libc.close(fd);
    }

    [Fact]
    public void TypedForms_ReadWriteAndExchange()
    {
        ulong a = (ulong)_map;
        Assert.True(UserCopy.TryWrite8(a, 0x1122334455667788));
        Assert.True(UserCopy.TryRead1(a, out byte b) && b == 0x88);
        Assert.True(UserCopy.TryRead2(a, out ushort s) && s == 0x7788);
        Assert.True(UserCopy.TryRead4(a, out uint i) && i == 0x55667788);
        Assert.True(UserCopy.TryWrite1(a, 1) && UserCopy.TryWrite2(a + 2, 2) && UserCopy.TryWrite4(a + 4, 3));
        Assert.True(UserCopy.TryRead8(a, out ulong l) && l == 0x3_0002_7701);
        Assert.True(UserCopy.CompareExchange(a, 9UL, 8UL, out ulong seen) && seen == l);
        Assert.True(UserCopy.CompareExchange(a, 9UL, l, out seen) && seen == l && *(ulong*)_map == 9);
        Assert.True(UserCopy.CompareExchange(a, 7u, 9u, out uint seen4) && seen4 == 9 && *(ulong*)_map == 7);
        Assert.True(UserCopy.CompareExchange(a, (byte)6, (byte)7, out byte seen1) && seen1 == 7 && *(ulong*)_map == 6);
        *(UInt128*)_map = new UInt128(1, 2);
        Assert.True(UserCopy.CompareExchange(a, new UInt128(3, 4), new UInt128(1, 2), out UInt128 wide) && wide == new UInt128(1, 2)
            && *(UInt128*)_map == new UInt128(3, 4));
        Assert.True(UserCopy.ProbeWrite(a) && *(UInt128*)_map == new UInt128(3, 4));
    }

    [Fact]
    public void RuntimesOwnFaults_StillBecomeExceptions()
    {
        Assert.False(UserCopy.ProbeRead(0));
        Assert.Throws<NullReferenceException>(() => LengthOf(null!));
        Assert.Throws<NullReferenceException>(() => LengthOf(null!));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static int LengthOf(string s) => s.Length;

    [Fact]
    public void OtherThreads_FaultAtOnce()
    {
        Assert.Equal(0, Libc.mprotect(_map, Page, Libc.PROT_NONE));
        Parallel.For(0, 4, _ =>
        {
            for (int i = 0; i < 2000; i++)
                Assert.False(UserCopy.TryRead8((ulong)_map + 8, out ulong _));
        });
    }
}

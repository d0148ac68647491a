using System.Runtime.InteropServices;

// SAFETY: buffers are fixed, or allocated here, and longer than what is asked of them.
namespace Ring3.Host.Tests;

/// <summary>Disks past the page cache, with blocks of both sizes.</summary>
public sealed unsafe class DirectDiskTests : IDisposable
{
    private const int Blocks = 64, Block = 4096, Sector = 512;
    private readonly string _path = Path.Combine(Path.GetTempPath(), $"ring3-direct-{Guid.NewGuid():N}");
    private readonly byte[] _content = new byte[Blocks * Block];

    public DirectDiskTests()
    {
        new Random(1).NextBytes(_content);
        File.WriteAllBytes(_path, _content);
    }

    public void Dispose() => File.Delete(_path);

    private DiskFile Open(bool largeBlocks)
    {
        Assert.Equal(0, DiskFile.TryOpen(_path, false, out DiskFile? file, direct: true));
        Assert.SkipUnless(file!.IsDirect, "the file system of the temporary folder has no direct access");
        Assert.Equal(file.IsDirect, DiskFile.HasDirect(_path));
        if (largeBlocks)
            Assert.True(file.TryGrowBlock());
        return file;
    }

    [Theory]
    [InlineData(false), InlineData(true)]
    public void AnyPlaceLengthAndMemory_IsReadAndWritten(bool largeBlocks)
    {
        using DiskFile file = Open(largeBlocks);
        var random = new Random(2);
        byte* memory = (byte*)NativeMemory.AlignedAlloc(Blocks * Block + Block, Block);
        try
        {
            for (int i = 0; i < 300; i++)
            {
                bool whole = i % 3 == 0;
                int unit = whole ? Block : Sector, offset = random.Next(_content.Length / unit) * unit;
                int length = Math.Min(random.Next(1, 40) * unit, _content.Length - offset);
                byte* buffer = memory + (whole ? 0 : random.Next(64));
                if (random.Next(2) == 0)
                {
                    random.NextBytes(_content.AsSpan(offset, length));
                    _content.AsSpan(offset, length).CopyTo(new Span<byte>(buffer, length));
                    Assert.Equal(0, file.Write(offset, buffer, length));
                }
                else
                {
                    new Span<byte>(buffer, length).Clear();
                    Assert.Equal(length, file.Read(offset, buffer, length));
                    Assert.True(_content.AsSpan(offset, length).SequenceEqual(new Span<byte>(buffer, length)));
                }
            }
            Assert.Equal(Sector, file.Read(_content.Length - Sector, memory + 1, 2 * Sector));
            Assert.True(file.IsDirect);
        }
        finally { NativeMemory.AlignedFree(memory); }
        file.Dispose();
        Assert.Equal(_content, File.ReadAllBytes(_path));
    }

    /// <summary>Queues write sectors of the same blocks at the same time.</summary>
    [Fact]
    public void NeighboursInABlock_DoNotUndoEachOther()
    {
        using (DiskFile file = Open(largeBlocks: true))
        {
            Parallel.For(0, Block / Sector, sector =>
            {
                byte* buffer = (byte*)NativeMemory.AlignedAlloc(Sector, Block);
                new Span<byte>(buffer, Sector).Fill((byte)sector);
                for (int i = 0; i < Blocks; i++)
                    Assert.Equal(0, file.Write((long)i * Block + sector * Sector, buffer, Sector));
                NativeMemory.AlignedFree(buffer);
            });
        }
        byte[] found = File.ReadAllBytes(_path);
        for (int i = 0; i < found.Length; i++)
            Assert.Equal((byte)(i % Block / Sector), found[i]);
    }

    [Fact]
    public void ADiskThatIsNoLargeBlocks_FallsBackToThePageCache()
    {
        File.WriteAllBytes(_path, _content[..(Block + Sector)]);
        using DiskFile file = Open(largeBlocks: true);
        Assert.False(file.IsDirect);
        Assert.False(file.TryGrowBlock());
        fixed (byte* p = new byte[Sector])
            Assert.Equal(Sector, file.Read(Block, p, Sector));
    }

    [Fact]
    public void WhatIsAskedForWithoutIt_IsNotDirect()
    {
        Assert.Equal(0, DiskFile.TryOpen(_path, true, out DiskFile? file));
        Assert.False(file!.IsDirect);
        Assert.True(file.Takes(3, [new HostPiece(5, 7)]));
        file.Dispose();
    }
}

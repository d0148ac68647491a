using System.Buffers.Binary;
using Ring3.Host;

namespace Ring3.Virtio.Tests;

/// <summary>Requests to a disk in a file.</summary>
public sealed class BlockDeviceTests : IDisposable
{
    private const ulong Header = 0x7_0000, Data = 0x8_0000, StatusAt = 0x7_8000;
    private const int Sectors = 2048;
    private const byte Ok = 0, IoError = 1, Unsupported = 2;
    private readonly string _path = Path.Combine(Path.GetTempPath(), $"ring3-disk-{Guid.NewGuid():N}");
    private DiskFile? _file;
    private readonly byte[] _content = new byte[Sectors * 512];

    public BlockDeviceTests()
    {
        for (int i = 0; i < _content.Length; i++)
            _content[i] = (byte)(i * 31 + i / 512);
        File.WriteAllBytes(_path, _content);
    }

    public void Dispose() => File.Delete(_path);

    private Bench Open(bool readOnly = false, string serial = "a serial")
    {
        Assert.Equal(0, DiskFile.TryOpen(_path, readOnly, out _file));
        return new Bench(m => new BlockDevice(m, _file!, readOnly, serial, 2, "disk0"));
    }

    /// <summary>Through the descriptor that has the lock.</summary>
    private unsafe byte[] OnDisk()
    {
        var bytes = new byte[_content.Length];
        fixed (byte* p = bytes)
            Assert.Equal(bytes.Length, _file!.Read(0, p, bytes.Length));
        return bytes;
    }

    private static Driver Start(Bench bench) => Driver.Create(bench, 64, VirtioFeature.Version1 | VirtioFeature.PackedRing);

    private static (byte Status, uint Written) Do(Bench bench, Driver driver, uint type, ulong sector, params ReadOnlySpan<Piece> pieces)
    {
        bench.Write(Header, type);
        bench.Write(Header + 4, 0u);
        bench.Write(Header + 8, sector);
        bench.Write(StatusAt, (byte)0xee);
        driver.Offer(false, [new Piece(Header, 16, false), .. pieces, new Piece(StatusAt, 1, true)]);
        bench.Serve();
        (ushort _, uint written) = driver.Take() ?? throw new InvalidOperationException(string.Join('\n', bench.Messages));
        return (bench.Read<byte>(StatusAt), written);
    }

    [Fact]
    public void Config_DescribesTheDisk()
    {
        using Bench bench = Open();
        Assert.Equal((ulong)Sectors, bench.Get(VirtioTransport.DeviceAt, 8));
        Assert.Equal(254u, bench.Get(VirtioTransport.DeviceAt + 12, 4));
        Assert.Equal(512u, bench.Get(VirtioTransport.DeviceAt + 20, 4));
        Assert.Equal(2u, bench.Get(VirtioTransport.DeviceAt + 34, 2));
        Assert.Equal(2u, bench.Get(18, 2));
        ulong offered = bench.Negotiate(VirtioFeature.Version1);
        Assert.Equal(BlockDevice.DiscardCommand | BlockDevice.WriteZeroesCommand, offered & (BlockDevice.ReadOnly | BlockDevice.DiscardCommand
            | BlockDevice.WriteZeroesCommand));
    }

    [Fact]
    public void Reads_ScatterAndWrites_Gather()
    {
        using Bench bench = Open();
        Driver driver = Start(bench);
        Assert.Equal((Ok, 1537u), Do(bench, driver, 0, 7, new Piece(Data, 100, true), new Piece(Data + 0x2000, 1436, true)));
        var got = new byte[1536];
        Assert.True(bench.Memory.Read(Data, got.AsSpan(0, 100)) && bench.Memory.Read(Data + 0x2000, got.AsSpan(100)));
        Assert.Equal(_content.AsSpan(7 * 512, 1536).ToArray(), got);

        // Larger than the buffer between.
        for (int i = 0; i < got.Length; i++)
            got[i] = (byte)(i * 7);
        Assert.True(bench.Memory.Write(Data, got));
        Assert.Equal((Ok, 1u), Do(bench, driver, 1, 2045, new Piece(Data, 1000, false), new Piece(Data + 1000, 536, false)));
        Assert.Equal((Ok, 1u), Do(bench, driver, 4, 0));
        Assert.Equal(got, OnDisk()[^1536..]);
        Assert.Equal((Ok, 1u), Do(bench, driver, 1, 100, new Piece(0, 0x7_0000, false)));
        Assert.Equal((Ok, 0x7_0001u), Do(bench, driver, 0, 100, new Piece(0x8_0000, 0x7_0000, true)));
    }

    [Theory]
    [InlineData(Sectors, 512u)]
    [InlineData(Sectors - 1, 1024u)]
    [InlineData(0, 511u)]
    [InlineData(-1, 512u)]
    [InlineData(long.MaxValue, 1024u)]
    public void Requests_OutsideTheDisk_AreErrors(long sector, uint bytes)
    {
        using Bench bench = Open();
        Driver driver = Start(bench);
        Assert.Equal((IoError, 1u), Do(bench, driver, 0, (ulong)sector, new Piece(Data, bytes, true)));
        Assert.Equal((IoError, 1u), Do(bench, driver, 1, (ulong)sector, new Piece(Data, bytes, false)));
        Assert.Equal(_content, OnDisk());
    }

    [Fact]
    public void TheId_IsTheSerial()
    {
        using Bench bench = Open(serial: "0123456789abcdefghijKLM");
        Driver driver = Start(bench);
        Assert.Equal((Ok, 21u), Do(bench, driver, 8, 0, new Piece(Data, 20, true)));
        Assert.Equal((byte)'j', bench.Read<byte>(Data + 19));
        Assert.Equal((Unsupported, 1u), Do(bench, driver, 99, 0, new Piece(Data, 20, true)));
    }

    private static void Range(Bench bench, ulong at, ulong sector, uint count, uint flags)
    {
        bench.Write(at, sector);
        bench.Write(at + 8, count);
        bench.Write(at + 12, flags);
    }

    [Fact]
    public void DiscardedAndZeroedRanges_ReadAsZero()
    {
        using Bench bench = Open();
        Driver driver = Start(bench);
        Range(bench, Data, 8, 16, 0);
        Range(bench, Data + 16, 80, 8, 0);
        Assert.Equal((Ok, 1u), Do(bench, driver, 11, 0, new Piece(Data, 32, false)));
        Range(bench, Data, 200, 3, 1);
        Assert.Equal((Ok, 1u), Do(bench, driver, 13, 0, new Piece(Data, 16, false)));
        Range(bench, Data, 300, 5, 0);
        Assert.Equal((Ok, 1u), Do(bench, driver, 13, 0, new Piece(Data, 16, false)));
        foreach ((int sector, int count) in new[] { (8, 16), (80, 8), (200, 3), (300, 5) })
            _content.AsSpan(sector * 512, count * 512).Clear();
        Assert.Equal(_content, OnDisk());

        Range(bench, Data, 8, 16, 1);
        Assert.Equal((Unsupported, 1u), Do(bench, driver, 11, 0, new Piece(Data, 16, false)));
        Range(bench, Data, Sectors, 1, 0);
        Assert.Equal((IoError, 1u), Do(bench, driver, 11, 0, new Piece(Data, 16, false)));
        Assert.Equal((IoError, 1u), Do(bench, driver, 13, 0, new Piece(Data, 15, false)));
        Assert.Equal(_content, OnDisk());
    }

    [Fact]
    public void AReadOnlyDisk_IsNotWritten()
    {
        using Bench bench = Open(readOnly: true);
        Driver driver = Start(bench);
        Assert.Equal(BlockDevice.ReadOnly, bench.Transport.OfferedFeatures & (BlockDevice.ReadOnly | BlockDevice.DiscardCommand));
        Assert.Equal((IoError, 1u), Do(bench, driver, 1, 0, new Piece(Data, 512, false)));
        Range(bench, Data, 0, 8, 0);
        Assert.Equal((IoError, 1u), Do(bench, driver, 11, 0, new Piece(Data, 16, false)));
        Assert.Equal((IoError, 1u), Do(bench, driver, 13, 0, new Piece(Data, 16, false)));
        Assert.Equal((Ok, 513u), Do(bench, driver, 0, 0, new Piece(Data, 512, true)));
        Assert.Equal(_content, OnDisk());
    }

    [Fact]
    public void AFileThatShrinks_IsAnError()
    {
        using Bench bench = Open();
        Driver driver = Start(bench);
        // Another program, which asks for no lock.
        using (var truncate = System.Diagnostics.Process.Start("truncate", ["-s", "1024", _path]))
            truncate.WaitForExit();
        Assert.Equal((IoError, 1u), Do(bench, driver, 0, 2, new Piece(Data, 512, true)));
        Assert.Equal((Ok, 513u), Do(bench, driver, 0, 1, new Piece(Data, 512, true)));
    }

    [Fact]
    public void ARequestWithoutHeaderOrStatus_StopsTheDevice()
    {
        foreach (Piece[] pieces in new Piece[][] { [new(Header, 15, false), new(StatusAt, 1, true)], [new(Header, 16, false)], [new(StatusAt, 512, true)] })
        {
            using Bench bench = Open(readOnly: true);
            Start(bench).Offer(false, pieces);
            bench.Serve();
            Assert.NotEqual(0, bench.Status & VirtioStatus.NeedsReset);
        }
    }

    [Fact]
    public void ADisk_IsLockedAgainstWriters()
    {
        const int EAGAIN = 11, ENOENT = 2, ENOTBLK = 15;
        Assert.Equal(0, DiskFile.TryOpen(_path, true, out DiskFile? one));
        Assert.Equal(0, DiskFile.TryOpen(_path, true, out DiskFile? two));
        Assert.Equal(-EAGAIN, DiskFile.TryOpen(_path, false, out _));
        one!.Dispose();
        two!.Dispose();
        Assert.Equal(0, DiskFile.TryOpen(_path, false, out one));
        Assert.Equal(-EAGAIN, DiskFile.TryOpen(_path, true, out _));
        one!.Dispose();
        Assert.Equal(-ENOENT, DiskFile.TryOpen(_path + "x", true, out _));
        Assert.Equal(-ENOTBLK, DiskFile.TryOpen("/dev/null", true, out _));
    }

    [Fact]
    public void Requests_AllocateNothing()
    {
        using Bench bench = Open();
        Driver driver = Start(bench);
        // The first request of a kind makes what the thread keeps.
        Do(bench, driver, 0, 0, new Piece(Data, 4096, true));
        Do(bench, driver, 1, 0, new Piece(Data, 4096, false));
        bool stop = false;
        long[] allocated = new long[20];
        for (int i = 0; i < allocated.Length; i++)
        {
            Span<byte> header = stackalloc byte[16];
            BinaryPrimitives.WriteUInt32LittleEndian(header, 1);
            Assert.True(bench.Memory.Write(Header, header));
            driver.Offer(false, new Piece(Header, 16, false), new Piece(Data, 4096, false), new Piece(StatusAt, 1, true));
            long before = GC.GetAllocatedBytesForCurrentThread();
            while (bench.Transport.TryServe(0, ref stop))
            {
            }
            allocated[i] = GC.GetAllocatedBytesForCurrentThread() - before;
            Assert.Equal(1u, driver.Take()?.Written);
        }
        Assert.All(allocated, bytes => Assert.Equal(0, bytes));
    }
}

using System.Buffers.Binary;
using System.Text;

namespace Ring3.Vmm.Tests.Devices;

public class FwCfgTests
{
    private readonly FakeMemory _memory = new(0x4000);
    private readonly FwCfg _cfg;

    public FwCfgTests() => _cfg = new FwCfg(_memory);

    private byte[] Get(ushort key, int bytes)
    {
        _cfg.Selector.Out(0, 2, key);
        return [.. Enumerable.Range(0, bytes).Select(_ => _cfg.Selector.In8(1))];
    }

    private uint RunDma(uint control, uint length, ulong address, ulong at = 0x100)
    {
        BinaryPrimitives.WriteUInt32BigEndian(_memory.Bytes.AsSpan((int)at), control);
        BinaryPrimitives.WriteUInt32BigEndian(_memory.Bytes.AsSpan((int)at + 4), length);
        BinaryPrimitives.WriteUInt64BigEndian(_memory.Bytes.AsSpan((int)at + 8), address);
        _cfg.Dma.Out(4, 4, BinaryPrimitives.ReverseEndianness((uint)at));
        return BinaryPrimitives.ReadUInt32BigEndian(_memory.Bytes.AsSpan((int)at));
    }

    [Fact]
    public void Signature_AndFeatures()
    {
        Assert.Equal("QEMU"u8.ToArray(), Get(FwCfg.KeySignature, 4));
        Assert.Equal([3, 0, 0, 0, 0], Get(FwCfg.KeyId, 5));
        Assert.Equal([0, 0], Get(0x1234, 2));
        Assert.Equal("QEMU CFG"u8.ToArray(), Enumerable.Range(0, 8).Select(i => _cfg.Dma.In8((ulong)i)));
        Assert.Equal(0x554d_4551u, _cfg.Dma.In(0, 4));
    }

    [Fact]
    public void Directory_IsSortedBigEndian()
    {
        ushort b = _cfg.AddFile("etc/b", "bb"u8), a = _cfg.AddFile("etc/a", "a"u8);
        byte[] directory = Get(FwCfg.KeyFileDirectory, 4 + 128);
        Assert.Equal(2, BinaryPrimitives.ReadInt32BigEndian(directory));
        Assert.Equal((1, a, "etc/a"), Entry(directory, 0));
        Assert.Equal((2, b, "etc/b"), Entry(directory, 1));
        Assert.Equal("bb"u8.ToArray(), Get(b, 2));
        Assert.Throws<ArgumentException>(() => _cfg.AddFile("etc/a", []));
        Assert.Throws<ArgumentException>(() => _cfg.AddFile(new string('x', 56), []));
    }

    private static (int, ushort, string) Entry(byte[] directory, int i)
    {
        ReadOnlySpan<byte> e = directory.AsSpan(4 + 64 * i, 64);
        return (BinaryPrimitives.ReadInt32BigEndian(e), BinaryPrimitives.ReadUInt16BigEndian(e[4..]), Encoding.ASCII.GetString(e[8..]).TrimEnd('\0'));
    }

    [Fact]
    public void Dma_ReadsSkipsAndPadsWithZero()
    {
        ushort key = _cfg.AddFile("opt/test", "0123456789"u8);
        Array.Fill(_memory.Bytes, (byte)0xee, 0x200, 32);
        Assert.Equal(0u, RunDma((uint)key << 16 | 8 | 2, 4, 0x200));
        Assert.Equal("0123"u8.ToArray(), _memory.Bytes[0x200..0x204]);
        Assert.Equal(0u, RunDma(4, 2, 0));
        Assert.Equal(0u, RunDma(2, 8, 0x210));
        Assert.Equal("6789\0\0\0\0"u8.ToArray(), _memory.Bytes[0x210..0x218]);
        Assert.Equal(0xee, _memory.Bytes[0x218]);
    }

    [Fact]
    public void Dma_ErrorsAreReported()
    {
        ushort key = _cfg.AddFile("opt/test", "0123"u8);
        Assert.Equal(1u, RunDma((uint)key << 16 | 8 | 2, 4, 0x10_0000));
        Assert.Equal(1u, RunDma((uint)key << 16 | 8 | 16, 4, 0x200));
        Assert.Equal(1u, RunDma(2 | 4, 4, 0x200));
        Assert.Equal(1u, RunDma((uint)key << 16 | 8 | 2, 0xffff_ffff, 0x200));
        _cfg.Dma.Out(4, 4, 0xffff_ffff); // the descriptor itself is not in memory: nothing happens
        Assert.Equal(0u, RunDma((uint)key << 16 | 8 | 2, 4, 0x200));
    }

    [Fact]
    public void Dma_WritesWritableFiles()
    {
        int written = 0;
        ushort key = _cfg.AddFile("opt/rw", new byte[8], () => written++);
        "hello"u8.CopyTo(_memory.Bytes.AsSpan(0x300));
        Assert.Equal(0u, RunDma((uint)key << 16 | 8 | 16, 5, 0x300));
        Assert.Equal(1, written);
        Assert.Equal("hello\0\0\0"u8.ToArray(), _cfg.ReadFile("opt/rw"));
        Assert.Equal(1u, RunDma(16, 4, 0x300));
        Assert.Null(_cfg.ReadFile("nobody"));
    }
}

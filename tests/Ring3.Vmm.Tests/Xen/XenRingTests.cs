using System.Buffers.Binary;
using System.Text;
using Ring3.Host;

// SAFETY: the page is mapped as long as the test.
namespace Ring3.Vmm.Tests.Xen;

public sealed unsafe class XenRingTests : IDisposable
{
    private readonly byte* _page = HostMemory.Map(4096);

    public void Dispose() => HostMemory.Unmap(_page, 4096);

    private ref uint Index(int ringBytes, int i) => ref *(uint*)(_page + ringBytes + 4 * i);

    private sealed class Collect : ISerialSink
    {
        public readonly StringBuilder Text = new();
        public void Transmit(byte value) => Text.Append((char)value);
    }

    [Fact]
    public void Console_OutputAndInput_WrapAround()
    {
        var sink = new Collect();
        var console = new XenConsole(_page) { Sink = sink };
        Assert.False(console.Drain());
        // The guest's indices run freely; the ring has 2048 bytes.
        (Index(3072, 2), Index(3072, 3)) = (uint.MaxValue - 1, 1);
        (_page[1024 + 2046], _page[1024 + 2047], _page[1024]) = ((byte)'x', (byte)'e', (byte)'n');
        Assert.True(console.Drain());
        Assert.Equal("xen", sink.Text.ToString());
        Assert.Equal(1u, Index(3072, 2));
        Assert.Equal(1024, console.Receive(new byte[2000]));
        Assert.Equal(0, console.Receive(new byte[1]));
        Index(3072, 0) = 10;
        Assert.Equal(10, console.Receive(new byte[11]));
        // Nonsense indices take at most one ring.
        (Index(3072, 2), Index(3072, 3), Index(3072, 0)) = (5, 0xffff_0000, 0x7000_0000);
        Assert.True(console.Drain());
        Assert.Equal(0, console.Receive(new byte[1]));
    }

    private (uint Type, string Text) Ask(XenStore store, uint type, params string[] strings)
    {
        byte[] payload = Encoding.ASCII.GetBytes(string.Concat(strings));
        var message = new byte[16 + payload.Length];
        BinaryPrimitives.WriteUInt32LittleEndian(message, type);
        BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(4), 7);
        BinaryPrimitives.WriteUInt32LittleEndian(message.AsSpan(12), (uint)payload.Length);
        payload.CopyTo(message, 16);
        foreach (byte b in message)
            _page[Index(2048, 1)++ & 1023] = b;
        Assert.True(store.Serve());
        return Next();
    }

    private (uint Type, string Text) Next()
    {
        uint at = Index(2048, 2);
        byte Byte() => _page[1024 + (at++ & 1023)];
        uint Word() => (uint)(Byte() | Byte() << 8 | Byte() << 16 | Byte() << 24);
        uint type = Word();
        _ = Word();
        _ = Word();
        uint length = Word();
        var text = new StringBuilder();
        for (uint i = 0; i < length; i++)
            text.Append((char)Byte());
        Index(2048, 2) = at;
        return (type, text.ToString());
    }

    [Fact]
    public void Store_ReadsWritesWatchesAndLists()
    {
        const uint Directory = 1, Read = 2, Watch = 4, Start = 6, Write = 11, Rm = 13, Event = 15, Error = 16;
        var store = new XenStore(_page, 2, 1 << 29);
        Assert.Equal((Read, "online"), Ask(store, Read, "cpu/1/availability\0"));
        Assert.Equal((Error, "ENOENT\0"), Ask(store, Read, "cpu/2/availability\0"));
        Assert.Equal((Directory, "0\01\0"), Ask(store, Directory, "/local/domain/1/cpu\0"));
        Assert.Equal((Watch, "OK\0"), Ask(store, Watch, "data\0", "t1\0"));
        Assert.Equal((Event, "data\0t1\0"), Next());
        Assert.Equal((Write, "OK\0"), Ask(store, Write, "data/a\0", "42"));
        Assert.Equal((Event, "data/a\0t1\0"), Next());
        Assert.Equal((Read, "42"), Ask(store, Read, "/local/domain/1/data/a\0"));
        Assert.Equal((Start, "1\0"), Ask(store, Start, "\0"));
        Assert.Equal((Rm, "OK\0"), Ask(store, Rm, "data\0"));
        Next();
        Assert.Equal((Error, "ENOENT\0"), Ask(store, Read, "data/a\0"));
        Assert.Equal((Error, "ENOSYS\0"), Ask(store, 99, "x\0"));
    }
}

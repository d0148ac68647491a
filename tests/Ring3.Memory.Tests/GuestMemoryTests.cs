using Ring3.Abi;

namespace Ring3.Memory.Tests;

public unsafe class GuestMemoryTests : IDisposable, ICodeWriteSink
{
    private readonly MemorySlots _slots = new();
    private readonly GuestMemory _memory;
    private readonly GuestRam _ram = new(0x10000);
    private readonly List<(nint Hva, nuint Length)> _code = [];

    /// <summary>Slots: 0 = [0, 0x4000) logged, 1 = [0x4000, 0x8000) elsewhere on the host, 2 = [0x8000, 0x9000) read-only; nothing above.</summary>
    public GuestMemoryTests()
    {
        _memory = new GuestMemory(_slots);
        _slots.SetRegion(0, KvmApi.KVM_MEM_LOG_DIRTY_PAGES, 0, 0x4000, _ram.Hva + 0x8000);
        _slots.SetRegion(1, 0, 0x4000, 0x4000, _ram.Hva);
        _slots.SetRegion(2, KvmApi.KVM_MEM_READONLY, 0x8000, 0x1000, _ram.Hva + 0x4000);
        _slots.CodeWriteSink = this;
    }

    void ICodeWriteSink.CodeWritten(nint hva, nuint length) => _code.Add((hva, length));

    [Fact]
    public void ReadAndWrite_CrossPagesAndSlots()
    {
        byte[] data = [.. Enumerable.Range(0, 0x3000).Select(i => (byte)(i * 7))];
        Assert.True(_memory.Write(0x2ff0, data));
        byte[] back = new byte[data.Length];
        Assert.True(_memory.Read(0x2ff0, back));
        Assert.Equal(data, back);
        Assert.Equal(data[0x1010], _ram.Pointer[0]);
        Assert.Equal(0b1100UL, _slots.Find(0)!.DirtyBitmap!.Word(0));
        Assert.Equal([((nint)_ram.Hva + 0xaff0, 0x1010), ((nint)_ram.Hva, 0x1ff0)], _code);
    }

    [Fact]
    public void Access_StopsAtHolesAndReadOnlySlots()
    {
        Assert.False(_memory.Write(0x7fff, new byte[2]));
        Assert.True(_memory.Read(0x7fff, new byte[2]));
        Assert.False(_memory.Read(0x8fff, new byte[2]));
        Assert.False(_memory.TryWrite(0x8000, 1));
        Assert.False(_memory.TryRead(0x9000, out int _));
        Assert.False(_memory.TryRead(0, out int _, asId: 1));
    }

    [Fact]
    public void CompareExchange_WorksInPlaceAndMarksDirty()
    {
        Assert.True(_memory.TryWrite(0x1008, 5UL));
        _slots.Find(0)!.DirtyBitmap!.Take(0);
        Assert.True(_memory.CompareExchange(0x1008, 9UL, 4UL, out ulong seen));
        Assert.Equal(5UL, seen);
        Assert.True(_memory.CompareExchange(0x1008, 9UL, 5UL, out seen));
        Assert.True(_memory.TryRead(0x1008, out ulong now));
        Assert.Equal((5UL, 9UL), (seen, now));
        Assert.Equal(2UL, _slots.Find(0)!.DirtyBitmap!.Word(0));
        Assert.True(_memory.CompareExchange(0x1008, (byte)1, (byte)9, out byte _));
        Assert.True(_memory.CompareExchange(0x100c, 3u, 0u, out uint _));
        Assert.True(_memory.TryRead(0x1008, out now));
        Assert.Equal(0x3_0000_0001UL, now);
        Assert.False(_memory.CompareExchange(0x1004, 0UL, 0UL, out ulong _));
        Assert.False(_memory.CompareExchange(0x8000, 0UL, 0UL, out ulong _));
    }

    [Fact]
    public void Fill_CoversTheRangeOnly()
    {
        _memory.Fill(0x3ffe, 0xaa, 4);
        byte[] back = new byte[6];
        _memory.Read(0x3ffd, back);
        Assert.Equal([0, 0xaa, 0xaa, 0xaa, 0xaa, 0], back);
    }

    [Fact]
    public void Access_AllocatesNothing()
    {
        _slots.CodeWriteSink = null;
        _memory.TryWrite(0, 1UL);
        long before = GC.GetAllocatedBytesForCurrentThread();
        for (ulong i = 0; i < 1000; i++)
        {
            _memory.TryWrite(i * 8, i);
            _memory.TryRead(i * 8, out ulong _);
        }
        Assert.Equal(before, GC.GetAllocatedBytesForCurrentThread());
    }

    public void Dispose() => _ram.Dispose();
}

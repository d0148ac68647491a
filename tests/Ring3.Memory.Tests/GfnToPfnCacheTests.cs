using Ring3.Abi;

namespace Ring3.Memory.Tests;

public unsafe class GfnToPfnCacheTests : IDisposable
{
    private readonly MemorySlots _slots = new();
    private readonly GuestRam _ram = new(0x10000);
    private readonly GfnToPfnCache _cache;

    public GfnToPfnCacheTests()
    {
        _slots.SetRegion(0, KvmApi.KVM_MEM_LOG_DIRTY_PAGES, 0, 0x10000, _ram.Hva);
        _cache = new GfnToPfnCache(_slots);
    }

    private bool Check(uint length)
    {
        using var _ = _cache.Lock.Read();
        return _cache.Check(length);
    }

    [Fact]
    public void Activate_GivesThePointer_DeactivateTakesItBack()
    {
        Assert.False(Check(8));
        Assert.Equal(-Errno.EINVAL, _cache.Refresh(8));
        Assert.Equal(0, _cache.Activate(0x3010, 8));
        Assert.True(Check(8));
        Assert.Equal(_ram.Hva + 0x3010, _cache.Hva);
        using (_cache.Lock.Read())
            _cache.MarkDirty(8);
        Assert.Equal(8UL, _slots.Find(3)!.DirtyBitmap!.Word(0));
        _cache.Deactivate();
        Assert.False(Check(8));
    }

    [Fact]
    public void Range_MustNotCrossAPage()
    {
        Assert.Equal(-Errno.EINVAL, _cache.Activate(0xffc, 8));
        Assert.Equal(0, _cache.Activate(0xff8, 8));
        Assert.True(Check(8));
        Assert.False(Check(9));
    }

    [Fact]
    public void SlotChange_OutdatesTheCache()
    {
        _cache.Activate(0x3000, 8);
        _slots.SetRegion(1, 0, 0x100000, 0x1000, _ram.Hva);
        Assert.False(Check(8));
        Assert.Equal(0, _cache.Refresh(8));
        Assert.True(Check(8));
        _slots.SetRegion(0, 0, 0, 0, 0);
        Assert.Equal(-Errno.EFAULT, _cache.Refresh(8));
        Assert.False(Check(8));
        _slots.SetRegion(0, 0, 0, 0x10000, _ram.Hva);
        Assert.Equal(0, _cache.Refresh(8));
    }

    [Fact]
    public void Notifier_InvalidatesExactlyThePage()
    {
        _cache.Activate(0x3000, 8);
        _ram.Discard(0x4000, 0x1000, _slots.Notifier);
        Assert.True(Check(8));
        _ram.Discard(0x3000, 0x1000, _slots.Notifier);
        Assert.False(Check(8));
        Assert.Equal(0, _cache.Refresh(8));
        Assert.True(Check(8));
    }

    [Fact]
    public void Notifier_ReportsTheRangesAndNotWhatLiesBetween()
    {
        HvaRange[] ranges = [new(_ram.Hva + 0x1000, _ram.Hva + 0x2000), new(_ram.Hva + 0x4000, _ram.Hva + 0x6000)];
        var ended = new List<HvaRange>();
        _slots.Notifier.Ended = (start, end) => ended.Add(new HvaRange(start, end));
        _cache.Activate(0x3000, 8);
        Assert.True(_slots.Notifier.InvalidateRangesStart(ranges));
        Assert.True(Check(8));
        _slots.Notifier.InvalidateRangesEnd(ranges);
        Assert.Equal(ranges, ended);
        Assert.Equal(0, _slots.Notifier.InProgress);
    }

    [Fact]
    public void Refresh_WaitsForTheEndOfAnInvalidation()
    {
        _cache.Activate(0x3000, 8);
        ulong start = _ram.Hva + 0x3000, end = start + 0x1000;
        Assert.True(_slots.Notifier.InvalidateRangeStart(start, end));
        var refresh = new Thread(() => _cache.Refresh(8));
        refresh.Start();
        Assert.False(refresh.Join(30));
        Assert.False(Check(8));
        _slots.Notifier.InvalidateRangeEnd(start, end);
        Assert.True(refresh.Join(10_000));
        Assert.True(Check(8));
    }

    [Fact]
    public void ActivateHva_IsIndependentOfSlots()
    {
        using var other = new GuestRam(0x1000);
        Assert.Equal(0, _cache.ActivateHva(other.Hva + 16, 8));
        _slots.SetRegion(0, 0, 0, 0, 0);
        Assert.True(Check(8));
        Assert.Equal(GfnToPfnCache.InvalidGpa, _cache.Gpa);
        Assert.True(_slots.Notifier.InvalidateRangeStart(other.Hva, other.Hva + 0x1000));
        Assert.False(Check(8));
        _slots.Notifier.InvalidateRangeEnd(other.Hva, other.Hva + 0x1000);
    }

    public void Dispose()
    {
        _cache.Deactivate();
        _ram.Dispose();
    }
}

using Ring3.Vmm.Bus;

namespace Ring3.Vmm.Tests.Bus;

public class AddressBusTests
{
    private sealed class Recorder : IBusDevice
    {
        public ulong LastOffset;
        public byte[] Written = [];
        public void Read(ulong offset, Span<byte> data) { LastOffset = offset; BusData.Set(data, 0x1122_3344_5566_7788); }
        public void Write(ulong offset, ReadOnlySpan<byte> data) { LastOffset = offset; Written = data.ToArray(); }
    }

    [Fact]
    public void FindsTheDeviceOfEachAddressAndNoneBetween()
    {
        var bus = new AddressBus();
        var devices = new Recorder[20];
        for (int i = 19; i >= 0; i--)
            bus.Add((ulong)i * 16, 8, devices[i] = new Recorder());
        for (int i = 0; i < 20; i++)
        {
            for (ulong o = 0; o < 16; o++)
            {
                IBusDevice? found = bus.Find((ulong)i * 16 + o, out ulong offset);
                Assert.Same(o < 8 ? devices[i] : null, found);
                Assert.Equal(o < 8 ? o : 0, offset);
            }
        }
    }

    [Fact]
    public void RefusesOverlapEmptyAndWrapping()
    {
        var bus = new AddressBus();
        Assert.True(bus.TryAdd(100, 10, new Recorder()));
        Assert.False(bus.TryAdd(109, 1, new Recorder()));
        Assert.False(bus.TryAdd(90, 11, new Recorder()));
        Assert.False(bus.TryAdd(90, 100, new Recorder()));
        Assert.False(bus.TryAdd(50, 0, new Recorder()));
        Assert.False(bus.TryAdd(ulong.MaxValue, 2, new Recorder()));
        Assert.True(bus.TryAdd(ulong.MaxValue, 1, new Recorder()));
        Assert.True(bus.TryAdd(110, 1, new Recorder()));
        Assert.True(bus.TryAdd(99, 1, new Recorder()));
    }

    [Fact]
    public void NobodyReadsAsOnes()
    {
        var bus = new AddressBus();
        Span<byte> data = stackalloc byte[4];
        Assert.False(bus.Read(5, data));
        Assert.Equal(uint.MaxValue, BusData.Get(data));
        Assert.False(bus.Write(5, data));
    }

    [Fact]
    public void SharedLineIsHighWhileAnyInputIs()
    {
        var levels = new List<bool>();
        var shared = new SharedLine(new Lambda(levels.Add));
        IInterruptLine a = shared.AddInput(), b = shared.AddInput();
        a.Set(true);
        b.Set(true);
        a.Set(false);
        a.Set(false);
        b.Set(false);
        Assert.Equal([true, false], levels);
    }

    internal sealed class Lambda(Action<bool> set) : IInterruptLine
    {
        public void Set(bool level) => set(level);
    }
}

namespace Ring3.Kvm.Tests;

/// <summary>Who gets an access to a bus.</summary>
public sealed class IoBusTests
{
    private sealed class Recorder(byte answer = 0) : IBusDevice
    {
        public ulong LastOffset;
        public byte[] Written = [];

        public void Read(ulong offset, Span<byte> data)
        {
            LastOffset = offset;
            data.Fill(answer);
        }

        public void Write(ulong offset, ReadOnlySpan<byte> data)
        {
            LastOffset = offset;
            Written = data.ToArray();
        }
    }

    private sealed class Tap(Func<ulong, bool> takes) : IBusTap
    {
        public int Asked, Taken;

        public bool TryTake(ulong address, ReadOnlySpan<byte> data)
        {
            Asked++;
            if (!takes(address))
                return false;
            Taken++;
            return true;
        }
    }

    [Fact]
    public void FindsTheDeviceOfEachAddressAndNoneBetween()
    {
        var bus = new IoBus();
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
        var bus = new IoBus();
        Assert.True(bus.TryAdd(100, 10, new Recorder()));
        Assert.False(bus.TryAdd(109, 1, new Recorder()));
        Assert.False(bus.TryAdd(90, 11, new Recorder()));
        Assert.False(bus.TryAdd(90, 100, new Recorder()));
        Assert.False(bus.TryAdd(50, 0, new Recorder()));
        Assert.False(bus.TryAdd(ulong.MaxValue, 2, new Recorder()));
        Assert.True(bus.TryAdd(ulong.MaxValue, 1, new Recorder()));
        Assert.True(bus.TryAdd(110, 1, new Recorder()));
        Assert.True(bus.TryAdd(99, 1, new Recorder()));
        Assert.Throws<InvalidOperationException>(() => bus.Add(99, 1, new Recorder()));
    }

    [Fact]
    public void Nobody_AnswersNothing()
    {
        var bus = new IoBus();
        byte[] data = [1, 2, 3, 4];
        Assert.False(bus.Read(5, data));
        Assert.Equal([1, 2, 3, 4], data);
        Assert.False(bus.Write(5, data));
    }

    /// <summary>An access that reaches over the end of a range is that of its first address.</summary>
    [Fact]
    public void FirstAddressDecides()
    {
        var bus = IoBus.OfPorts();
        Recorder a = new(0xaa), b = new(0xbb);
        bus.Add(0xcf8, 1, a);
        bus.Add(0xcf9, 1, b);
        byte[] data = new byte[4];
        Assert.True(bus.Read(0xcf8, data));
        Assert.Equal([0xaa, 0xaa, 0xaa, 0xaa], data);
        Assert.True(bus.Write(0xcf9, [7, 8]));
        Assert.Equal([7, 8], b.Written);
        Assert.Empty(a.Written);
    }

    [Fact]
    public void Taps_AreAskedInTheirOrder_TheLastOnesBehindDevices()
    {
        var bus = new IoBus();
        var device = new Recorder();
        Tap zone = new(_ => true), first = new(a => a == 0x10), second = new(_ => true), behind = new(_ => true);
        bus.Add(0x00, 0x100, zone, last: true);
        bus.Add(0x10, 1, first, last: false);
        bus.Add(0x10, 4, second, last: false);
        bus.Add(0x10, 8, device);
        bus.Add(0x10, 8, behind, last: false);
        Assert.True(bus.Write(0x10, [0]));
        Assert.Equal((1, 0, 0, 0), (first.Taken, second.Taken, behind.Asked, zone.Asked));
        Assert.True(bus.Write(0x11, [0]));
        Assert.Equal((1, 1), (first.Asked, second.Taken));
        Assert.True(bus.Write(0x14, [9]));
        Assert.Equal([9], device.Written);
        Assert.Equal(4ul, device.LastOffset);
        Assert.Equal(0, behind.Asked);
        Assert.True(bus.Write(0x18, [0]));
        Assert.Equal(1, zone.Taken);
        bus.Remove(device);
        Assert.True(bus.Write(0x14, [0]));
        Assert.Equal((1, 1), (behind.Taken, zone.Taken));
        bus.Remove([behind, zone]);
        Assert.False(bus.Write(0x14, [0]));
        Assert.True(bus.Write(0x13, [0]));
    }

    /// <summary>A tap that declines, of an empty range, or of one that wraps takes nothing; reads pass by all of them.</summary>
    [Fact]
    public void Taps_TakeWritesOnly_AndWhatTheyWant()
    {
        var bus = new IoBus();
        var device = new Recorder(0x5a);
        Tap declines = new(_ => false), empty = new(_ => true), wraps = new(_ => true);
        bus.Add(0x10, 1, declines, last: false);
        bus.Add(0x10, 0, empty, last: false);
        bus.Add(ulong.MaxValue, 2, wraps, last: true);
        byte[] data = new byte[1];
        Assert.False(bus.Read(0x10, data));
        Assert.False(bus.Write(0x10, data));
        Assert.False(bus.Write(ulong.MaxValue, data));
        bus.Add(0x10, 1, device);
        Assert.True(bus.Write(0x10, [1]));
        Assert.True(bus.Read(0x10, data));
        Assert.Equal([0x5a], data);
        Assert.Equal((2, 0, 0), (declines.Asked, empty.Asked, wraps.Asked));
    }

    /// <summary>
    /// Random ranges come, move and go; at every address the bus says what a list of them says, and a port is claimed exactly when somebody has it.
    /// </summary>
    [Fact]
    public void AnyHistory_IsThatOfAList()
    {
        const int Addresses = 96;
        var random = new Random(12);
        for (int history = 0; history < 60; history++)
        {
            IoBus bus = IoBus.OfPorts();
            var present = new List<(int Start, int Length, object What, bool Last, int Order)>();
            for (int step = 0; step < 60; step++)
            {
                int start = random.Next(Addresses - 1), length = random.Next(1, 1 + Math.Min(24, Addresses - start));
                switch (random.Next(4))
                {
                    case 0:
                        var device = new Recorder();
                        bool free = !present.Exists(p => p.What is Recorder && p.Start < start + length && start < p.Start + p.Length);
                        Assert.Equal(free, bus.TryAdd((ulong)start, (ulong)length, device));
                        if (free)
                            present.Add((start, length, device, false, step));
                        break;
                    case 1:
                        bool last = random.Next(2) == 0;
                        int parity = random.Next(3);
                        var tap = new Tap(a => (int)a % 3 != parity);
                        bus.Add((ulong)start, (ulong)length, tap, last);
                        present.Add((start, length, tap, last, step));
                        break;
                    default:
                        if (present.Count == 0)
                            break;
                        object gone = present[random.Next(present.Count)].What;
                        present.RemoveAll(p => p.What == gone);
                        if (gone is IBusTap goneTap)
                            bus.Remove([goneTap]);
                        else if (random.Next(3) == 0 && !present.Exists(p => p.What is Recorder && p.Start < start + length && start < p.Start + p.Length))
                        {
                            bus.Move((IBusDevice)gone, (ulong)start, (ulong)length);
                            present.Add((start, length, gone, false, step));
                        }
                        else
                            bus.Remove((IBusDevice)gone);
                        break;
                }
                for (int a = 0; a < Addresses; a++)
                    Compare(bus, present, a);
            }
        }
    }

    private static void Compare(IoBus bus, List<(int Start, int Length, object What, bool Last, int Order)> present, int address)
    {
        object[] asked = [.. present.Where(p => p.Start <= address && address < p.Start + p.Length).OrderBy(p => (p.Last, p.Order)).Select(p => p.What)];
        Assert.Equal(asked.Length != 0, bus.MayClaim((ushort)address));
        Assert.Same(asked.FirstOrDefault(w => w is Recorder), bus.Find((ulong)address, out _));
        object? expected = null;
        foreach (object w in asked)
        {
            if (w is Tap tap)
            {
                int before = tap.Taken;
                bool takes = tap.TryTake((ulong)address, [0]);
                tap.Taken = before;
                if (!takes)
                    continue;
            }
            expected = w;
            break;
        }
        foreach (object w in asked)
            if (w is Recorder r)
                r.Written = [];
        int taken = expected is Tap t ? t.Taken : 0;
        Assert.Equal(expected is not null, bus.Write((ulong)address, [0x77]));
        if (expected is Tap took)
            Assert.Equal(taken + 1, took.Taken);
        else if (expected is Recorder d)
            Assert.Equal([0x77], d.Written);
    }
}

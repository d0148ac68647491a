namespace Ring3.Virtio.Tests;

/// <summary>A buffer that a driver offers.</summary>
internal readonly record struct Piece(ulong Gpa, uint Length, bool Write);

/// <summary>The driver's side of queue 0, as a guest would have it: one chain at a time or several.</summary>
internal abstract class Driver(Bench bench, ushort size, ulong features)
{
    /// <summary>Where the parts are; indirect tables are above.</summary>
    public const ulong Descriptors = 0x1_0000, DriverArea = 0x2_0000, DeviceArea = 0x3_0000, Tables = 0x4_0000;

    protected readonly Bench Bench = bench;
    protected readonly ushort Size = size;
    protected readonly bool EventIndex = (features & VirtioFeature.EventIndex) != 0;

    public static Driver Create(Bench bench, ushort size, ulong features, ushort vector = 0xffff)
    {
        Assert.Equal(features, bench.Negotiate(features) & features);
        Assert.NotEqual(0, bench.Status & VirtioStatus.FeaturesOk);
        bench.Enable(0, size, Descriptors, DriverArea, DeviceArea, vector);
        bench.Ready();
        Assert.Equal(0, bench.Status & VirtioStatus.NeedsReset);
        return (features & VirtioFeature.PackedRing) != 0 ? new PackedDriver(bench, size, features) : new SplitDriver(bench, size, features);
    }

    /// <summary>Offers a chain; <paramref name="table"/>: through a table in memory.</summary>
    public abstract void Offer(bool table, params ReadOnlySpan<Piece> pieces);

    /// <summary>Takes a chain back: its name and the bytes that were written, or nothing.</summary>
    public abstract (ushort Id, uint Written)? Take();

    /// <summary>Wants to hear of the chain that comes after <paramref name="further"/> others.</summary>
    public abstract void WantInterrupt(int further);

    public abstract void WantNoInterrupt();

    /// <summary>Whether the device wants to be told of the chain that was offered last.</summary>
    public abstract bool MustNotify { get; }

    protected void Descriptor(ulong at, ulong gpa, uint length, ushort first, ushort second)
    {
        Bench.Write(at, gpa);
        Bench.Write(at + 8, length);
        Bench.Write(at + 12, first);
        Bench.Write(at + 14, second);
    }
}

internal sealed class SplitDriver(Bench bench, ushort size, ulong features) : Driver(bench, size, features)
{
    private ushort _index, _used, _free;

    public override void Offer(bool table, params ReadOnlySpan<Piece> pieces)
    {
        ushort head = _free;
        if (table)
        {
            ulong at = Tables + 0x100UL * head;
            for (int i = 0; i < pieces.Length; i++)
                Descriptor(at + 16UL * (uint)i, pieces[i].Gpa, pieces[i].Length, Flags(pieces, i), (ushort)(i + 1));
            Descriptor(Descriptors + 16UL * head, at, 16 * (uint)pieces.Length, 4, 0);
            _free = (ushort)((head + 1) % Size);
        }
        else
        {
            for (int i = 0; i < pieces.Length; i++)
            {
                ushort next = (ushort)((_free + 1) % Size);
                Descriptor(Descriptors + 16UL * _free, pieces[i].Gpa, pieces[i].Length, Flags(pieces, i), next);
                _free = next;
            }
        }
        Bench.Write(DriverArea + 4 + 2UL * (uint)(_index % Size), head);
        Bench.Write(DriverArea + 2, ++_index);
    }

    private static ushort Flags(ReadOnlySpan<Piece> pieces, int i) => (ushort)((pieces[i].Write ? 2 : 0) | (i + 1 < pieces.Length ? 1 : 0));

    public override (ushort Id, uint Written)? Take()
    {
        if (Bench.Read<ushort>(DeviceArea + 2) == _used)
            return null;
        ulong at = DeviceArea + 4 + 8UL * (uint)(_used++ % Size);
        return ((ushort)Bench.Read<uint>(at), Bench.Read<uint>(at + 4));
    }

    public override void WantInterrupt(int further)
    {
        Bench.Write(DriverArea, (ushort)0);
        Bench.Write(DriverArea + 4 + 2UL * Size, (ushort)(_used + further));
    }

    public override void WantNoInterrupt()
    {
        Bench.Write(DriverArea, (ushort)1);
        Bench.Write(DriverArea + 4 + 2UL * Size, (ushort)(_used - 1));
    }

    public override bool MustNotify => EventIndex
        ? Bench.Read<ushort>(DeviceArea + 4 + 8UL * Size) == (ushort)(_index - 1)
        : (Bench.Read<ushort>(DeviceArea) & 1) == 0;
}

internal sealed class PackedDriver(Bench bench, ushort size, ulong features) : Driver(bench, size, features)
{
    private ushort _next, _used, _lastAt;
    private bool _wrap = true, _usedWrap = true, _lastWrap;
    private readonly Dictionary<ushort, int> _slots = [];
    private ushort _id;

    public override void Offer(bool table, params ReadOnlySpan<Piece> pieces)
    {
        (_lastAt, _lastWrap) = (_next, _wrap);
        ushort id = _id++;
        _slots[id] = table ? 1 : pieces.Length;
        if (table)
        {
            ulong at = Tables + 0x100UL * (uint)(id % Size);
            for (int i = 0; i < pieces.Length; i++)
                Descriptor(at + 16UL * (uint)i, pieces[i].Gpa, pieces[i].Length, 0, (ushort)(pieces[i].Write ? 2 : 0));
            Put(at, 16 * (uint)pieces.Length, id, 4);
            return;
        }
        for (int i = 0; i < pieces.Length; i++)
            Put(pieces[i].Gpa, pieces[i].Length, id, (ushort)((pieces[i].Write ? 2 : 0) | (i + 1 < pieces.Length ? 1 : 0)));
    }

    private void Put(ulong gpa, uint length, ushort id, ushort flags)
    {
        flags |= (ushort)(_wrap ? 1 << 7 : 1 << 15);
        Descriptor(Descriptors + 16UL * _next, gpa, length, id, flags);
        if (++_next == Size)
            (_next, _wrap) = (0, !_wrap);
    }

    public override (ushort Id, uint Written)? Take()
    {
        ulong at = Descriptors + 16UL * _used;
        ushort flags = Bench.Read<ushort>(at + 14);
        if ((flags >> 7 & 1) == 1 != _usedWrap || (flags >> 15 & 1) == 1 != _usedWrap)
            return null;
        ushort id = Bench.Read<ushort>(at + 12);
        int next = _used + _slots[id];
        if (next >= Size)
            (next, _usedWrap) = (next - Size, !_usedWrap);
        _used = (ushort)next;
        return (id, Bench.Read<uint>(at + 8));
    }

    public override void WantInterrupt(int further)
    {
        int at = _used + further;
        bool wrap = at >= Size ? !_usedWrap : _usedWrap;
        Bench.Write(DriverArea, (ushort)(at % Size | (wrap ? 0x8000 : 0)));
        Bench.Write(DriverArea + 2, (ushort)(EventIndex ? 2 : 0));
    }

    public override void WantNoInterrupt() => Bench.Write(DriverArea + 2, (ushort)1);

    public override bool MustNotify => Bench.Read<ushort>(DeviceArea + 2) switch
    {
        0 => true,
        2 => Bench.Read<ushort>(DeviceArea) == (ushort)(_lastAt | (_lastWrap ? 0x8000 : 0)),
        _ => false,
    };
}

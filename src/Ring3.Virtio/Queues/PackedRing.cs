using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// The packed layout: one ring of descriptors, which go back and forth in place, with two wrap counters that tell whose each is. SPEC: virtio 1.2, "Packed
/// Virtqueues".
/// </summary>
internal sealed class PackedRing(GuestMemory memory, RingSetup setup) : Ring(memory, setup)
{
    private const ushort Available = 1 << 7, Used = 1 << 15;
    private const int LengthAt = 8, IdAt = 12, FlagsAt = 14;
    /// <summary>Of an event suppression structure: off and wrap at 0, flags at 2.</summary>
    private const int EventFlagsAt = 2;
    private const ushort EventsOn = 0, EventsOff = 1, EventsAtDescriptor = 2, WrapBit = 1 << 15;

    private ushort _next, _used;
    private bool _nextWrap = true, _usedWrap = true;
    /// <summary>Slots that were given back since the driver was last considered for an interrupt.</summary>
    private int _unsignalled;
    /// <summary>The flags of the first descriptor that was prepared and not published: where they are, or 0, and what they become.</summary>
    private ulong _staged;
    private ushort _stagedFlags;

    private ulong SlotAt(uint index) => Setup.Descriptors + (ulong)Descriptor.Bytes * index;

    /// <summary>Between chains nothing is prepared.</summary>
    public override void Transfer(StateTransfer state)
    {
        base.Transfer(state);
        state.Value(ref _next);
        state.Value(ref _used);
        state.Value(ref _nextWrap);
        state.Value(ref _usedWrap);
        state.Value(ref _unsignalled);
    }

    public override bool TryPop(DescriptorChain chain)
    {
        if (!TryNext(out bool available) || !available)
            return false;
        chain.Clear();
        ushort index = _next;
        while (true)
        {
            if (!Memory.TryRead(SlotAt(index), out Descriptor d))
                return NoMemory();
            (ushort id, ushort flags) = (d.First, d.Second);
            chain.Slots++;
            index = (ushort)(index + 1 == Setup.Size ? 0 : index + 1);
            chain.Id = id;
            if ((flags & Descriptor.Indirect) != 0)
            {
                if (!WalkTable(chain, d, flags))
                    return false;
                break;
            }
            if (chain.Add(d.Address, d.Length, (flags & Descriptor.Write) != 0, Setup.Size) is { } fault)
                return Break(fault);
            if ((flags & Descriptor.Next) == 0)
                break;
        }
        if (index <= _next)
            _nextWrap = !_nextWrap;
        _next = index;
        return true;
    }

    public override void Untake(DescriptorChain chain)
    {
        int before = _next - chain.Slots;
        if (before < 0)
        {
            before += Setup.Size;
            _nextWrap = !_nextWrap;
        }
        _next = (ushort)before;
    }

    private bool TryNext(out bool available)
    {
        available = false;
        if (Fault is not null)
            return false;
        if (!Memory.TryRead(SlotAt(_next) + FlagsAt, out ushort flags))
            return NoMemory();
        available = (flags & Available) != 0 == _nextWrap && (flags & Used) != 0 != _nextWrap;
        return true;
    }

    private bool WalkTable(DescriptorChain chain, Descriptor table, ushort tableFlags)
    {
        int count = IndirectCount(table, tableFlags);
        if (count == 0)
            return false;
        for (uint i = 0; i < (uint)count; i++)
        {
            if (!Memory.TryRead(table.Address + (ulong)Descriptor.Bytes * i, out Descriptor d))
                return Break("an indirect table is no memory");
            if ((d.Second & Descriptor.Indirect) != 0)
                return Break("a table in a table");
            if (chain.Add(d.Address, d.Length, (d.Second & Descriptor.Write) != 0, Setup.Size) is { } fault)
                return Break(fault);
        }
        return true;
    }

    public override void Stage(DescriptorChain chain, uint written)
    {
        ulong at = SlotAt(_used);
        ushort flags = (ushort)((_usedWrap ? Available | Used : 0) | (written != 0 ? Descriptor.Write : 0));
        if (!Memory.TryWrite(at + LengthAt, written) || !Memory.TryWrite(at + IdAt, chain.Id))
            NoMemory();
        if (_staged == 0)
            (_staged, _stagedFlags) = (at + FlagsAt, flags);
        else if (!Memory.TryWrite(at + FlagsAt, flags))
            NoMemory();
        int next = _used + chain.Slots;
        if (next >= Setup.Size)
        {
            next -= Setup.Size;
            _usedWrap = !_usedWrap;
        }
        _used = (ushort)next;
        _unsignalled = Math.Min(_unsignalled + chain.Slots, Setup.Size);
    }

    /// <summary>The flags of the first come after everything else: the driver looks at the others then.</summary>
    public override void Publish()
    {
        if (_staged != 0 && !Memory.TryWrite(_staged, _stagedFlags))
            NoMemory();
        _staged = 0;
    }

    public override bool ShouldInterrupt()
    {
        int slots = _unsignalled;
        if (slots == 0 || Fault is not null)
            return false;
        _unsignalled = 0;
        // PAIRS-WITH: the driver, which says when it wants to hear, has a fence, and looks at the used descriptors: one of both sees the other.
        Interlocked.MemoryBarrier();
        if (!Memory.TryRead(Setup.DriverArea + EventFlagsAt, out ushort mode))
            return NoMemory();
        if (mode != EventsAtDescriptor || !Setup.EventIndex)
            return mode != EventsOff;
        if (!Memory.TryRead(Setup.DriverArea, out ushort place))
            return NoMemory();
        int wanted = place & ~WrapBit;
        if ((place & WrapBit) != 0 != _usedWrap)
            wanted -= Setup.Size;
        return wanted < _used && wanted >= _used - slots;
    }

    public override void SuppressDoorbells()
    {
        if (!Memory.TryWrite(Setup.DeviceArea + EventFlagsAt, EventsOff))
            NoMemory();
    }

    public override bool TryRest()
    {
        ushort place = (ushort)(_next | (_nextWrap ? WrapBit : 0));
        if (Setup.EventIndex && !Memory.TryWrite(Setup.DeviceArea, place)
            || !Memory.TryWrite(Setup.DeviceArea + EventFlagsAt, Setup.EventIndex ? EventsAtDescriptor : EventsOn))
            return !NoMemory();
        // PAIRS-WITH: the driver, which makes a descriptor available, has a fence, and looks whether it is to notify.
        Interlocked.MemoryBarrier();
        return !TryNext(out bool available) || !available;
    }
}

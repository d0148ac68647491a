using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Virtio;

/// <summary>
/// The split layout: a table of descriptors, a ring of heads from the driver, and a ring of used ones from the device. SPEC: virtio 1.2, "Split
/// Virtqueues".
/// </summary>
internal sealed class SplitRing(GuestMemory memory, RingSetup setup) : Ring(memory, setup)
{
    private const ushort NoInterrupt = 1, NoNotify = 1;
    private const int HeaderBytes = 4, UsedBytes = 8;

    private ushort _available, _used, _signalled;

    private ulong AvailableFlags => Setup.DriverArea;
    private ulong AvailableIndex => Setup.DriverArea + 2;
    private ulong UsedEvent => Setup.DriverArea + HeaderBytes + 2UL * Setup.Size;
    private ulong UsedFlags => Setup.DeviceArea;
    private ulong UsedIndex => Setup.DeviceArea + 2;
    private ulong AvailableEvent => Setup.DeviceArea + HeaderBytes + (ulong)UsedBytes * Setup.Size;

    public override void Transfer(StateTransfer state)
    {
        base.Transfer(state);
        state.Value(ref _available);
        state.Value(ref _used);
        state.Value(ref _signalled);
    }

    public override bool TryPop(DescriptorChain chain)
    {
        if (!TryPending(out int pending) || pending == 0)
            return false;
        int mask = Setup.Size - 1;
        if (!Memory.TryRead(Setup.DriverArea + HeaderBytes + 2UL * (uint)(_available & mask), out ushort head))
            return NoMemory();
        chain.Clear();
        chain.Id = head;
        if (!Walk(chain, head))
            return false;
        _available++;
        return true;
    }

    public override void Untake(DescriptorChain chain) => _available--;

    private bool TryPending(out int pending)
    {
        pending = 0;
        if (Fault is not null)
            return false;
        if (!Memory.TryRead(AvailableIndex, out ushort index))
            return NoMemory();
        pending = (ushort)(index - _available);
        return pending <= Setup.Size || Break("the driver's index jumps");
    }

    private bool Walk(DescriptorChain chain, ushort index)
    {
        while (true)
        {
            if (index >= Setup.Size)
                return Break("a descriptor's number is outside the queue");
            if (!Memory.TryRead(Setup.Descriptors + (ulong)Descriptor.Bytes * index, out Descriptor d))
                return NoMemory();
            (ushort flags, ushort next) = (d.First, d.Second);
            if ((flags & Descriptor.Indirect) != 0)
                return WalkTable(chain, d, flags);
            if (chain.Add(d.Address, d.Length, (flags & Descriptor.Write) != 0, Setup.Size) is { } fault)
                return Break(fault);
            if ((flags & Descriptor.Next) == 0)
                return true;
            index = next;
        }
    }

    private bool WalkTable(DescriptorChain chain, Descriptor table, ushort tableFlags)
    {
        int count = IndirectCount(table, tableFlags);
        if (count == 0)
            return false;
        for (uint index = 0; ;)
        {
            if (index >= (uint)count)
                return Break("a descriptor's number is outside its table");
            if (!Memory.TryRead(table.Address + (ulong)Descriptor.Bytes * index, out Descriptor d))
                return Break("an indirect table is no memory");
            (ushort flags, ushort next) = (d.First, d.Second);
            if ((flags & Descriptor.Indirect) != 0)
                return Break("a table in a table");
            if (chain.Add(d.Address, d.Length, (flags & Descriptor.Write) != 0, Setup.Size) is { } fault)
                return Break(fault);
            if ((flags & Descriptor.Next) == 0)
                return true;
            index = next;
        }
    }

    public override void Stage(DescriptorChain chain, uint written)
    {
        ulong at = Setup.DeviceArea + HeaderBytes + (ulong)UsedBytes * (uint)(_used & (Setup.Size - 1));
        _used++;
        if (!Memory.TryWrite(at, (uint)chain.Id) || !Memory.TryWrite(at + 4, written))
            NoMemory();
    }

    /// <summary>The index comes after the entries.</summary>
    public override void Publish()
    {
        if (!Memory.TryWrite(UsedIndex, _used))
            NoMemory();
    }

    public override bool ShouldInterrupt()
    {
        ushort before = _signalled;
        if (before == _used || Fault is not null)
            return false;
        _signalled = _used;
        // PAIRS-WITH: the driver, which says that it wants to hear, has a fence, and looks at the used index: one of both sees the other.
        Interlocked.MemoryBarrier();
        if (!Setup.EventIndex)
            return Memory.TryRead(AvailableFlags, out ushort flags) ? (flags & NoInterrupt) == 0 : NoMemory();
        if (!Memory.TryRead(UsedEvent, out ushort wanted))
            return NoMemory();
        return (ushort)(_used - wanted - 1) < (ushort)(_used - before);
    }

    public override void SuppressDoorbells()
    {
        // With an event index, one that lies behind does it.
        if (!Setup.EventIndex && !Memory.TryWrite(UsedFlags, NoNotify))
            NoMemory();
    }

    public override bool TryRest()
    {
        if (Setup.EventIndex ? !Memory.TryWrite(AvailableEvent, _available) : !Memory.TryWrite(UsedFlags, (ushort)0))
            return !NoMemory();
        // PAIRS-WITH: the driver, which publishes its index, has a fence, and looks whether it is to notify.
        Interlocked.MemoryBarrier();
        return !TryPending(out int pending) || pending == 0;
    }
}

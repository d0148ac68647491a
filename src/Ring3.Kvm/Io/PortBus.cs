using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>A device in the hypervisor that has I/O ports. Any vCPU thread.</summary>
internal interface IPortDevice
{
    /// <summary>False: not this device's after all.</summary>
    bool Read(ushort port, Span<byte> data);
    bool Write(ushort port, ReadOnlySpan<byte> data);
}

/// <summary>Which I/O ports devices of the hypervisor have. Lookups read one bit first, because most exits are for the client.</summary>
internal sealed class PortBus
{
    private readonly Lock _lock = new();
    private readonly ulong[] _claimed = new ulong[65536 / 64];
    /// <summary>Ports claimed by <see cref="ClaimAll"/>.</summary>
    private readonly ulong[] _claimedElsewhere = new ulong[65536 / 64];
    private (ushort First, int Count, IPortDevice Device)[] _ranges = [];

    /// <summary>Adds a device with one or more ranges given as first port, number of ports. First added, first asked.</summary>
    public void Add(IPortDevice device, params ReadOnlySpan<int> ranges)
    {
        lock (_lock)
        {
            for (int i = 0; i < ranges.Length; i += 2)
            {
                Volatile.Write(ref _ranges, [.. _ranges, ((ushort)ranges[i], ranges[i + 1], device)]);
                for (int port = ranges[i]; port < ranges[i] + ranges[i + 1]; port++)
                    Interlocked.Or(ref _claimed[port >> 6], 1UL << (port & 63));
            }
        }
    }

    /// <summary>Removes every range of a device. The claimed bits of ports shared with another device stay, also for those who look meanwhile.</summary>
    public void Remove(IPortDevice device)
    {
        lock (_lock)
        {
            var rest = Array.FindAll(_ranges, r => r.Device != device);
            Volatile.Write(ref _ranges, rest);
            var claimed = (ulong[])_claimedElsewhere.Clone();
            foreach (var (first, count, _) in rest)
                for (int port = first; port < first + count; port++)
                    claimed[port >> 6] |= 1UL << (port & 63);
            for (int i = 0; i < claimed.Length; i++)
                Volatile.Write(ref _claimed[i], claimed[i]);
        }
    }

    /// <summary>Marks ports that a table outside this bus may take.</summary>
    public void ClaimAll(ulong first, uint count)
    {
        lock (_lock)
        {
            for (ulong port = first; port < Math.Min(first + count, 65536); port++)
            {
                _claimedElsewhere[port >> 6] |= 1UL << (int)(port & 63);
                Interlocked.Or(ref _claimed[port >> 6], 1UL << (int)(port & 63));
            }
        }
    }

    public bool MayClaim(ushort port) => (Volatile.Read(ref _claimed[port >> 6]) >> (port & 63) & 1) != 0;

    public bool TryRead(ushort port, Span<byte> data)
    {
        foreach (var (first, count, device) in Volatile.Read(ref _ranges))
            if ((uint)(port - first) < (uint)count && device.Read(port, data))
                return true;
        return false;
    }

    public bool TryWrite(ushort port, ReadOnlySpan<byte> data)
    {
        foreach (var (first, count, device) in Volatile.Read(ref _ranges))
            if ((uint)(port - first) < (uint)count && device.Write(port, data))
                return true;
        return false;
    }
}

/// <summary>The PIC pair's ports. Wider accesses than a byte are not decoded by the chip.</summary>
internal sealed class PicPorts(PicPair pic) : IPortDevice
{
    public bool Read(ushort port, Span<byte> data)
    {
        data.Clear();
        if (data.Length == 1)
            data[0] = pic.Read(port);
        return true;
    }

    public bool Write(ushort port, ReadOnlySpan<byte> data)
    {
        if (data.Length == 1)
            pic.Write(port, data[0]);
        return true;
    }
}

/// <summary>The PIT's ports 0x40-0x43, and 0x61 (speaker, channel 2 gate).</summary>
internal sealed class PitPorts(Pit pit) : IPortDevice
{
    public bool Read(ushort port, Span<byte> data)
    {
        data.Clear();
        data[0] = pit.Read(port);
        return true;
    }

    public bool Write(ushort port, ReadOnlySpan<byte> data)
    {
        pit.Write(port, data[0]);
        return true;
    }
}

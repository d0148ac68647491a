using System.Runtime.CompilerServices;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Kvm;

/// <summary>
/// One address space of devices: ports, or MMIO. Devices have disjoint ranges; ioeventfds and coalesced zones lie over them and over each other, and are asked
/// about writes in the order in which they came, zones last. An access belongs to who has its first address.
/// </summary>
/// <remarks>
/// What is on the bus is published as an immutable map, so lookups take no lock. A tap is asked inside the RCU section that found it, and its removal waits for
/// a grace period: on return nobody is, or will be, in its code, and what it signals may be closed. A device is called outside the section, since it may do
/// what waits for grace periods itself; a call that has begun when it is removed goes on.
/// </remarks>
public sealed class IoBus
{
    private const int PortCount = 1 << 16;

    private readonly RankedLock _lock = new(LockRank.IoBus);
    private BusMap _map = BusMap.Empty;
    private ulong _order;
    /// <summary>A bit for each port that somebody has; of a bus of memory addresses nothing.</summary>
    private readonly ulong[] _claimed;

    /// <summary>A bus of memory addresses.</summary>
    public IoBus()
        : this([])
    {
    }

    private IoBus(ulong[] claimed) => _claimed = claimed;

    /// <summary>A bus of I/O ports, which knows without a search what is nobody's.</summary>
    public static IoBus OfPorts() => new(new ulong[PortCount / 64]);

    /// <summary>Adds a device at [start, start + length). False when the range is empty, wraps, or overlaps another device.</summary>
    public bool TryAdd(ulong start, ulong length, IBusDevice device)
    {
        if (!TryRange(start, length, out ulong last))
            return false;
        using (_lock.Enter())
        {
            if (_map.HasDevice(start, last))
                return false;
            Publish(_map.With(new BusEntry(start, last, device, _order++)), start, last);
        }
        return true;
    }

    /// <summary>Adds a device whose place is fixed by the machine's layout.</summary>
    /// <exception cref="InvalidOperationException">The range is empty, wraps, or overlaps another device.</exception>
    public void Add(ulong start, ulong length, IBusDevice device)
    {
        if (!TryAdd(start, length, device))
            throw new InvalidOperationException($"bus range 0x{start:x}+0x{length:x} overlaps another device");
    }

    /// <summary>Takes a device off the bus, from all its ranges.</summary>
    public void Remove(IBusDevice device)
    {
        using (_lock.Enter())
            Withdraw(e => e.Device == device);
    }

    /// <summary>Puts a device elsewhere. Where another device is, and outside the address space, it is nowhere.</summary>
    internal void Move(IBusDevice device, ulong start, ulong length)
    {
        Remove(device);
        _ = TryAdd(start, length, device);
    }

    /// <summary>Lays a tap over [start, start + length). An empty range, or one that wraps, has no writes.</summary>
    /// <param name="last">Asked after those that come later, too, unless they are last as well.</param>
    internal void Add(ulong start, ulong length, IBusTap tap, bool last)
    {
        if (!TryRange(start, length, out ulong lastAddress))
            return;
        using (_lock.Enter())
            Publish(_map.With(new BusEntry(start, lastAddress, tap, _order++ | (last ? BusEntry.Last : 0))), start, lastAddress);
    }

    /// <summary>Takes taps off the bus. On return none of them is, or will be, asked. Not in an RCU section, and under no lock that is taken in one.</summary>
    internal void Remove(IReadOnlyCollection<IBusTap> taps)
    {
        using (_lock.Enter())
            Withdraw(e => e.Tap is { } tap && taps.Contains(tap));
        // PAIRS-WITH: Write (finds and asks a tap in one section).
        Rcu.Synchronize();
    }

    /// <summary>Ranges that devices have.</summary>
    internal int DeviceRanges
    {
        get
        {
            var seen = new HashSet<BusEntry>();
            foreach (ref readonly BusSegment s in Volatile.Read(ref _map).Segments)
                seen.UnionWith(s.Entries.Where(static e => e.Device is not null));
            return seen.Count;
        }
    }

    private static bool TryRange(ulong start, ulong length, out ulong last)
    {
        last = start + (length - 1);
        return length != 0 && last >= start;
    }

    private void Publish(BusMap next, ulong start, ulong last)
    {
        Volatile.Write(ref _map, next); // PAIRS-WITH: Find, Write (load of the map)
        if (_claimed.Length == 0)
            return;
        for (ulong port = start; port <= last && port < PortCount; port++)
        {
            ref ulong word = ref _claimed[port >> 6];
            ulong bit = 1UL << (int)(port & 63);
            // Only what changes is written: a port that stays somebody's is so for who looks meanwhile, too.
            bool claimed = !next.At(port).IsEmpty;
            if (claimed != ((word & bit) != 0))
                Volatile.Write(ref word, word ^ bit);
        }
    }

    private void Withdraw(Predicate<BusEntry> isGone)
    {
        BusMap old = _map, next = old.Without(isGone);
        foreach (ref readonly BusSegment s in old.Segments)
            if (Array.Exists(s.Entries, isGone))
                Publish(next, s.Start, s.Last);
    }

    /// <summary>False: the port is nobody's. For a bus of ports.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool MayClaim(ushort port) => (Volatile.Read(ref _claimed[port >> 6]) >> (port & 63) & 1) != 0;

    /// <summary>Device and offset for an address, or null.</summary>
    internal IBusDevice? Find(ulong address, out ulong offset) => Volatile.Read(ref _map).FindDevice(address, out offset);

    /// <summary>Reads; false, and <paramref name="data"/> untouched, when nobody answers.</summary>
    public bool Read(ulong address, Span<byte> data)
    {
        if (Find(address, out ulong offset) is not { } device)
            return false;
        device.Read(offset, data);
        return true;
    }

    /// <summary>Writes; false when nobody answers.</summary>
    public bool Write(ulong address, ReadOnlySpan<byte> data)
    {
        IBusDevice? device = null;
        ulong offset = 0;
        using (Rcu.Read())
        {
            foreach (BusEntry e in Volatile.Read(ref _map).At(address))
            {
                if (e.Tap is { } tap)
                {
                    if (tap.TryTake(address, data))
                        return true;
                    continue;
                }
                (device, offset) = (e.Device, address - e.Start);
                break;
            }
        }
        device?.Write(offset, data);
        return device is not null;
    }
}

using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>
/// Coalesced I/O: writes to registered zones are queued in a ring instead of leaving for the client, which drains it at its next exit. There is one ring a VM,
/// in the shared area of its first vCPU.
/// </summary>
/// <remarks>SAFETY: the ring is the third page of the vCPU's run area; indices from the client are reduced before use.</remarks>
internal sealed class CoalescedZones(VcpuList vcpus, IoBus ports, IoBus mmio)
{
    /// <summary>What a bus has at most besides ioeventfds. KVM: NR_IOBUS_DEVS.</summary>
    internal const int MaxDevices = 1000;

    private static readonly unsafe uint s_max = (uint)((4096 - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio));
    private readonly RankedLock _lock = new(LockRank.CoalescedZones);
    private readonly List<Zone> _zones = [];
    private Sync.TinyLock _ringLock = new(LockRank.CoalescedRing);

    private sealed class Zone(CoalescedZones owner, in kvm_coalesced_mmio_zone zone) : IBusTap
    {
        internal readonly kvm_coalesced_mmio_zone At = zone;

        internal bool Contains(in kvm_coalesced_mmio_zone o) => At.pio == o.pio && o.addr >= At.addr && o.addr + o.size <= At.addr + At.size;

        public bool TryTake(ulong address, ReadOnlySpan<byte> data) =>
            address + (uint)data.Length <= At.addr + At.size && data.Length <= 8 && owner.Enqueue(address, data, At.pio);
    }

    private IoBus BusOf(in kvm_coalesced_mmio_zone zone) => zone.pio != 0 ? ports : mmio;

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0, -EINVAL, or -ENOSPC.</summary>
    public int Register(in kvm_coalesced_mmio_zone zone)
    {
        if (zone.pio > 1)
            return -Errno.EINVAL;
        IoBus bus = BusOf(zone);
        using (_lock.Enter())
        {
            uint pio = zone.pio;
            if (bus.DeviceRanges + _zones.Count(z => z.At.pio == pio) >= MaxDevices)
                return -Errno.ENOSPC;
            var added = new Zone(this, zone);
            _zones.Add(added);
            bus.Add(zone.addr, zone.size, added, last: true);
        }
        return 0;
    }

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: removes the zones that contain the given one. On return none of their writes is added to the ring.
    /// 0 or -EINVAL.</summary>
    public int Unregister(kvm_coalesced_mmio_zone zone)
    {
        if (zone.pio > 1)
            return -Errno.EINVAL;
        List<Zone> gone;
        using (_lock.Enter())
        {
            gone = _zones.FindAll(z => z.Contains(zone));
            _zones.RemoveAll(z => z.Contains(zone));
        }
        if (gone.Count != 0)
            BusOf(zone).Remove(gone);
        return 0;
    }

    /// <summary>Queues a write; false when the ring is full.</summary>
    private unsafe bool Enqueue(ulong address, ReadOnlySpan<byte> data, uint pio)
    {
        var ring = (kvm_coalesced_mmio_ring*)((byte*)vcpus.All[0].KvmRun + KVM_COALESCED_MMIO_PAGE_OFFSET * 4096);
        _ringLock.Enter();
        bool ok = EnqueueLocked(ring, address, data, pio);
        _ringLock.Exit();
        return ok;
    }

    private static unsafe bool EnqueueLocked(kvm_coalesced_mmio_ring* ring, ulong address, ReadOnlySpan<byte> data, uint pio)
    {
        uint last = Volatile.Read(ref ring->last);
        if (last >= s_max)
            return false;
        uint next = (last + 1) % s_max;
        if (next == Volatile.Read(ref ring->first) % s_max)
            return false;
        kvm_coalesced_mmio* e = (kvm_coalesced_mmio*)(ring + 1) + last;
        e->phys_addr = address;
        e->len = (uint)data.Length;
        e->pio = pio;
        data.CopyTo(new Span<byte>(e->data, 8));
        // The entry before the index that publishes it.
        Volatile.Write(ref ring->last, next);
        return true;
    }
}

using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>
/// Coalesced I/O: writes to registered zones are queued in a ring instead of leaving for the client, which drains it at its next exit. There is one ring a VM, in the shared area of its first vCPU.
/// </summary>
/// <remarks>SAFETY: the ring is the third page of the vCPU's run area; indices from the client are reduced before use.</remarks>
internal sealed unsafe class CoalescedZones
{
    private static readonly uint s_max = (uint)((4096 - sizeof(kvm_coalesced_mmio_ring)) / sizeof(kvm_coalesced_mmio));
    private readonly Lock _lock = new();
    private kvm_coalesced_mmio_zone[] _zones = [];
    private Sync.TinyLock _ringLock;

    public bool IsEmpty => Volatile.Read(ref _zones).Length == 0;

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int Register(in kvm_coalesced_mmio_zone zone)
    {
        if (zone.pio > 1)
            return -Errno.EINVAL;
        lock (_lock)
            Volatile.Write(ref _zones, [.. _zones, zone]);
        return 0;
    }

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: removes the zones that contain the given one.</summary>
    public int Unregister(kvm_coalesced_mmio_zone zone)
    {
        if (zone.pio > 1)
            return -Errno.EINVAL;
        lock (_lock)
            Volatile.Write(ref _zones, Array.FindAll(_zones, z => z.pio != zone.pio || zone.addr < z.addr || zone.addr + zone.size > z.addr + z.size));
        return 0;
    }

    /// <summary>Queues a write; false when no zone has it or the ring is full.</summary>
    public bool TryAdd(Vm vm, ulong address, ReadOnlySpan<byte> data, bool pio)
    {
        foreach (ref readonly var z in Volatile.Read(ref _zones).AsSpan())
        {
            if (z.pio == (pio ? 1u : 0) && address >= z.addr && address + (uint)data.Length <= z.addr + z.size && data.Length <= 8)
                return Enqueue((kvm_coalesced_mmio_ring*)((byte*)vm.Vcpus[0].KvmRun + KVM_COALESCED_MMIO_PAGE_OFFSET * 4096), address, data, pio);
        }
        return false;
    }

    private bool Enqueue(kvm_coalesced_mmio_ring* ring, ulong address, ReadOnlySpan<byte> data, bool pio)
    {
        _ringLock.Enter();
        bool ok = EnqueueLocked(ring, address, data, pio);
        _ringLock.Exit();
        return ok;
    }

    private static bool EnqueueLocked(kvm_coalesced_mmio_ring* ring, ulong address, ReadOnlySpan<byte> data, bool pio)
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
        e->pio = pio ? 1u : 0;
        data.CopyTo(new Span<byte>(e->data, 8));
        // The entry before the index that publishes it.
        Volatile.Write(ref ring->last, next);
        return true;
    }
}

using Ring3.Abi;

namespace Ring3.Memory;

/// <summary>
/// One vCPU's ring of dirty pages (KVM_CAP_DIRTY_LOG_RING), in memory shared with the client: the vCPU's thread pushes, the client collects and marks entries,
/// KVM_RESET_DIRTY_RINGS takes the marked ones back.
/// SPEC: api.rst, "KVM_CAP_DIRTY_LOG_RING".
/// </summary>
/// <remarks>
/// SAFETY: (whole file) indices are private and reduced before use; the client can only spoil the contents of entries, which are checked when they are read
/// back. The memory lives as long as the vCPU.
/// </remarks>
public sealed class DirtyRing
{
    /// <summary>Most entries of one ring, and entries that stay free so that what a vCPU dirties on its way out fits.</summary>
    public const int MaxEntries = 65536, ReservedEntries = 64;

    [ThreadStatic] private static DirtyRing? t_current;

    private readonly unsafe kvm_dirty_gfn* _entries;
    private readonly uint _size;
    private readonly Action _softFull;
    private uint _dirty, _reset;

    /// <param name="entries">Zeroed shared memory.</param>
    /// <param name="count">Number of entries, a power of two.</param>
    /// <param name="softFull">Called on the pushing thread when the ring has reached its soft limit.</param>
    public unsafe DirtyRing(kvm_dirty_gfn* entries, int count, Action softFull)
    {
        _entries = entries;
        _size = (uint)count;
        _softFull = softFull;
    }

    /// <summary>Ring of the vCPU that runs on this thread, or null.</summary>
    public static DirtyRing? Current
    {
        get => t_current;
        set => t_current = value;
    }

    /// <summary>The vCPU must go to the client before it may enter the guest again.</summary>
    public bool IsSoftFull => Volatile.Read(ref _dirty) - Volatile.Read(ref _reset) >= _size - ReservedEntries;

    /// <summary>Pages that can be added before the soft limit. The ring's own thread; others only make it larger.</summary>
    public uint RoomToSoftLimit
    {
        get
        {
            uint used = _dirty - Volatile.Read(ref _reset), limit = _size - ReservedEntries;
            return used < limit ? limit - used : 0;
        }
    }

    /// <summary>Adds a page. The ring's own thread only.</summary>
    public unsafe void Push(uint slot, ulong offset)
    {
        uint index = _dirty;
        // Cannot happen while the vCPU leaves at the soft limit; an entry that the client has not collected is never overwritten.
        if (index - Volatile.Read(ref _reset) >= _size)
            return;
        kvm_dirty_gfn* e = &_entries[index & (_size - 1)];
        e->slot = slot;
        e->offset = offset;
        // The entry before the flag that publishes it; the client reads the flag with acquire.
        Volatile.Write(ref e->flags, KvmApi.KVM_DIRTY_GFN_F_DIRTY);
        Volatile.Write(ref _dirty, index + 1);
        if (IsSoftFull)
            _softFull();
    }

    /// <summary>Takes the oldest entry back if the client has collected it. Callers are serialised by the slots lock.</summary>
    public unsafe bool TryTakeCollected(out uint slot, out ulong offset)
    {
        slot = 0;
        offset = 0;
        if (_reset == Volatile.Read(ref _dirty))
            return false;
        kvm_dirty_gfn* e = &_entries[_reset & (_size - 1)];
        if ((Volatile.Read(ref e->flags) & KvmApi.KVM_DIRTY_GFN_F_RESET) == 0)
            return false;
        slot = e->slot;
        offset = e->offset;
        Volatile.Write(ref e->flags, 0);
        Volatile.Write(ref _reset, _reset + 1);
        return true;
    }
}

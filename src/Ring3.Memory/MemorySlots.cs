using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>
/// The memory slots of a VM and the locks of its memory. Lookups are lock-free inside an RCU section; changes are serialised by <see cref="SlotsLock"/>.
/// Lock order: <see cref="SlotsLock"/>, then <see cref="MmuLock"/>. A thread in an RCU section must not take the slots lock.
/// </summary>
public sealed partial class MemorySlots
{
    /// <summary>Address spaces: normal and SMM.</summary>
    public const int AddressSpaces = 2;
    /// <summary>KVM_USER_MEM_SLOTS: slots a client may use in each address space; three more are internal.</summary>
    public const int UserSlots = 32764, InternalSlots = 3;
    /// <summary>Largest size of one slot, in pages.</summary>
    public const ulong MaxPagesPerSlot = (1UL << 31) - 1;
    /// <summary>Guest-physical addresses end here (52 bits), in pages.</summary>
    public const ulong MaxGfn = 1UL << (52 - Page.Shift);
    /// <summary>End of the host's user addresses.</summary>
    private const ulong HostUserEnd = 0x0000_7fff_ffff_f000;

    private readonly MemslotSet[] _active = [new(), new()];
    private readonly MemslotSet[] _inactive = [new(), new()];
    private readonly List<IMemslotListener> _listeners = [];
    private ulong _generation;

    public MemorySlots()
    {
        Notifier = new MmuNotifier(this);
        foreach (MemslotSet set in _active)
            set.Generation = _generation;
    }

    /// <summary>Serialises slot changes, dirty-log calls and "zap all fast".</summary>
    public FutexMutex SlotsLock { get; } = new(LockRank.SlotsLock);

    /// <summary>Protects the nested page tables and the notifier's state. See docs/locking.md.</summary>
    public MmuLock MmuLock { get; } = new(LockRank.MmuLock);

    /// <summary>Tells the VM that host memory changes.</summary>
    public MmuNotifier Notifier { get; }

    /// <summary>Dropped decoded code. Set before the first access.</summary>
    public ICodeWriteSink? CodeWriteSink { get; set; }

    /// <summary>Limits how much of the memory is resident; null: nothing does. While set, memory is mapped by small pages only.</summary>
    public IResidency? Residency
    {
        get => Volatile.Read(ref _residency);
        set => Volatile.Write(ref _residency, value);
    }

    private IResidency? _residency;

    /// <summary>KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 flags: KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE, KVM_DIRTY_LOG_INITIALLY_SET.</summary>
    public uint ManualDirtyLogProtect { get; set; }

    /// <summary>How slots are tracked whose logging begins from now on.</summary>
    public DirtyTracking DirtyTracking { get; set; }

    /// <summary>Slots may have private memory: KVM_MEM_GUEST_MEMFD and KVM_MEMORY_ATTRIBUTE_PRIVATE exist.</summary>
    public bool AllowPrivateMemory { get; init; }

    /// <summary>Address spaces of this VM: attributes know no SMM, so with private memory there is one.</summary>
    public int UsableAddressSpaces => AllowPrivateMemory ? 1 : AddressSpaces;

    /// <summary>Dirty pages go to the vCPUs' rings, and slots have no bitmap.</summary>
    public bool UseDirtyRings { get; set; }

    /// <summary>Generation of the published slots. Read it before a lookup whose result is used later; it has changed if any slot has.</summary>
    public ulong Generation => Volatile.Read(ref _generation);

    /// <summary>Sum of all slots' pages.</summary>
    public ulong TotalPages { get; private set; }

    public void AddListener(IMemslotListener listener)
    {
        using var _ = SlotsLock.Enter();
        _listeners.Add(listener);
    }

    /// <summary>The VM is gone: nothing accesses the slots' memory as guest memory any more. No slot call follows.</summary>
    public void Release()
    {
        using var _ = SlotsLock.Enter();
        foreach (MemslotSet set in _active)
            foreach (Memslot slot in set.Slots)
                FaultGuard.RemoveGuestMemory(slot.GuardTicket);
    }

    /// <summary>The published slots. The caller is in an RCU section (or holds the slots lock) as long as it uses the set.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public MemslotSet Set(int asId) => Volatile.Read(ref _active[asId]);

    /// <summary>Slot that contains a gfn, or null. Caller is in an RCU section. May return an invalid slot (see <see cref="Memslot.IsInvalid"/>).</summary>
    public Memslot? Find(ulong gfn, int asId = 0) => Set(asId).Find(gfn);

    /// <summary>As <see cref="Find(ulong, int)"/>, looking at the caller's last used slot first.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Memslot? Find(ulong gfn, int asId, ref MemslotCache cache)
    {
        MemslotSet set = Set(asId);
        if (cache.Generation == set.Generation && cache.Slot is { } last && last.Contains(gfn) && last.AsId == asId)
            return last;
        Memslot? slot = set.Find(gfn);
        if (slot is not null)
        {
            cache.Slot = slot;
            cache.Generation = set.Generation;
        }
        return slot;
    }

    /// <summary>Host virtual address of a guest-physical address.</summary>
    /// <param name="write">The caller wants to write: false for read-only slots.</param>
    /// <returns>False without a usable slot. The address is good until the end of the caller's RCU section.</returns>
    public bool TryGetHva(ulong gpa, out ulong hva, bool write = false, int asId = 0)
    {
        Memslot? slot = Find(gpa >> Page.Shift, asId);
        if (slot is null || slot.IsInvalid || (write && slot.IsReadOnly))
        {
            hva = 0;
            return false;
        }
        hva = slot.HvaOf(gpa >> Page.Shift) | (gpa & Page.OffsetMask);
        return true;
    }

    /// <summary>Pages from <paramref name="gpa"/> to the end of its slot share one linear host mapping: bytes left, at least 1. Caller is in an RCU
    /// section.</summary>
    public bool TryGetHvaRange(ulong gpa, out ulong hva, out ulong bytes, bool write = false, int asId = 0)
    {
        Memslot? slot = Find(gpa >> Page.Shift, asId);
        if (slot is null || slot.IsInvalid || (write && slot.IsReadOnly))
        {
            hva = bytes = 0;
            return false;
        }
        hva = slot.HvaOf(gpa >> Page.Shift) | (gpa & Page.OffsetMask);
        bytes = slot.HvaEnd - hva;
        return true;
    }
}

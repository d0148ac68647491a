using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Memory;

/// <summary>KVM_SET_USER_MEMORY_REGION: checks, publication, and the order of steps that keeps readers safe.</summary>
public sealed partial class MemorySlots
{
    /// <summary>Creates, deletes (size 0), moves or re-flags a slot. SPEC: api.rst, "KVM_SET_USER_MEMORY_REGION".</summary>
    /// <param name="slot">Bits 0-15 slot number, bits 16-31 address space.</param>
    /// <param name="flags">KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY.</param>
    /// <param name="guestPhysAddr">Bytes, page-aligned.</param>
    /// <param name="memorySize">Bytes, page-aligned; 0 deletes.</param>
    /// <param name="userspaceAddr">Host virtual address, page-aligned.</param>
    /// <returns>0, -EINVAL, or -EEXIST if the range overlaps another slot.</returns>
    public int SetRegion(uint slot, uint flags, ulong guestPhysAddr, ulong memorySize, ulong userspaceAddr)
    {
        if ((ushort)slot >= UserSlots || (flags & KvmApi.KVM_MEM_GUEST_MEMFD) != 0)
            return -Errno.EINVAL;
        using var _ = SlotsLock.Enter();
        return SetRegionLocked(slot, flags, guestPhysAddr, memorySize, userspaceAddr);
    }

    /// <summary>KVM_SET_USER_MEMORY_REGION2: as SetRegion, and with KVM_MEM_GUEST_MEMFD the slot has private memory too. SPEC: api.rst,
    /// "KVM_SET_USER_MEMORY_REGION2".</summary>
    /// <param name="memory">What region.guest_memfd stands for, null when that is no guest_memfd.</param>
    /// <returns>0, -EINVAL or -EEXIST.</returns>
    public int SetRegion(in kvm_userspace_memory_region2 region, GuestMemfd? memory)
    {
        if ((ushort)region.slot >= UserSlots)
            return -Errno.EINVAL;
        using var _ = SlotsLock.Enter();
        return SetRegionLocked(region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr, memory, region.guest_memfd_offset);
    }

    /// <inheritdoc cref="SetRegion(uint, uint, ulong, ulong, ulong)"/>
    public int SetRegion(in kvm_userspace_memory_region region)
        => SetRegion(region.slot, region.flags, region.guest_phys_addr, region.memory_size, region.userspace_addr);

    /// <summary>A slot of the hypervisor itself (TSS, identity map, APIC page): <paramref name="index"/> 0 to 2. Otherwise as SetRegion.</summary>
    public int SetInternalRegion(int index, uint flags, ulong guestPhysAddr, ulong memorySize, ulong userspaceAddr, int asId = 0)
    {
        if ((uint)index >= InternalSlots)
            return -Errno.EINVAL;
        using var _ = SlotsLock.Enter();
        return SetRegionLocked((uint)(UserSlots + index) | (uint)asId << 16, flags, guestPhysAddr, memorySize, userspaceAddr);
    }

    private uint KnownFlags(uint flags)
    {
        uint known = KvmApi.KVM_MEM_LOG_DIRTY_PAGES | KvmApi.KVM_MEM_READONLY;
        if (!AllowPrivateMemory)
            return known;
        // Private memory is neither logged nor read-only.
        return (flags & KvmApi.KVM_MEM_GUEST_MEMFD) != 0 ? KvmApi.KVM_MEM_GUEST_MEMFD : known;
    }

    private int SetRegionLocked(uint slot, uint flags, ulong gpa, ulong size, ulong hva, GuestMemfd? memory = null, ulong memoryOffset = 0)
    {
        SlotsLock.AssertHeld();
        int asId = (int)(slot >> 16);
        int id = (ushort)slot;
        bool hasPrivate = (flags & KvmApi.KVM_MEM_GUEST_MEMFD) != 0;
        if ((flags & ~KnownFlags(flags)) != 0)
            return -Errno.EINVAL;
        if (((gpa | size | hva) & Page.OffsetMask) != 0)
            return -Errno.EINVAL;
        if (hva > HostUserEnd || size > HostUserEnd - hva)
            return -Errno.EINVAL;
        if (hasPrivate && ((memoryOffset & Page.OffsetMask) != 0 || memoryOffset + size < memoryOffset))
            return -Errno.EINVAL;
        if (asId >= UsableAddressSpaces || gpa + size < gpa || size >> Page.Shift > MaxPagesPerSlot)
            return -Errno.EINVAL;

        Memslot? old = _active[asId].ById(id);
        if (size == 0)
            return old is null ? -Errno.EINVAL : DeleteLocked(old);

        ulong baseGfn = gpa >> Page.Shift, npages = size >> Page.Shift;
        MemslotChange change = MemslotChange.Create;
        if (old is not null)
        {
            // A slot with private memory never changes; it can only be deleted.
            if (hasPrivate || hva != old.UserspaceAddr || npages != old.NPages
                || ((flags ^ old.Flags) & (KvmApi.KVM_MEM_READONLY | KvmApi.KVM_MEM_GUEST_MEMFD)) != 0)
                return -Errno.EINVAL;
            if (baseGfn == old.BaseGfn && flags == old.Flags)
                return 0;
            change = baseGfn != old.BaseGfn ? MemslotChange.Move : MemslotChange.FlagsOnly;
        }
        if (change != MemslotChange.FlagsOnly && _active[asId].Overlaps(baseGfn, npages, id))
            return -Errno.EEXIST;
        if (baseGfn + npages > MaxGfn || hasPrivate && memory?.CanBind(this, memoryOffset, size) != true)
            return -Errno.EINVAL;

        var added = new Memslot
        {
            Id = (ushort)id, AsId = (byte)asId, BaseGfn = baseGfn, NPages = npages, UserspaceAddr = hva, Flags = flags,
            DirtyBitmap = (flags & KvmApi.KVM_MEM_LOG_DIRTY_PAGES) == 0 || UseDirtyRings ? null
                : old?.DirtyBitmap ?? new DirtyBitmap(npages, (ManualDirtyLogProtect & KvmApi.KVM_DIRTY_LOG_INITIALLY_SET) != 0),
            Tracking = TrackingFor(old, flags),
            PrivateMemory = hasPrivate ? memory : null, PrivatePage = hasPrivate ? memoryOffset >> Page.Shift : 0,
        };
        if (hasPrivate)
            memory!.Bind(added);
        Apply(old, added, change, asId);
        if (change == MemslotChange.Create)
            TotalPages += npages;
        return 0;
    }

    /// <summary>A slot that is logged already keeps its tracking. Rings need to be told of a page when it is written, so scanning does not serve
    /// them.</summary>
    private DirtyTracking TrackingFor(Memslot? old, uint flags)
    {
        if ((flags & KvmApi.KVM_MEM_LOG_DIRTY_PAGES) != 0 && old is { IsDirtyLogged: true })
            return old.Tracking;
        return DirtyTracking == DirtyTracking.Automatic || DirtyTracking == DirtyTracking.DirtyScan && UseDirtyRings ? DirtyTracking.DirtyLog : DirtyTracking;
    }

    private int DeleteLocked(Memslot old)
    {
        Apply(old, null, MemslotChange.Delete, old.AsId);
        old.PrivateMemory?.Unbind(old);
        TotalPages -= old.NPages;
        return 0;
    }

    private void Apply(Memslot? old, Memslot? added, MemslotChange change, int asId)
    {
        if (added is not null)
            added.GuardTicket = old?.GuardTicket ?? FaultGuard.AddGuestMemory(added.UserspaceAddr, added.HvaEnd);
        Memslot? current = old;
        if (change is MemslotChange.Delete or MemslotChange.Move)
        {
            // First make the slot invisible to new mappings, wait for those who still see it, and remove what they have mapped: only then may the gfns mean
            // something else.
            current = old!.AsInvalid();
            Publish(old, current, asId);
            foreach (IMemslotListener listener in _listeners)
                listener.FlushMemslot(old);
        }
        Publish(current, added, asId);
        foreach (IMemslotListener listener in _listeners)
            listener.CommitMemslot(old, added, change);
        if (added is null)
            FaultGuard.RemoveGuestMemory(old!.GuardTicket);
    }

    /// <summary>Publishes the other set with one slot exchanged, waits for the readers of the first, and brings the first up to date.</summary>
    private void Publish(Memslot? old, Memslot? added, int asId)
    {
        SlotsLock.AssertHeld();
        MemslotSet next = _inactive[asId], previous = _active[asId];
        next.Replace(old, added);
        ulong generation = _generation + 1;
        next.Generation = generation;
        // PAIRS-WITH: Set (acquire). The generation follows the set: who sees the new generation finds the new set.
        Volatile.Write(ref _active[asId], next);
        Volatile.Write(ref _generation, generation);
        Rcu.Synchronize();
        previous.Replace(old, added);
        _inactive[asId] = previous;
    }
}

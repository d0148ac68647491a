using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

// SAFETY: client addresses are only followed by UserCopy; other pointers are to locals and pinned arrays.
namespace Ring3.DevKvm;

// The VM's ioctls about memory.
internal sealed unsafe partial class VmObject
{
    private const ulong PageSize = 4096;

    private long MemoryIoctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        switch (command)
        {
            case KVM_SET_USER_MEMORY_REGION:
                return UserCopy.TryRead(argument, out kvm_userspace_memory_region region) ? SetRegion(region) : -Errno.EFAULT;
            case KVM_SET_USER_MEMORY_REGION2:
                return UserCopy.TryRead(argument, out kvm_userspace_memory_region2 region2) ? SetRegion2(region2) : -Errno.EFAULT;
            case KVM_GET_DIRTY_LOG:
                return UserCopy.TryRead(argument, out kvm_dirty_log log) ? GetDirtyLog(log) : -Errno.EFAULT;
            case KVM_CLEAR_DIRTY_LOG:
                return UserCopy.TryRead(argument, out kvm_clear_dirty_log clear) ? ClearDirtyLog(clear) : -Errno.EFAULT;
            case KVM_REGISTER_COALESCED_MMIO:
                return UserCopy.TryRead(argument, out kvm_coalesced_mmio_zone zone) ? Vm.RegisterCoalescedMmio(zone) : -Errno.EFAULT;
            case KVM_UNREGISTER_COALESCED_MMIO:
                return UserCopy.TryRead(argument, out kvm_coalesced_mmio_zone old) ? Vm.UnregisterCoalescedMmio(old) : -Errno.EFAULT;
            case KVM_SET_NR_MMU_PAGES:
                // The number of shadow pages: there are none, as in KVM with two-dimensional paging.
                return argument < 64 ? -Errno.EINVAL : 0;
            case KVM_SET_TSS_ADDR:
                // Where Intel processors without unrestricted guest mode keep a TSS. This one has real mode.
                return argument > 0xffff_d000 ? -Errno.EINVAL : 0;
            case KVM_SET_IDENTITY_MAP_ADDR:
                return Vm.Vcpus.Length != 0 ? -Errno.EINVAL : UserCopy.TryRead(argument, out ulong _) ? 0 : -Errno.EFAULT;
            default:
                return -Errno.ENOTTY;
        }
    }

    private int SetRegion(in kvm_userspace_memory_region r)
    {
        if ((r.flags & ~(KVM_MEM_LOG_DIRTY_PAGES | KVM_MEM_READONLY)) != 0)
            return -Errno.EINVAL;
        return SetRegion2(new kvm_userspace_memory_region2 { slot = r.slot, flags = r.flags, guest_phys_addr = r.guest_phys_addr, memory_size = r.memory_size, userspace_addr = r.userspace_addr });
    }

    private int SetRegion2(in kvm_userspace_memory_region2 r)
    {
        ClientMemory.Extend(r.userspace_addr, r.userspace_addr + Math.Min(r.memory_size, ulong.MaxValue - r.userspace_addr));
        return Vm.SetUserMemoryRegion(r.slot, r.flags, r.guest_phys_addr, r.memory_size, r.userspace_addr);
    }

    /// <summary>Bytes of a slot's dirty bitmap, which KVM rounds up to 64-bit words; 0 when there is no such slot.</summary>
    private nuint BitmapBytes(uint slot)
    {
        if (slot >> 16 >= MemorySlots.AddressSpaces || (ushort)slot >= MemorySlots.UserSlots)
            return 0;
        using var _ = Sync.Rcu.Read();
        return Vm.Slots.Set((int)(slot >> 16)).ById((ushort)slot) is { } s ? (nuint)((s.NPages + 63) / 64 * 8) : 0;
    }

    private int GetDirtyLog(in kvm_dirty_log log)
    {
        var words = new ulong[Math.Max(BitmapBytes(log.slot) / 8, 1)];
        fixed (ulong* bitmap = words)
        {
            int r = Vm.Mmu.GetDirtyLog(log.slot, bitmap);
            return r != 0 ? r : UserCopy.TryWrite(log.dirty_bitmap, bitmap, (nuint)words.Length * 8) ? 0 : -Errno.EFAULT;
        }
    }

    private int ClearDirtyLog(in kvm_clear_dirty_log log)
    {
        nuint bytes = ((nuint)log.num_pages + 63) / 64 * 8;
        if (bytes > BitmapBytes(log.slot))
            bytes = 0;
        var words = new ulong[Math.Max(bytes / 8, 1)];
        fixed (ulong* bitmap = words)
        {
            if (bytes != 0 && !UserCopy.TryRead(log.dirty_bitmap, bitmap, bytes))
                return -Errno.EFAULT;
            return Vm.Mmu.ClearDirtyLog(log.slot, log.first_page, log.num_pages, bitmap);
        }
    }
}

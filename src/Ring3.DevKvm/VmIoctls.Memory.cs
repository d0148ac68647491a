using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

// SAFETY: arguments are copied to locals first; bitmaps and buffers of the client are written by UserCopy, which a bad address makes fail.
namespace Ring3.DevKvm;

// The VM's ioctls about memory.
internal sealed partial class VmObject
{
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
                return UserCopy.TryRead(argument, out kvm_dirty_log log) ? Vm.GetDirtyLog(log) : -Errno.EFAULT;
            case KVM_CLEAR_DIRTY_LOG:
                return UserCopy.TryRead(argument, out kvm_clear_dirty_log clear) ? Vm.ClearDirtyLog(clear) : -Errno.EFAULT;
            case KVM_REGISTER_COALESCED_MMIO:
                return UserCopy.TryRead(argument, out kvm_coalesced_mmio_zone zone) ? Vm.RegisterCoalescedMmio(zone) : -Errno.EFAULT;
            case KVM_UNREGISTER_COALESCED_MMIO:
                return UserCopy.TryRead(argument, out kvm_coalesced_mmio_zone old) ? Vm.UnregisterCoalescedMmio(old) : -Errno.EFAULT;
            case KVM_SET_MEMORY_ATTRIBUTES:
                return UserCopy.TryRead(argument, out kvm_memory_attributes attributes) ? Vm.SetMemoryAttributes(attributes) : -Errno.EFAULT;
            case KVM_CREATE_GUEST_MEMFD:
                return CreateGuestMemfd(argument, out fd);
            case KVM_RESET_DIRTY_RINGS:
                return Vm.ResetDirtyRings();
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
        return SetRegion2(new kvm_userspace_memory_region2 { slot = r.slot, flags = r.flags, guest_phys_addr = r.guest_phys_addr, memory_size = r.memory_size,
            userspace_addr = r.userspace_addr });
    }

    private int SetRegion2(in kvm_userspace_memory_region2 r)
    {
        GuestMemfd? memory = null;
        if ((r.flags & KVM_MEM_GUEST_MEMFD) != 0 && r.memory_size != 0)
        {
            int error = FindGuestMemfd((int)r.guest_memfd, out memory);
            if (error != 0)
                return error;
        }
        ClientMemory.Extend(r.userspace_addr, r.userspace_addr + Math.Min(r.memory_size, ulong.MaxValue - r.userspace_addr));
        return Vm.SetUserMemoryRegion(r, memory);
    }

    /// <summary>The memory behind a descriptor of the client: null when it is something else, -EBADF when it is not open.</summary>
    private static unsafe int FindGuestMemfd(int fd, out GuestMemfd? memory)
    {
        memory = null;
        if (FileDescriptor.LinkTarget(fd) is null)
            return -Errno.EBADF;
        if (KvmDevice.FdHandle != null && ObjectTable.Find(KvmDevice.FdHandle(fd)) is GuestMemfdObject o)
            memory = o.Memory;
        return 0;
    }

    private int CreateGuestMemfd(ulong argument, out NewFd fd)
    {
        fd = default;
        if (!UserCopy.TryRead(argument, out kvm_create_guest_memfd args))
            return -Errno.EFAULT;
        int r = Vm.CreateGuestMemfd(args, out GuestMemfd? memory);
        if (r != 0)
            return r;
        Interlocked.Increment(ref _references);
        r = Descriptors.Publish(new GuestMemfdObject(this, memory!), memory!.Fd, out fd);
        if (r < 0)
            Put();
        return r;
    }
}

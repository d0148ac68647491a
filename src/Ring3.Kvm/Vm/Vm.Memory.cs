using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

// SAFETY: reads inside the structures it is given.
namespace Ring3.Kvm;

// Memory slots, dirty logs and rings, private memory.
public sealed unsafe partial class Vm
{
    /// <summary>Bytes of each vCPU's dirty ring (KVM_CAP_DIRTY_LOG_RING); 0: pages are logged in bitmaps.</summary>
    public int DirtyRingBytes { get; private set; }

    /// <summary>KVM_SET_USER_MEMORY_REGION2.</summary>
    /// <param name="memory">What region.guest_memfd stands for; null when it is no guest_memfd.</param>
    /// <returns>0, -EINVAL, -EEXIST, -EIO.</returns>
    public int SetUserMemoryRegion(in kvm_userspace_memory_region2 region, GuestMemfd? memory) => IsDead ? -Errno.EIO : Slots.SetRegion(region, memory);

    /// <summary>KVM_GET_DIRTY_LOG: 0, -EINVAL, -ENOENT, -ENXIO with dirty rings, -EFAULT.</summary>
    public int GetDirtyLog(in kvm_dirty_log log) => Mmu.GetDirtyLog(log.slot, log.dirty_bitmap);

    /// <summary>KVM_CLEAR_DIRTY_LOG: 0, -EINVAL, -ENOENT, -ENXIO with dirty rings, -EFAULT.</summary>
    public int ClearDirtyLog(in kvm_clear_dirty_log log) => Mmu.ClearDirtyLog(log.slot, log.first_page, log.num_pages, log.dirty_bitmap);

    /// <summary>KVM_RESET_DIRTY_RINGS: number of entries taken back, or -EINVAL without rings.</summary>
    public int ResetDirtyRings()
    {
        if (DirtyRingBytes == 0)
            return -Errno.EINVAL;
        var rings = new List<DirtyRing>();
        foreach (Vcpu v in Vcpus)
            rings.Add(v.DirtyRing!);
        return Mmu.ResetDirtyRings(System.Runtime.InteropServices.CollectionsMarshal.AsSpan(rings));
    }

    /// <summary>KVM_CREATE_GUEST_MEMFD. The descriptor belongs to the caller; when its last copy is closed, <see cref="GuestMemfd.Release"/> is due.</summary>
    /// <returns>0, -EINVAL, or the host's errno.</returns>
    public int CreateGuestMemfd(in kvm_create_guest_memfd args, out GuestMemfd? memory)
    {
        memory = null;
        return args.flags != 0 ? -Errno.EINVAL : GuestMemfd.Create(Slots, args.size, out memory);
    }

    /// <summary>KVM_SET_MEMORY_ATTRIBUTES: 0 or -EINVAL.</summary>
    public int SetMemoryAttributes(in kvm_memory_attributes args) => Slots.SetAttributes(args);

    /// <summary>What KVM_CHECK_EXTENSION answers differently for this VM than for the system; null: no difference.</summary>
    private int? CheckMemoryExtension(int capability) => capability switch
    {
        KVM_CAP_GUEST_MEMFD => Slots.AllowPrivateMemory ? 1 : 0,
        KVM_CAP_MEMORY_ATTRIBUTES => (int)Slots.SupportedAttributes,
        KVM_CAP_MULTI_ADDRESS_SPACE when Slots.AllowPrivateMemory => 1,
        _ => null,
    };

    /// <summary>KVM_ENABLE_CAP for capabilities about memory.</summary>
    private int EnableMemoryCap(in kvm_enable_cap cap)
    {
        ulong arg = cap.args[0];
        switch ((int)cap.cap)
        {
            case KVM_CAP_DIRTY_LOG_RING or KVM_CAP_DIRTY_LOG_RING_ACQ_REL:
                return EnableDirtyRing(arg);
            case KVM_CAP_VM_DISABLE_NX_HUGE_PAGES:
                return DisableNxHugePages(arg);
            default:
                return -Errno.EINVAL;
        }
    }

    /// <summary>KVM asks for the permission first: without the mitigation a guest could stop its host.</summary>
    private int DisableNxHugePages(ulong arg)
    {
        if (!Host.Privileges.MayReboot)
            return -Errno.EPERM;
        lock (_lock)
        {
            if (arg != 0 || _vcpus.Length != 0)
                return -Errno.EINVAL;
            Mmu.NxHugePages = false;
        }
        return 0;
    }

    private int EnableDirtyRing(ulong bytes)
    {
        if (bytes == 0 || !ulong.IsPow2(bytes) || bytes < (ulong)(DirtyRing.ReservedEntries * sizeof(kvm_dirty_gfn)) || bytes < Page.Size)
            return -Errno.EINVAL;
        if (bytes > (ulong)(DirtyRing.MaxEntries * sizeof(kvm_dirty_gfn)))
            return -Errno.E2BIG;
        lock (_lock)
        {
            if (DirtyRingBytes != 0 || _vcpus.Length != 0)
                return -Errno.EINVAL;
            DirtyRingBytes = (int)bytes;
            Slots.UseDirtyRings = true;
        }
        return 0;
    }
}

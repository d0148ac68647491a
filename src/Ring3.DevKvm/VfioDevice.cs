using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.DevKvm;

/// <summary>
/// The kvm-vfio device, through which KVM learns which VFIO files belong to a VM. There is no DMA and no cache attribute to arrange here, so it only keeps the
/// list.
/// </summary>
internal sealed class VfioDevice : KvmObject
{
    private readonly VmObject _vm;
    private readonly RankedLock _lock = new(LockRank.VfioDevice);
    private readonly List<int> _files = [];

    private VfioDevice(VmObject vm) => _vm = vm;

    public override ObjectKind Kind => ObjectKind.Device;
    public override string Name => $"{_vm.Name}.vfio";

    /// <summary>KVM_CREATE_DEVICE: 0, -EBUSY for a second one, or what making a descriptor gives.</summary>
    public static int Create(VmObject vm, out NewFd fd)
    {
        fd = default;
        if (!vm.TryClaimVfio())
            return -Errno.EBUSY;
        int r = vm.CreateDependent(new VfioDevice(vm), "kvm-vfio", out fd);
        if (r < 0)
            vm.ReleaseVfio();
        return r;
    }

    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        if (_vm.Vm.IsDead)
            return -Errno.EIO;
        if (command == KVM_GET_DEVICE_ATTR)
            return -Errno.EPERM;
        if (command is not (KVM_SET_DEVICE_ATTR or KVM_HAS_DEVICE_ATTR))
            return -Errno.ENOTTY;
        if (!UserCopy.TryRead(argument, out kvm_device_attr attr))
            return -Errno.EFAULT;
        if (attr.group != KVM_DEV_VFIO_FILE || attr.attr is not (KVM_DEV_VFIO_FILE_ADD or KVM_DEV_VFIO_FILE_DEL))
            return -Errno.ENXIO;
        if (command == KVM_HAS_DEVICE_ATTR)
            return 0;
        if (!UserCopy.TryRead(attr.addr, out int file))
            return -Errno.EFAULT;
        using (_lock.Enter())
            return attr.attr == KVM_DEV_VFIO_FILE_ADD ? AddFile(file) : RemoveFile(file);
    }

    private int AddFile(int file)
    {
        if (FileDescriptor.LinkTarget(file) is not { } target)
            return -Errno.EBADF;
        if (!target.StartsWith("/dev/vfio/", StringComparison.Ordinal))
            return -Errno.EINVAL;
        if (_files.Contains(file))
            return -Errno.EEXIST;
        _files.Add(file);
        return 0;
    }

    private int RemoveFile(int file)
    {
        if (FileDescriptor.LinkTarget(file) is null)
            return -Errno.EBADF;
        return _files.Remove(file) ? 0 : -Errno.ENOENT;
    }

    public override void Close()
    {
        _vm.ReleaseVfio();
        _vm.Put();
    }
}

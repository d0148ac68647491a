namespace Ring3.DevKvm;

/// <summary>
/// The front door: what an open of /dev/kvm, an ioctl on one of its descriptors and their last close do. Results are 0 or positive, or -errno.
/// </summary>
/// <remarks>SAFETY: client addresses are numbers here; only the checked copy routine follows them.</remarks>
public static unsafe class KvmDevice
{
    /// <summary>Handle of the object behind a descriptor of the client, 0 when it is not one of ours. Set by the host of this library.</summary>
    public static delegate* unmanaged<int, ulong> FdHandle;

    /// <summary>open("/dev/kvm"): 0, or -errno.</summary>
    public static long Open(out NewFd fd)
    {
        fd = default;
        return -Abi.Errno.ENODEV;
    }

    /// <summary>ioctl on a descriptor of the object <paramref name="handle"/>.</summary>
    public static long Ioctl(ulong handle, uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        return -Abi.Errno.ENOTTY;
    }

    /// <summary>The last descriptor of an object was closed.</summary>
    public static void Release(ulong handle)
    {
    }

    /// <summary>read or pread of a descriptor: number of bytes, or -errno.</summary>
    public static long Read(ulong handle, byte* buffer, ulong length, long offset) => -Abi.Errno.EINVAL;

    /// <summary>Address of the vCPU's signal words (see <c>VcpuSignal</c>), 0 when the handle is no vCPU.</summary>
    public static nint VcpuSignalAddress(ulong handle) => 0;

    /// <summary>The client is about to change the mapping of [lo, hi): the guest must not use it until <see cref="InvalidateEnd"/>. True when a VM was concerned and End must be called.</summary>
    public static bool InvalidateStart(ulong lo, ulong hi) => false;

    public static void InvalidateEnd(ulong lo, ulong hi)
    {
    }

    /// <summary>Whether any byte of [lo, hi) belongs to a memory slot.</summary>
    public static bool IsClientMemory(ulong lo, ulong hi) => false;

    /// <summary>Two 64-bit words, [lo, hi): an interval that contains the client memory of all slots of all VMs; lo >= hi when there is none. Read by the interposer without a call.</summary>
    public static ulong* ClientMemoryBounds => s_bounds;

    private static readonly ulong* s_bounds = (ulong*)System.Runtime.InteropServices.NativeMemory.AllocZeroed(16);
}

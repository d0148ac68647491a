using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.DevKvm;

/// <summary>
/// The front door: what an open of /dev/kvm, an ioctl on one of its descriptors and their last close do. Results are 0 or positive, or -errno. Any thread.
/// </summary>
/// <remarks>SAFETY: client addresses are numbers here; only the checked copy routine follows them.</remarks>
public static class KvmDevice
{
    /// <summary>Handle of the object behind a descriptor of the client, 0 when it is not one of ours. Set by the host of this library.</summary>
    public static unsafe delegate* unmanaged<int, ulong> FdHandle;

    /// <summary>open("/dev/kvm"): 0, or -errno.</summary>
    public static long Open(out NewFd fd)
    {
        long r = Descriptors.Create(new SystemObject(), "kvm", out fd);
        if (Tracer.IsOn)
            Tracer.Open(r, fd);
        return r;
    }

    /// <summary>ioctl on a descriptor of the object <paramref name="handle"/>. -EBADF when the handle was released.</summary>
    public static long Ioctl(ulong handle, uint command, ulong argument, out NewFd fd)
    {
        if (ObjectTable.Find(handle) is not { } o)
        {
            fd = default;
            return -Errno.EBADF;
        }
        return Tracer.IsOn ? Tracer.Ioctl(o, command, argument, out fd) : Call(o, command, argument, out fd);
    }

    /// <summary><see cref="Ioctl"/> with KVM_RUN, in fewer steps.</summary>
    /// <param name="thread">Number of the calling thread: the caller's choice, not 0, and never given to two threads.</param>
    public static long Run(ulong handle, ulong argument, int thread)
    {
        if (!Tracer.IsOn && ObjectTable.Find(handle) is VcpuObject v)
            return v.Run(argument, thread);
        return OtherRun(handle, argument);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static long OtherRun(ulong handle, ulong argument) => Ioctl(handle, KvmApi.KVM_RUN, argument, out _);

    /// <summary>The ioctl itself.</summary>
    internal static long Call(KvmObject o, uint command, ulong argument, out NewFd fd)
    {
        try
        {
            return o.Ioctl(command, argument, out fd);
        }
        catch (Exception e)
        {
            fd = default;
            return Failed(o, e);
        }
    }

    /// <summary>A defect that shows as an exception costs the VM, never the client's process.</summary>
    internal static long Failed(KvmObject o, Exception e)
    {
        switch (e)
        {
            case OutOfMemoryException:
                return -Errno.ENOMEM;
            case HostCallException h:
                return -h.Errno;
        }
        Vm? vm = (o as VmObject)?.Vm ?? (o as VcpuObject)?.Vcpu.Vm;
        vm?.BugOn(true, e.ToString());
        return -Errno.EIO;
    }

    /// <summary>The last descriptor of an object was closed. Calls that are inside it go on.</summary>
    public static void Release(ulong handle)
    {
        if (ObjectTable.Remove(handle) is not { } o)
            return;
        if (Tracer.IsOn)
            Tracer.Close(o);
        o.Close();
    }

    /// <summary>read or pread of a descriptor: number of bytes, or -errno.</summary>
    public static unsafe long Read(ulong handle, byte* buffer, ulong length, long offset) =>
        ObjectTable.Find(handle) is { } o ? o.Read((ulong)buffer, length, offset) : -Errno.EBADF;

    /// <summary>By descriptor number, below <see cref="IrqfdWrites.Slots"/>: not 0 where a write of 8 bytes is worth <see cref="TryWriteIrqfd"/>. Read by the
    /// interposer without a call.</summary>
    public static unsafe byte* IrqfdHints => IrqfdWrites.Enable();

    /// <summary>A write of 8 bytes to a descriptor that may be an irqfd's: true when it is done; false when nothing was done and the write is to be
    /// made.</summary>
    public static bool TryWriteIrqfd(int fd, ulong buffer) => IrqfdWrites.TryWrite(fd, buffer);

    /// <summary>Address of the signal words of a vCPU (see <see cref="VcpuSignal"/>), 0 when the handle is no vCPU. Valid as long as the handle.</summary>
    public static unsafe nint VcpuSignalAddress(ulong handle) => ObjectTable.Find(handle) is VcpuObject v ? (nint)v.Vcpu.Signal : 0;

    /// <summary>The client is about to change the mapping of [lo, hi): the guest does not use it until <see cref="InvalidateEnd"/>. True when a VM was
    /// concerned and End must be called.</summary>
    public static bool InvalidateStart(ulong lo, ulong hi) => ClientMemory.InvalidateStart(lo, hi);

    /// <summary>The change announced by <see cref="InvalidateStart"/> is done, or failed.</summary>
    public static void InvalidateEnd(ulong lo, ulong hi) => ClientMemory.InvalidateEnd(lo, hi);

    /// <summary>Whether any byte of [lo, hi) belongs to a memory slot.</summary>
    internal static bool IsClientMemory(ulong lo, ulong hi) => ClientMemory.Contains(lo, hi);

    /// <summary>Two 64-bit words, [lo, hi): an interval that contains the client memory of all slots of all VMs; lo >= hi when there is none. Read by the
    /// interposer without a call.</summary>
    public static unsafe ulong* ClientMemoryBounds => ClientMemory.Bounds;

    /// <summary>The process is about to end: prints what RING3_STATS asked for.</summary>
    public static void ProcessEnds() => Tracer.ProcessEnds();

    /// <summary>What broke the VM of an object, or null: since then its calls give -EIO.</summary>
    internal static string? BugMessage(ulong handle) => ObjectTable.Find(handle) switch
    {
        VmObject v => v.Vm.BugMessage,
        VcpuObject v => v.Vcpu.Vm.BugMessage,
        _ => null,
    };

    /// <summary>Objects that exist: the client's open descriptors without duplicates.</summary>
    internal static int OpenObjects => ObjectTable.Count;
}

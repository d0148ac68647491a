using Ring3.Abi;

namespace Ring3.DevKvm;

/// <summary>What a KVM descriptor stands for. An object lives from its creation to the last close of its descriptors and the end of the calls that were inside
/// it then.</summary>
internal abstract class KvmObject
{
    /// <summary>Name of the object in the client's table; see <see cref="ObjectTable"/>. Set once, when it enters the table.</summary>
    public ulong Handle { get; set; }

    public abstract ObjectKind Kind { get; }

    /// <summary>Number in traces: /dev/kvm's are named kvm0, a VM vm3, its vCPU vm3.cpu0.</summary>
    public abstract string Name { get; }

    /// <summary>An ioctl of the client: 0 or positive, or -errno.</summary>
    public abstract long Ioctl(uint command, ulong argument, out NewFd fd);

    /// <summary>The last descriptor was closed. Other threads may still be inside <see cref="Ioctl"/>.</summary>
    public abstract void Close();

    /// <summary>read or pread at <paramref name="offset"/>: bytes read, or -errno.</summary>
    public virtual long Read(ulong buffer, ulong length, long offset) => -Errno.EINVAL;
}

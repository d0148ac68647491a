using Ring3.Memory;

namespace Ring3.DevKvm;

/// <summary>A guest_memfd's descriptor: the memory itself as far as fallocate and fstat go. It keeps its VM alive, and its slots lose their private memory when
/// it is closed.</summary>
internal sealed class GuestMemfdObject(VmObject vm, GuestMemfd memory) : KvmObject
{
    public GuestMemfd Memory => memory;
    public override ObjectKind Kind => ObjectKind.GuestMemfd;
    public override string Name => $"{vm.Name}.gmem";

    public override long Ioctl(uint command, ulong argument, out NewFd fd)
    {
        fd = default;
        return -Abi.Errno.ENOTTY;
    }

    public override void Close()
    {
        memory.Release();
        vm.Put();
    }
}

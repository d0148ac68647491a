using Ring3.Abi;

namespace Ring3.Kvm;

/// <summary>The buses of a VM, and the eventfds and zones of the client that are on them.</summary>
internal sealed class VmBuses
{
    private readonly Ioeventfds _ioeventfds;
    private readonly CoalescedZones _zones;

    public VmBuses(VcpuList vcpus)
    {
        _ioeventfds = new Ioeventfds(Ports, Mmio);
        _zones = new CoalescedZones(vcpus, Ports, Mmio);
    }

    /// <summary>I/O ports of the hypervisor's devices.</summary>
    public IoBus Ports { get; } = IoBus.OfPorts();

    /// <summary>Memory-mapped devices of the hypervisor besides the local APICs.</summary>
    public IoBus Mmio { get; } = new();

    /// <summary>KVM_IOEVENTFD: 0, -EINVAL, -EEXIST, -ENOENT, -EBADF, -EMFILE.</summary>
    public int SetIoeventfd(in kvm_ioeventfd args) => _ioeventfds.Set(args);

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0, -EINVAL, -ENOSPC.</summary>
    public int AddZone(in kvm_coalesced_mmio_zone zone) => _zones.Register(zone);

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int RemoveZones(in kvm_coalesced_mmio_zone zone) => _zones.Unregister(zone);

    public void Close() => _ioeventfds.Close();
}

using Ring3.Abi;

namespace Ring3.Kvm;

// The buses, and the eventfds and zones of the client that are on them. See Io/.
public sealed partial class Vm
{
    private readonly Irqfds _irqfds;
    private readonly Ioeventfds _ioeventfds;
    private readonly CoalescedZones _zones;

    /// <summary>I/O ports of the hypervisor's devices.</summary>
    internal IoBus Ports { get; } = IoBus.OfPorts();

    /// <summary>Memory-mapped devices of the hypervisor besides the local APICs.</summary>
    internal IoBus Mmio { get; } = new();

    /// <summary>KVM_IRQFD: attaches an eventfd to a GSI, or detaches it (KVM_IRQFD_FLAG_DEASSIGN). 0, -EINVAL, -EBUSY, -EBADF, -EMFILE.</summary>
    public int RegisterIrqfd(in kvm_irqfd args) => _irqfds.Set(args);

    /// <summary>KVM_IOEVENTFD: signals an eventfd on a guest's write to an address. 0, -EINVAL, -EEXIST, -ENOENT, -EBADF, -EMFILE.</summary>
    public int RegisterIoeventfd(in kvm_ioeventfd args) => _ioeventfds.Set(args);

    /// <summary>KVM_REGISTER_COALESCED_MMIO: 0, -EINVAL, -ENOSPC.</summary>
    public int RegisterCoalescedMmio(in kvm_coalesced_mmio_zone zone) => _zones.Register(zone);

    /// <summary>KVM_UNREGISTER_COALESCED_MMIO: 0 or -EINVAL.</summary>
    public int UnregisterCoalescedMmio(in kvm_coalesced_mmio_zone zone) => _zones.Unregister(zone);

    private void CloseEventfds()
    {
        _ioeventfds.Close();
        _irqfds.Close();
    }
}

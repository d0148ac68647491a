using Ring3.Abi;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>Routes and messages that end in a Xen guest's event channel.</summary>
internal sealed class XenRoutes(XenMachine machine) : IRouteExtension
{
    public int Validate(in kvm_irq_routing_entry entry) =>
        entry.type == KVM_IRQ_ROUTING_XEN_EVTCHN ? machine.Side.ValidateRoute(entry.xen_evtchn) : -Errno.EINVAL;

    public int Fire(in kvm_irq_routing_entry entry, bool level) =>
        level ? machine.Side.SendOrDefer(new(entry.xen_evtchn.port, entry.xen_evtchn.vcpu, entry.xen_evtchn.priority)) : -Errno.EINVAL;

    public bool TryMessage(uint addressLow, uint addressHigh, uint data, out int result)
    {
        result = 0;
        return machine.SideOrNull is { } xen && xen.TryMessage(addressLow, addressHigh, data, out result);
    }
}

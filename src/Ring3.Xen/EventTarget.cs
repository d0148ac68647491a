using Ring3.Sync;

namespace Ring3.Xen;

/// <summary>Where an event goes: a port, the KVM id of the vCPU that is notified, and a priority (KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, or 0 to 15 with FIFO
/// channels).</summary>
public readonly record struct EventTarget(uint Port, uint Vcpu, uint Priority);

/// <summary>What the guest's EVTCHNOP_send on a port does. Immutable: a change publishes another object.</summary>
internal sealed class PortBinding
{
    public required uint SendPort { get; init; }
    /// <summary>EVTCHNSTAT_ipi or EVTCHNSTAT_interdomain.</summary>
    public required uint Type { get; init; }
    /// <summary>Port 0 stands for <see cref="EventFd"/>.</summary>
    public EventTarget Target { get; init; }
    public RcuEventFd? EventFd { get; init; }
}

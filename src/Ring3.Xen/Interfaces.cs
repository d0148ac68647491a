namespace Ring3.Xen;

/// <summary>What a virtual machine offers to its Xen side.</summary>
public interface IXenMachine
{
    /// <summary>kvmclock now, in nanoseconds. Any thread.</summary>
    long ClockNs { get; }

    /// <summary>Wall-clock time at kvmclock's zero, in nanoseconds since 1970.</summary>
    long WallClockEpochNs { get; }

    /// <summary>Every vCPU writes its clock pages again before it next enters the guest.</summary>
    void RequestClockUpdate();

    /// <summary>The vCPU with a KVM id (not a Xen id), or null. Any thread.</summary>
    XenVcpu? FindVcpu(uint kvmId);

    /// <summary>The vCPU at a position (<see cref="IXenProcessor.Index"/>), or null. Any thread.</summary>
    XenVcpu? VcpuAt(int index);

    /// <summary>Queues <see cref="XenVm.DeliverDeferred"/> on a thread that may wait. Any thread; never blocks.</summary>
    void QueueDeferred();

    /// <summary>Waits until what was queued before has been delivered. No lock from the Xen side's down is held, and no RCU section.</summary>
    void FlushDeferred();
}

/// <summary>What a virtual processor offers to its Xen side. Any thread unless said otherwise; nothing here blocks.</summary>
public interface IXenProcessor
{
    /// <summary>KVM's id of the vCPU.</summary>
    uint Id { get; }

    /// <summary>Position among the VM's vCPUs: the Xen id until the client tells another.</summary>
    int Index { get; }

    bool HasLapic { get; }

    /// <summary>Wakes the vCPU or gets it out of the guest, so that it looks at its events. The caller has published them before.</summary>
    void KickForEvents();

    /// <summary>Delivers a fixed interrupt to the local APIC of this vCPU.</summary>
    void InjectVector(byte vector);

    /// <summary>This vCPU writes its clock pages again before it next enters the guest.</summary>
    void RequestClockUpdate();

    /// <summary>One timer, absolute in kvmclock nanoseconds; calls <see cref="XenVcpu.TimerExpired"/> (possibly late, possibly after a cancellation). A
    /// deadline in the past fires at once.</summary>
    void ArmTimer(ulong deadlineClockNs);

    void CancelTimer();

    /// <summary>Time for which the host ran something else though this vCPU's thread was runnable, in nanoseconds, monotonic. Owner thread; 0 when
    /// unknown.</summary>
    long RunDelayNs { get; }

    /// <summary>Sleeps until an event, an interrupt, a kick or the timeout (-1: none). Owner thread, outside the guest.</summary>
    void WaitForEvent(Func<bool> ready, long timeoutNs);

    /// <summary>Lets the host run something else. Owner thread.</summary>
    void Yield();

    /// <summary>Reads guest memory by linear address as the guest's supervisor would. Owner thread. False: the address is not mapped.</summary>
    bool ReadVirtual(ulong gva, Span<byte> destination);
}

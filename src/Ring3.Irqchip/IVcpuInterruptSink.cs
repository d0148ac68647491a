namespace Ring3.Irqchip;

/// <summary>
/// What a virtual processor offers to its local APIC. Every method may be called from any thread, must not block, and must not call back into the interrupt
/// controllers (callers may hold a controller's lock).
/// </summary>
public interface IVcpuInterruptSink
{
    /// <summary>
    /// The set of deliverable interrupts may have grown: a new bit in IRR, a lower processor priority, or the PIC's output. Make the Event request, wake the
    /// vCPU if it is halted, and kick it if it is in guest mode and the caller is another thread. A full barrier has been executed after the state change.
    /// </summary>
    void InterruptPending();

    /// <summary>Queues a non-maskable interrupt (KVM's nmi_queued), wakes and kicks.</summary>
    void RaiseNmi();

    /// <summary>Queues a system management interrupt, wakes and kicks.</summary>
    void RaiseSmi();

    /// <summary>INIT: the vCPU discards a latched SIPI, resets itself (its local APIC by <see cref="Lapic.Reset"/> with init = true) and, unless it is the boot
    /// processor, waits for SIPI.</summary>
    void RaiseInit();

    /// <summary>Start-up IPI: code starts at <paramref name="vector"/> * 4096 if the vCPU waits for it, else it is ignored.</summary>
    void RaiseSipi(byte vector);

    /// <summary>Split irqchip: the guest wrote EOI for a vector of the client's IOAPIC. The vCPU leaves with KVM_EXIT_IOAPIC_EOI. Called on the vCPU's thread
    /// only.</summary>
    void IoapicEoi(byte vector);

    /// <summary>The guest's time-stamp counter now.</summary>
    ulong GuestTsc();

    /// <summary>Frequency of the guest's time-stamp counter in kHz; not zero.</summary>
    uint GuestTscKhz { get; }
}

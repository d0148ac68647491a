namespace Ring3.Kvm;

/// <summary>
/// A request to a vCPU. Bits 0-7: number, the bit in the vCPU's request word. Bits 8-10: flags. Bits 11-13: the modes in which the vCPU must be kicked (and,
/// with <see cref="Wait"/>, waited for).
/// KVM: flags as in Linux. The mode mask is an extension: a request without mask bits behaves as in Linux.
/// </summary>
internal readonly record struct VcpuRequest(uint Value)
{
    public const uint NumberMask = 0xff;

    /// <summary>A halted vCPU is not woken: the request matters only before it next enters the guest.</summary>
    public const uint NoWakeup = 1 << 8;
    /// <summary>The requester returns only when the vCPU has left every mode of the mask in which it was found.</summary>
    public const uint Wait = 1 << 9;
    /// <summary>No bit is set in the request word: only the kick or the wait matters.</summary>
    public const uint NoAction = 1 << 10;

    /// <summary>Kick or wait when the vCPU is in the guest.</summary>
    public const uint WhenInGuest = 1 << 11;
    /// <summary>Wait also when the vCPU was kicked before and has not left yet.</summary>
    public const uint WhenExiting = 1 << 12;
    /// <summary>Wait also when the vCPU reads shadow page tables.</summary>
    public const uint WhenReading = 1 << 13;
    public const uint ModeMask = WhenInGuest | WhenExiting | WhenReading;

    /// <summary>First number of the requests that belong to x86.</summary>
    public const uint ArchBase = 8;

    public static readonly VcpuRequest TlbFlush = new(0 | Wait | NoWakeup | ModeMask);
    public static readonly VcpuRequest VmDead = new(1 | Wait | NoWakeup);
    public static readonly VcpuRequest Unblock = new(2 | WhenInGuest);
    /// <summary>The owner of the VM wants KVM_RUN to return with -EINTR.</summary>
    public static readonly VcpuRequest UserKick = new(3 | WhenInGuest);

    /// <summary>The dirty ring has reached its soft limit.</summary>
    public static readonly VcpuRequest DirtyRingSoftFull = new(4 | NoWakeup | WhenInGuest);

    public static readonly VcpuRequest TripleFault = new(ArchBase + 0 | WhenInGuest);
    /// <summary>Interrupt state changed: evaluate injection before the next entry.</summary>
    public static readonly VcpuRequest Event = new(ArchBase + 1 | WhenInGuest);
    public static readonly VcpuRequest Nmi = new(ArchBase + 2 | WhenInGuest);
    public static readonly VcpuRequest Smi = new(ArchBase + 3 | WhenInGuest);
    /// <summary>Update the pvclock page of this vCPU.</summary>
    public static readonly VcpuRequest ClockUpdate = new(ArchBase + 4 | NoWakeup | WhenInGuest);
    public static readonly VcpuRequest MasterClockUpdate = new(ArchBase + 5 | NoWakeup | WhenInGuest);
    public static readonly VcpuRequest StealUpdate = new(ArchBase + 6 | NoWakeup | WhenInGuest);
    /// <summary>Flush the translations of this vCPU only.</summary>
    public static readonly VcpuRequest TlbFlushCurrent = new(ArchBase + 7 | NoWakeup | WhenInGuest);
    /// <summary>Flush what the guest itself would flush (paravirtual TLB flush).</summary>
    public static readonly VcpuRequest TlbFlushGuest = new(ArchBase + 8 | Wait | NoWakeup | ModeMask);
    public static readonly VcpuRequest FreeObsoleteRoots = new(ArchBase + 9 | Wait | NoWakeup | ModeMask);
    /// <summary>I/O APIC routes changed: recompute which vectors need an EOI exit.</summary>
    public static readonly VcpuRequest ScanIoapic = new(ArchBase + 10 | NoWakeup | WhenInGuest);
    public static readonly VcpuRequest McClockInProgress = new(ArchBase + 11 | Wait | NoWakeup | ModeMask);
    public static readonly VcpuRequest IoapicEoiExit = new(ArchBase + 12 | WhenInGuest);
    /// <summary>Leave with KVM_EXIT_TPR_ACCESS.</summary>
    public static readonly VcpuRequest ReportTprAccess = new(ArchBase + 14 | WhenInGuest);

    /// <summary>Flush what was derived from the guest frames in <see cref="TlbRangeQueue"/>.</summary>
    public static readonly VcpuRequest TlbFlushRange = new(ArchBase + 13 | Wait | NoWakeup | ModeMask);

    /// <summary>Returns when each vCPU has been outside the guest at some time since the call; nothing is left for it to do.</summary>
    public static readonly VcpuRequest OutsideGuestMode = new(NoAction | Wait | NoWakeup | WhenInGuest | WhenExiting);

    /// <summary>As <see cref="OutsideGuestMode"/>, and each vCPU has also been done with reading (and marking) tables on the guest's behalf.</summary>
    public static readonly VcpuRequest OutsideAllModes = new(NoAction | Wait | NoWakeup | ModeMask);

    public int Number => (int)(Value & NumberMask);
    public ulong Bit => 1UL << Number;
    public bool Has(uint flag) => (Value & flag) != 0;

    /// <summary>Whether a vCPU found in <paramref name="mode"/> needs the kick or the wait.</summary>
    public bool Concerns(VcpuMode mode)
    {
        uint mask = Value & ModeMask;
        if (mask == 0)
            mask = Has(Wait) ? ModeMask : WhenInGuest;
        return mode != VcpuMode.OutsideGuestMode && (mask >> (10 + (int)mode) & 1) != 0;
    }
}

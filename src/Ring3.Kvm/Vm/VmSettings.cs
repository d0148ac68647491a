using Ring3.Abi;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>What the client chooses for a VM by KVM_ENABLE_CAP. A choice that is about one part is that part's; the others are here.</summary>
internal sealed class VmSettings(VmCore core, VmMemory memory, VmInterrupts interrupts, MsrPolicy msrs)
{
    /// <summary>Hypercalls that can go to the client: KVM_HC_MAP_GPA_RANGE.</summary>
    public const uint SupportedHypercallExits = 1u << 12;

    private long _haltPollNs = -1;

    /// <summary>Client learns exceptions before their side effects (KVM_CAP_EXCEPTION_PAYLOAD).</summary>
    public bool ExceptionPayloads { get; private set; }

    /// <summary>The client can save and inject a triple fault (KVM_CAP_X86_TRIPLE_FAULT_EVENT).</summary>
    public bool TripleFaultEvents { get; private set; }

    /// <summary>KVM_X86_QUIRK_* that the client turned off.</summary>
    public uint DisabledQuirks { get; private set; }

    /// <summary>HLT never leaves KVM_RUN (KVM_X86_DISABLE_EXITS_HLT).</summary>
    public bool HaltsInGuest { get; private set; }

    /// <summary>A guest that spins is left alone (KVM_X86_DISABLE_EXITS_PAUSE).</summary>
    public bool PausesInGuest { get; private set; }

    /// <summary>Bus locks of the guest leave KVM_RUN (KVM_CAP_X86_BUS_LOCK_EXIT with KVM_BUS_LOCK_DETECTION_EXIT).</summary>
    public bool BusLockExits { get; private set; }

    /// <summary>KVM_X86_NOTIFY_VMEXIT_* that the client set.</summary>
    public uint NotifyFlags { get; private set; }

    /// <summary>Ticks of the host's TSC without a window for events after which a vCPU leaves the guest, with <see cref="NotifyFlags"/>.</summary>
    public uint NotifyWindow { get; private set; }

    /// <summary>Bits are numbers of hypercalls that go to the client (KVM_CAP_EXIT_HYPERCALL).</summary>
    public uint HypercallExits { get; private set; }

    /// <summary>
    /// MMIO by instructions that KVM's emulator does not have goes to the client as KVM_INTERNAL_ERROR_EMULATION; otherwise it is carried out.
    /// </summary>
    public bool ExitsOnEmulationFailure { get; private set; }

    /// <summary>
    /// Longest poll of a halted vCPU, in nanoseconds. 0 when there are more vCPUs than host processors: then a poll takes time from the one that is waited
    /// for.
    /// </summary>
    public long HaltPollNs => core.Vcpus.Count > Environment.ProcessorCount ? 0 : _haltPollNs >= 0 ? _haltPollNs : core.Options.HaltPollNs;

    /// <summary>KVM_ENABLE_CAP on the VM: 0 or -EINVAL, or what the capability answers.</summary>
    /// <remarks>SAFETY: the first of the structure's arguments is in it.</remarks>
    public unsafe int Enable(in kvm_enable_cap cap)
    {
        if (cap.flags != 0)
            return -Errno.EINVAL;
        ulong arg = cap.args[0];
        return (int)cap.cap switch
        {
            // Memory.
            KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 => memory.SetManualDirtyLogProtect(arg),
            KVM_CAP_DIRTY_LOG_RING or KVM_CAP_DIRTY_LOG_RING_ACQ_REL => memory.EnableDirtyRing(arg),
            KVM_CAP_VM_DISABLE_NX_HUGE_PAGES => memory.DisableNxHugePages(arg),
            // Interrupts.
            KVM_CAP_SPLIT_IRQCHIP => interrupts.CreateSplit((uint)Math.Min(arg, uint.MaxValue)),
            KVM_CAP_X2APIC_API => interrupts.EnableX2ApicApi(arg),
            KVM_CAP_X86_APIC_BUS_CYCLES_NS => interrupts.SetBusPeriod(arg),
            // vCPUs.
            KVM_CAP_MAX_VCPU_ID => core.Vcpus.SetMaxIds(arg),
            KVM_CAP_HALT_POLL => SetHaltPoll(arg),
            KVM_CAP_X86_DISABLE_EXITS => DisableExits(arg),
            KVM_CAP_DISABLE_QUIRKS => DisableQuirks((uint)arg & Capabilities.Quirks),
            KVM_CAP_DISABLE_QUIRKS2 => (arg & ~(ulong)Capabilities.Quirks) != 0 ? -Errno.EINVAL : DisableQuirks((uint)arg),
            // Events and exits of vCPUs.
            KVM_CAP_EXCEPTION_PAYLOAD => Done(ExceptionPayloads = arg != 0),
            KVM_CAP_X86_TRIPLE_FAULT_EVENT => Done(TripleFaultEvents = arg != 0),
            KVM_CAP_EXIT_HYPERCALL => SetHypercallExits(arg),
            KVM_CAP_EXIT_ON_EMULATION_FAILURE => SetEmulationFailureExits(arg),
            KVM_CAP_X86_BUS_LOCK_EXIT => SetBusLockDetection(arg),
            KVM_CAP_X86_NOTIFY_VMEXIT => SetNotifyWindow(arg),
            // MSRs.
            KVM_CAP_X86_USER_SPACE_MSR => msrs.SetUserSpaceMask(arg),
            KVM_CAP_MSR_PLATFORM_INFO => Done(msrs.PlatformInfoReadable = arg != 0),
            _ => -Errno.EINVAL,
        };
    }

    /// <summary>For a capability that accepts everything.</summary>
    private static int Done(bool _) => 0;

    private int SetHaltPoll(ulong ns)
    {
        if (ns > uint.MaxValue)
            return -Errno.EINVAL;
        _haltPollNs = (uint)ns;
        return 0;
    }

    private int DisableQuirks(uint quirks)
    {
        DisabledQuirks |= quirks;
        memory.Mmu.SlotZapAll &= (quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL) == 0;
        foreach (Vcpu v in core.Vcpus.All)
            v.UpdateMonitor();
        return 0;
    }

    /// <summary>MWAIT and C-states are accepted as KVM does on a host that cannot leave them to the guest: nothing changes.</summary>
    private int DisableExits(ulong exits)
    {
        const uint Known = KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_CSTATE;
        if ((exits & ~(ulong)Known) != 0)
            return -Errno.EINVAL;
        HaltsInGuest |= (exits & KVM_X86_DISABLE_EXITS_HLT) != 0;
        PausesInGuest |= (exits & KVM_X86_DISABLE_EXITS_PAUSE) != 0;
        return 0;
    }

    private int SetHypercallExits(ulong numbers)
    {
        if ((numbers & ~(ulong)SupportedHypercallExits) != 0)
            return -Errno.EINVAL;
        HypercallExits = (uint)numbers;
        return 0;
    }

    private int SetEmulationFailureExits(ulong argument)
    {
        if (argument > 1)
            return -Errno.EINVAL;
        ExitsOnEmulationFailure = argument != 0;
        ApplyExitPolicies();
        return 0;
    }

    /// <summary>KVM_CAP_X86_BUS_LOCK_EXIT: the two modes exclude each other.</summary>
    private int SetBusLockDetection(ulong modes)
    {
        const uint Both = KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT;
        if ((modes & ~(ulong)Both) != 0 || modes == Both)
            return -Errno.EINVAL;
        BusLockExits = (modes & KVM_BUS_LOCK_DETECTION_EXIT) != 0;
        ApplyExitPolicies();
        return 0;
    }

    /// <summary>KVM_CAP_X86_NOTIFY_VMEXIT: flags in bits 31:0, window in bits 63:32; before the first vCPU.</summary>
    private int SetNotifyWindow(ulong argument)
    {
        uint flags = (uint)argument;
        if ((flags & ~(KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER)) != 0 || (flags & KVM_X86_NOTIFY_VMEXIT_ENABLED) == 0)
            return -Errno.EINVAL;
        using (core.Shaping.Enter())
        {
            if (core.Vcpus.Count != 0)
                return -Errno.EINVAL;
            (NotifyFlags, NotifyWindow) = (flags, (uint)(argument >> 32));
        }
        return 0;
    }

    private void ApplyExitPolicies()
    {
        foreach (Vcpu v in core.Vcpus.All)
            v.ApplyExitPolicies();
    }
}

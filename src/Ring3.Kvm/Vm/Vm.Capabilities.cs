using Ring3.Abi;
using Ring3.Irqchip;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers are to locals, or to blocks that live as long as their VM.
namespace Ring3.Kvm;

// KVM_ENABLE_CAP, and the settings it makes.
public sealed unsafe partial class Vm
{
    /// <summary>Client learns exceptions before their side effects (KVM_CAP_EXCEPTION_PAYLOAD).</summary>
    public bool ExceptionPayloadEnabled { get; private set; }
    public bool TripleFaultEventEnabled { get; private set; }
    /// <summary>KVM_X86_QUIRK_* that the client turned off.</summary>
    public uint DisabledQuirks { get; private set; }
    /// <summary>HLT never leaves KVM_RUN (KVM_X86_DISABLE_EXITS_HLT).</summary>
    public bool HaltsInGuest { get; private set; }
    /// <summary>A guest that spins is left alone (KVM_X86_DISABLE_EXITS_PAUSE).</summary>
    public bool PausesInGuest { get; private set; }
    /// <summary>Hypercalls that can go to the client: KVM_HC_MAP_GPA_RANGE.</summary>
    internal const uint SupportedHypercallExits = 1u << 12;

    /// <summary>Bus locks of the guest leave KVM_RUN (KVM_CAP_X86_BUS_LOCK_EXIT with KVM_BUS_LOCK_DETECTION_EXIT).</summary>
    public bool BusLockExits { get; private set; }
    /// <summary>KVM_X86_NOTIFY_VMEXIT_* that the client set.</summary>
    public uint NotifyFlags { get; private set; }
    /// <summary>Ticks of the host's TSC without a window for events after which a vCPU leaves the guest, with <see cref="NotifyFlags"/>.</summary>
    public uint NotifyWindow { get; private set; }

    /// <summary>Bits are numbers of hypercalls that go to the client (KVM_CAP_EXIT_HYPERCALL).</summary>
    public uint HypercallExits { get; private set; }
    /// <summary>MMIO by instructions that KVM's emulator does not have goes to the client as KVM_INTERNAL_ERROR_EMULATION; otherwise it is carried out.</summary>
    public bool ExitsOnEmulationFailure { get; private set; }
    /// <summary>Whether the guest can read MSR_PLATFORM_INFO (KVM_CAP_MSR_PLATFORM_INFO).</summary>
    public bool PlatformInfoReadable { get; private set; } = true;
    /// <summary>KVM_MSR_EXIT_REASON_* for which the client handles MSR accesses.</summary>
    public uint UserSpaceMsrMask { get; private set; }
    internal MsrFilter? MsrFilter { get; private set; }

    private long _haltPollNs = -1;

    /// <summary>Longest poll of a halted vCPU, in nanoseconds. 0 when there are more vCPUs than host processors: then a poll takes time from the one that is waited for.</summary>
    public long HaltPollNs => _vcpus.Length > Environment.ProcessorCount ? 0 : _haltPollNs >= 0 ? _haltPollNs : Options.HaltPollNs;

    /// <summary>KVM_X86_SET_MSR_FILTER: 0, -EINVAL, or -EFAULT when a bitmap cannot be read.</summary>
    public int SetMsrFilter(in kvm_msr_filter filter)
    {
        int r = MsrFilter.Create(filter, out MsrFilter? created);
        if (r != 0)
            return r;
        lock (_lock)
        {
            MsrFilter = created;
            foreach (Vcpu v in Vcpus)
                v.InterceptMsrs();
        }
        return 0;
    }

    /// <summary>KVM_CHECK_EXTENSION on the VM: what this VM can do.</summary>
    public int CheckExtension(int capability) => CheckMemoryExtension(capability) ?? Capabilities.Check(capability);

    /// <summary>The older form ignores what it does not know.</summary>
    private int DisableQuirks(ulong quirks, bool checkedForm)
    {
        if (checkedForm && (quirks & ~(ulong)Capabilities.Quirks) != 0)
            return -Errno.EINVAL;
        DisabledQuirks |= (uint)quirks & Capabilities.Quirks;
        Mmu.SlotZapAll &= (quirks & KVM_X86_QUIRK_SLOT_ZAP_ALL) == 0;
        foreach (Vcpu v in Vcpus)
            v.UpdateMonitor();
        return 0;
    }

    /// <summary>MWAIT and C-states are accepted as KVM does on a host that cannot leave them to the guest: nothing changes.</summary>
    private int DisableExits(ulong exits)
    {
        if ((exits & ~(ulong)(KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_PAUSE | KVM_X86_DISABLE_EXITS_CSTATE)) != 0)
            return -Errno.EINVAL;
        HaltsInGuest |= (exits & KVM_X86_DISABLE_EXITS_HLT) != 0;
        PausesInGuest |= (exits & KVM_X86_DISABLE_EXITS_PAUSE) != 0;
        return 0;
    }

    /// <summary>KVM_CAP_X86_BUS_LOCK_EXIT: the two modes exclude each other.</summary>
    private int SetBusLockDetection(ulong modes)
    {
        if ((modes & ~(ulong)(KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT)) != 0 || modes == (KVM_BUS_LOCK_DETECTION_OFF | KVM_BUS_LOCK_DETECTION_EXIT))
            return -Errno.EINVAL;
        BusLockExits = (modes & KVM_BUS_LOCK_DETECTION_EXIT) != 0;
        foreach (Vcpu v in Vcpus)
            v.ApplyExitPolicies();
        return 0;
    }

    /// <summary>KVM_CAP_X86_NOTIFY_VMEXIT: flags in bits 31:0, window in bits 63:32; before the first vCPU.</summary>
    private int SetNotifyWindow(ulong argument)
    {
        uint flags = (uint)argument;
        if ((flags & ~(KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER)) != 0 || (flags & KVM_X86_NOTIFY_VMEXIT_ENABLED) == 0)
            return -Errno.EINVAL;
        lock (_lock)
        {
            if (_vcpus.Length != 0)
                return -Errno.EINVAL;
            (NotifyFlags, NotifyWindow) = (flags, (uint)(argument >> 32));
        }
        return 0;
    }

    /// <summary>KVM_X2APIC_API_* that the client has set: they hold for the interrupt controller that is there, or that comes.</summary>
    private uint _x2ApicApi;

    private void ApplyX2ApicApi(ApicBus bus)
    {
        bus.X2ApicFormat = (_x2ApicApi & KVM_X2APIC_API_USE_32BIT_IDS) != 0;
        bus.BroadcastQuirkDisabled = (_x2ApicApi & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) != 0;
    }

    /// <summary>KVM_ENABLE_CAP on the VM: 0 or -EINVAL.</summary>
    public int EnableCap(in kvm_enable_cap cap)
    {
        if (cap.flags != 0)
            return -Errno.EINVAL;
        ulong arg = cap.args[0];
        switch ((int)cap.cap)
        {
            case KVM_CAP_SPLIT_IRQCHIP:
                return CreateSplitIrqchip((uint)Math.Min(arg, uint.MaxValue));
            case KVM_CAP_X2APIC_API:
                if ((arg & ~(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)) != 0 )
                    return -Errno.EINVAL;
                lock (_lock)
                {
                    _x2ApicApi |= (uint)arg;
                    if (Irqchip is { } chip)
                        ApplyX2ApicApi(chip.Bus);
                }
                return 0;
            case KVM_CAP_EXCEPTION_PAYLOAD:
                ExceptionPayloadEnabled = arg != 0;
                return 0;
            case KVM_CAP_X86_TRIPLE_FAULT_EVENT:
                TripleFaultEventEnabled = arg != 0;
                return 0;
            case KVM_CAP_X86_USER_SPACE_MSR:
                if ((arg & ~(ulong)(KVM_MSR_EXIT_REASON_INVAL | KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER)) != 0)
                    return -Errno.EINVAL;
                UserSpaceMsrMask = (uint)arg;
                foreach (Vcpu v in Vcpus)
                    v.InterceptMsrs();
                return 0;
            case KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2:
                if ((arg & ~(ulong)(KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE | KVM_DIRTY_LOG_INITIALLY_SET)) != 0 || arg == KVM_DIRTY_LOG_INITIALLY_SET)
                    return -Errno.EINVAL;
                Slots.ManualDirtyLogProtect = (uint)arg;
                return 0;
            case KVM_CAP_HALT_POLL:
                if (arg > uint.MaxValue)
                    return -Errno.EINVAL;
                _haltPollNs = (uint)arg;
                return 0;
            case KVM_CAP_DISABLE_QUIRKS2 or KVM_CAP_DISABLE_QUIRKS:
                return DisableQuirks(arg, (int)cap.cap == KVM_CAP_DISABLE_QUIRKS2);
            case KVM_CAP_X86_DISABLE_EXITS:
                return DisableExits(arg);
            case KVM_CAP_EXIT_HYPERCALL:
                if ((arg & ~(ulong)SupportedHypercallExits) != 0)
                    return -Errno.EINVAL;
                HypercallExits = (uint)arg;
                return 0;
            case KVM_CAP_EXIT_ON_EMULATION_FAILURE:
                if ((arg & ~1UL) != 0)
                    return -Errno.EINVAL;
                ExitsOnEmulationFailure = arg != 0;
                foreach (Vcpu v in Vcpus)
                    v.ApplyExitPolicies();
                return 0;
            case KVM_CAP_X86_BUS_LOCK_EXIT:
                return SetBusLockDetection(arg);
            case KVM_CAP_X86_NOTIFY_VMEXIT:
                return SetNotifyWindow(arg);
            case KVM_CAP_MSR_PLATFORM_INFO:
                PlatformInfoReadable = arg != 0;
                return 0;
            case KVM_CAP_MAX_VCPU_ID:
                return SetMaxVcpuIds(arg);
            case KVM_CAP_X86_APIC_BUS_CYCLES_NS:
                if (Irqchip is null || arg is 0 or > uint.MaxValue || Vcpus.Length != 0)
                    return -Errno.EINVAL;
                ApicBus.BusPeriodNs = (uint)arg;
                return 0;
            default:
                return EnableMemoryCap(cap);
        }
    }
}

using Ring3.Abi;
using Ring3.Irqchip;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

namespace Ring3.Kvm;

/// <summary>Interrupt controllers of a VM, and what drives them from outside: routes, lines, messages, irqfds.</summary>
/// <param name="foreign">Routes that are no interrupt controller's.</param>
internal sealed class VmInterrupts(VmCore core, VmBuses buses, IRouteExtension foreign)
{
    private readonly Irqfds _irqfds = new(core.Health);
    private IoapicMmio? _ioapicMmio;

    /// <summary>KVM_X2APIC_API_* that the client has set: they hold for the interrupt controller that is there, or that comes.</summary>
    private uint _x2ApicApi;

    /// <summary>In-kernel controllers, or null until <see cref="Create()"/> (or the split irqchip) made them.</summary>
    public VmIrqchip? Chip { get; private set; }

    // ---- Making them ----

    /// <summary>KVM_CREATE_IRQCHIP: PIC, I/O APIC and local APICs. Before the first vCPU. 0, -EEXIST, -EINVAL, -EMFILE, -ENOMEM.</summary>
    public int Create() => Create(split: false, 0);

    /// <summary>KVM_CAP_SPLIT_IRQCHIP. See <see cref="Vm.CreateSplitIrqchip"/>.</summary>
    public int CreateSplit(uint reservedRoutes) => reservedRoutes > IrqRouting.MaxRoutes ? -Errno.EINVAL : Create(split: true, (int)reservedRoutes);

    private int Create(bool split, int reservedRoutes)
    {
        using (core.Shaping.Enter())
        {
            if (Chip is not null)
                return -Errno.EEXIST;
            if (core.Vcpus.Count != 0)
                return split ? -Errno.EEXIST : -Errno.EINVAL;
            // A host without descriptors says so here, not when the first timer is armed.
            int error = EventLoop.Shared.TryStart();
            if (error != 0)
                return error;
            var chip = split ? new VmIrqchip(EventLoop.Shared, true, reservedRoutes, Vm.MaxVcpus) : new VmIrqchip(EventLoop.Shared, maxVcpus: Vm.MaxVcpus);
            chip.Failed = e => core.Health.Bug(e.ToString());
            if (chip.Pic is { } pic)
                PicPorts.AddTo(buses.Ports, pic);
            if (chip.Ioapic is { } ioapic)
                _ioapicMmio = new IoapicMmio(buses.Mmio, ioapic);
            chip.Routing.Extension = foreign;
            ApplyX2ApicApi(chip.Bus);
            Chip = chip;
        }
        return 0;
    }

    /// <summary>KVM_CREATE_PIT2. 0, -EEXIST, or -ENOENT without a full in-kernel irqchip.</summary>
    public int CreatePit(uint flags)
    {
        using (core.Shaping.Enter())
        {
            if (Chip is not { Split: false } chip)
                return -Errno.ENOENT;
            if (chip.CreatePit((flags & KVM_PIT_SPEAKER_DUMMY) != 0) is not { } pit)
                return -Errno.EEXIST;
            PitPorts.AddTo(buses.Ports, pit, speaker: (flags & KVM_PIT_SPEAKER_DUMMY) != 0);
        }
        return 0;
    }

    /// <summary>KVM_CAP_X2APIC_API: 0 or -EINVAL.</summary>
    public int EnableX2ApicApi(ulong flags)
    {
        if ((flags & ~(KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK)) != 0)
            return -Errno.EINVAL;
        using (core.Shaping.Enter())
        {
            _x2ApicApi |= (uint)flags;
            if (Chip is { } chip)
                ApplyX2ApicApi(chip.Bus);
        }
        return 0;
    }

    private void ApplyX2ApicApi(ApicBus bus)
    {
        bus.X2ApicFormat = (_x2ApicApi & KVM_X2APIC_API_USE_32BIT_IDS) != 0;
        bus.BroadcastQuirkDisabled = (_x2ApicApi & KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK) != 0;
    }

    /// <summary>KVM_CAP_X86_APIC_BUS_CYCLES_NS: 0, or -EINVAL without controllers or after the first vCPU.</summary>
    public int SetBusPeriod(ulong ns)
    {
        if (Chip is not { } chip || ns is 0 or > uint.MaxValue || core.Vcpus.Count != 0)
            return -Errno.EINVAL;
        chip.Bus.BusPeriodNs = (uint)ns;
        return 0;
    }

    // ---- Driving them ----

    /// <summary>KVM_SET_GSI_ROUTING: 0 or -EINVAL.</summary>
    public int SetRouting(ReadOnlySpan<kvm_irq_routing_entry> entries)
    {
        if (Chip is null)
            return -Errno.EINVAL;
        int r = Chip.Routing.Set(entries);
        if (r == 0 && Chip.Split)
            core.Vcpus.Make(VcpuRequest.ScanIoapic);
        return r;
    }

    /// <summary>KVM_IRQ_LINE, KVM_IRQ_LINE_STATUS. See <see cref="Vm.IrqLine"/>.</summary>
    public int SetLine(uint gsi, bool level, bool lineStatus) => Chip is null ? -Errno.ENXIO : Chip.SetIrq(VmIrqchip.UserSourceId, gsi, level, lineStatus);

    /// <summary>KVM_SIGNAL_MSI: positive: delivered; 0: blocked by the guest; -1: a broadcast that reaches nobody; -EINVAL.</summary>
    public int SignalMsi(in kvm_msi msi) => Chip is null ? -Errno.EINVAL : Chip.SetMsi(msi);

    /// <summary>KVM_IRQFD. See <see cref="Irqfds.Set"/>.</summary>
    public int SetIrqfd(in kvm_irqfd args) => _irqfds.Set(Chip, args);

    // ---- Their state ----

    /// <summary>KVM_GET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int GetState(ref kvm_irqchip state)
    {
        if (Chip is not { Pic: { } pic, Ioapic: { } ioapic })
            return -Errno.ENXIO;
        switch (state.chip_id)
        {
            case KVM_IRQCHIP_PIC_MASTER or KVM_IRQCHIP_PIC_SLAVE:
                state.pic = pic.GetState(state.chip_id == KVM_IRQCHIP_PIC_MASTER);
                return 0;
            case KVM_IRQCHIP_IOAPIC:
                state.ioapic = ioapic.GetState();
                return 0;
            default:
                return -Errno.EINVAL;
        }
    }

    /// <summary>KVM_SET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int SetState(in kvm_irqchip state)
    {
        if (Chip is not { Pic: { } pic, Ioapic: { } ioapic })
            return -Errno.ENXIO;
        switch (state.chip_id)
        {
            case KVM_IRQCHIP_PIC_MASTER or KVM_IRQCHIP_PIC_SLAVE:
                pic.SetState(state.chip_id == KVM_IRQCHIP_PIC_MASTER, state.pic);
                return 0;
            case KVM_IRQCHIP_IOAPIC:
                ioapic.SetState(state.ioapic);
                _ioapicMmio!.Place();
                return 0;
            default:
                return -Errno.EINVAL;
        }
    }

    /// <summary>KVM_GET_PIT2: 0 or -ENXIO.</summary>
    public int GetPit(out kvm_pit_state2 state)
    {
        state = default;
        if (Chip?.Pit is not { } pit)
            return -Errno.ENXIO;
        state = pit.GetState();
        return 0;
    }

    /// <summary>KVM_SET_PIT2: 0 or -ENXIO.</summary>
    public int SetPit(in kvm_pit_state2 state)
    {
        if (Chip?.Pit is not { } pit)
            return -Errno.ENXIO;
        pit.SetState(state);
        return 0;
    }

    // ---- The end ----

    public void CloseIrqfds() => _irqfds.Close();

    public void Stop() => Chip?.Stop();
}

using Ring3.Abi;
using Ring3.Irqchip;
using Ring3.Sync;
using static Ring3.Abi.KvmApi;

// SAFETY: pointers are to locals, or to blocks that live as long as their VM.
namespace Ring3.Kvm;

// Interrupt controllers, routes and lines.
public sealed unsafe partial class Vm
{
    private IoapicMmio? _ioapicMmio;

    /// <summary>KVM_CREATE_IRQCHIP: PIC, I/O APIC and local APICs. Before the first vCPU. 0, -EEXIST, -EINVAL, -EMFILE, -ENOMEM.</summary>
    public int CreateIrqchip() => CreateIrqchip(split: false, 0);

    /// <summary>KVM_CAP_SPLIT_IRQCHIP: local APICs only; <paramref name="reservedRoutes"/> GSIs stand for the pins of the client's I/O APIC. 0, -EEXIST after another controller or a vCPU, -EINVAL.</summary>
    public int CreateSplitIrqchip(uint reservedRoutes) => reservedRoutes > IrqRouting.MaxRoutes ? -Errno.EINVAL : CreateIrqchip(split: true, (int)reservedRoutes);

    private int CreateIrqchip(bool split, int reservedRoutes)
    {
        lock (_lock)
        {
            if (Irqchip is not null)
                return -Errno.EEXIST;
            if (_vcpus.Length != 0)
                return split ? -Errno.EEXIST : -Errno.EINVAL;
            // A host without descriptors says so here, not when the first timer is armed.
            int error = EventLoop.Shared.TryStart();
            if (error != 0)
                return error;
            VmIrqchip chip = split ? new VmIrqchip(EventLoop.Shared, true, reservedRoutes, MaxVcpus) : new VmIrqchip(EventLoop.Shared, maxVcpus: MaxVcpus);
            chip.Failed = e => BugOn(true, e.ToString());
            if (chip.Pic is { } pic)
                PicPorts.AddTo(Ports, pic);
            if (chip.Ioapic is { } ioapic)
                _ioapicMmio = new IoapicMmio(Mmio, ioapic);
            chip.Routing.Extension = this;
            ApplyX2ApicApi(chip.Bus);
            Irqchip = chip;
        }
        return 0;
    }

    /// <summary>KVM_CREATE_PIT2. 0, -EEXIST, or -ENOENT without a full in-kernel irqchip.</summary>
    public int CreatePit2(uint flags = 0)
    {
        lock (_lock)
        {
            if (Irqchip is not { Split: false } chip)
                return -Errno.ENOENT;
            if (chip.CreatePit((flags & KVM_PIT_SPEAKER_DUMMY) != 0) is not { } pit)
                return -Errno.EEXIST;
            PitPorts.AddTo(Ports, pit, speaker: (flags & KVM_PIT_SPEAKER_DUMMY) != 0);
        }
        return 0;
    }

    /// <summary>KVM_SET_GSI_ROUTING: 0 or -EINVAL.</summary>
    public int SetGsiRouting(ReadOnlySpan<kvm_irq_routing_entry> entries)
    {
        if (Irqchip is null)
            return -Errno.EINVAL;
        int r = Irqchip.Routing.Set(entries);
        if (r == 0 && Irqchip.Split)
            MakeAllRequest(VcpuRequest.ScanIoapic);
        return r;
    }

    /// <summary>KVM_IRQ_LINE, or with <paramref name="lineStatus"/> KVM_IRQ_LINE_STATUS: drives a GSI. Positive: delivered; 0: coalesced; -1: masked or no route; -ENXIO without an irqchip.</summary>
    public int IrqLine(uint gsi, bool level, bool lineStatus = false) => Irqchip is null ? -Errno.ENXIO : Irqchip.SetIrq(VmIrqchip.UserSourceId, gsi, level, lineStatus);

    /// <summary>KVM_SIGNAL_MSI: positive: delivered; 0: blocked by the guest; -1: a broadcast that reaches nobody; -EINVAL.</summary>
    public int SignalMsi(in kvm_msi msi) => Irqchip is null ? -Errno.EINVAL : Irqchip.SetMsi(msi);

    /// <summary>KVM_SIGNAL_MSI with an address and data.</summary>
    public int SignalMsi(ulong address, uint data) => SignalMsi(new kvm_msi { address_lo = (uint)address, address_hi = (uint)(address >> 32), data = data });

    /// <summary>KVM_GET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int GetIrqchip(ref kvm_irqchip chip)
    {
        if (Irqchip is not { Pic: { } pic, Ioapic: { } ioapic })
            return -Errno.ENXIO;
        switch (chip.chip_id)
        {
            case KVM_IRQCHIP_PIC_MASTER or KVM_IRQCHIP_PIC_SLAVE:
                chip.pic = pic.GetState(chip.chip_id == KVM_IRQCHIP_PIC_MASTER);
                return 0;
            case KVM_IRQCHIP_IOAPIC:
                chip.ioapic = ioapic.GetState();
                return 0;
            default:
                return -Errno.EINVAL;
        }
    }

    /// <summary>KVM_SET_IRQCHIP: 0, -ENXIO, -EINVAL.</summary>
    public int SetIrqchip(in kvm_irqchip chip)
    {
        if (Irqchip is not { Pic: { } pic, Ioapic: { } ioapic })
            return -Errno.ENXIO;
        switch (chip.chip_id)
        {
            case KVM_IRQCHIP_PIC_MASTER or KVM_IRQCHIP_PIC_SLAVE:
                pic.SetState(chip.chip_id == KVM_IRQCHIP_PIC_MASTER, chip.pic);
                return 0;
            case KVM_IRQCHIP_IOAPIC:
                ioapic.SetState(chip.ioapic);
                _ioapicMmio!.Place();
                return 0;
            default:
                return -Errno.EINVAL;
        }
    }

    /// <summary>KVM_GET_PIT2: 0 or -ENXIO.</summary>
    public int GetPit2(out kvm_pit_state2 state)
    {
        state = default;
        if (Irqchip?.Pit is not { } pit)
            return -Errno.ENXIO;
        state = pit.GetState();
        return 0;
    }

    /// <summary>KVM_SET_PIT2: 0 or -ENXIO.</summary>
    public int SetPit2(in kvm_pit_state2 state)
    {
        if (Irqchip?.Pit is not { } pit)
            return -Errno.ENXIO;
        pit.SetState(state);
        return 0;
    }
}

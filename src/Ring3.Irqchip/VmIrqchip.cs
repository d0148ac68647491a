using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Irqchip;

/// <summary>
/// All interrupt controllers of one VM: KVM_CREATE_IRQCHIP (PIC pair, IOAPIC, local APICs), or KVM_CAP_SPLIT_IRQCHIP (local APICs only; the client has PIC and
/// IOAPIC). Thread-safe.
/// </summary>
public sealed class VmIrqchip : IEoiHandler, IPinObserver
{
    /// <summary>Line source ids, OR-ed per pin: the client's KVM_IRQ_LINE, resample irqfds, the PIT.</summary>
    public const int UserSourceId = 0, ResampleSourceId = 1, PitSourceId = 2;

    private readonly record struct AckNotifier(uint Gsi, Action Callback);

    private readonly RankedLock _notifierLock = new(LockRank.IrqNotifiers);
    private readonly ITimerService _timers;
    private AckNotifier[] _ackNotifiers = [];
    private Action<bool>?[] _maskNotifiers = [];
    private readonly EoiExitBitmaps? _exitBitmaps;

    /// <summary>Told of an exception that escaped a controller on a thread of its own (timers): the owner marks its VM broken.</summary>
    public Action<Exception>? Failed { get; set; }

    /// <summary>Passes an exception on to <see cref="Failed"/>.</summary>
    public void Fail(Exception e) => Failed?.Invoke(e);

    /// <summary>Creates the controllers in their power-on state, with the default routing.</summary>
    /// <param name="timers">Where timers run.</param>
    /// <param name="split">No PIC and IOAPIC here: EOIs of level MSI routes go to the client.</param>
    /// <param name="reservedRoutes">Split: the first routes stand for the client's IOAPIC pins (KVM_CAP_SPLIT_IRQCHIP args[0]).</param>
    /// <param name="maxVcpus">Bound on vCPU indices.</param>
    /// <param name="ioapicVersion">0x11 as KVM's; 0x20 adds the EOI register.</param>
    public VmIrqchip(ITimerService timers, bool split = false, int reservedRoutes = Ioapic.PinCount, int maxVcpus = 1024, byte ioapicVersion = 0x11)
    {
        (_timers, Split) = (timers, split);
        Routing = new IrqRouting(Bus, split);
        if (split)
        {
            _exitBitmaps = new EoiExitBitmaps(Bus, Routing, reservedRoutes);
        }
        else
        {
            Pic = new PicPair(Bus, this);
            Ioapic = new Ioapic(Bus, this, timers, maxVcpus, ioapicVersion);
            Routing.Changed += Ioapic.UpdateEoiVectors;
        }
        Routing.SetDefault();
        Bus.SetEoiHandler(this);
    }

    public bool Split { get; }
    public ApicBus Bus { get; } = new();
    public IrqRouting Routing { get; }
    public Ioapic? Ioapic { get; }
    public PicPair? Pic { get; }

    /// <summary>KVM_CREATE_PIT2, once.</summary>
    public Pit? Pit { get; private set; }

    /// <summary>Creates the local APIC of a vCPU.</summary>
    public Lapic CreateLapic(IVcpuInterruptSink sink, uint id, int index, bool bootProcessor) => new(Bus, sink, _timers, id, index, bootProcessor);

    /// <summary>Creates the PIT. Null if there is one.</summary>
    public Pit? CreatePit(bool speaker)
    {
        using (_notifierLock.Enter())
            return Pit is null ? Pit = new Pit(this, _timers, speaker) : null;
    }

    /// <summary>Stops every timer: the VM goes away. Callbacks that are running find nothing due.</summary>
    public void Stop()
    {
        Pit?.Stop();
        Ioapic?.Reset();
        foreach (Lapic apic in Bus.Lapics)
            apic.Reset(init: true);
    }

    /// <summary>
    /// Drives a GSI for one source. Any thread; allocates nothing.
    /// </summary>
    /// <returns>KVM_IRQ_LINE_STATUS: positive if an interrupt was delivered (or the line lowered), 0 if it coalesced with a pending one, -1 if it is masked or
    /// has no route.</returns>
    public int SetIrq(int sourceId, uint gsi, bool level, bool lineStatus = false)
    {
        Route[][] routes = Routing.Current.ByGsi;
        if (gsi >= (uint)routes.Length)
            return -1;
        int result = -1;
        foreach (ref readonly Route route in routes[gsi].AsSpan())
        {
            int r = Fire(route, sourceId, level, lineStatus);
            if (r >= 0)
                result = Math.Max(result, 0) + r;
        }
        return result;
    }

    private int Fire(in Route route, int sourceId, bool level, bool lineStatus)
    {
        switch (route.Type)
        {
            case KvmApi.KVM_IRQ_ROUTING_IRQCHIP when route.Chip == KvmApi.KVM_IRQCHIP_IOAPIC:
                return Ioapic!.SetIrq((int)route.Pin, sourceId, level, lineStatus);
            case KvmApi.KVM_IRQ_ROUTING_IRQCHIP:
                return Pic!.SetIrq((int)(route.Chip * 8 + route.Pin), sourceId, level);
            case KvmApi.KVM_IRQ_ROUTING_MSI:
                return level ? Deliver(route.Message, route.Entry.msi.address_lo, route.Entry.msi.address_hi, route.Entry.msi.data) : -1;
            default:
                return Routing.Extension?.Fire(route.Entry, level) ?? -1;
        }
    }

    /// <summary>KVM_SIGNAL_MSI: positive if delivered, 0 if blocked by the guest, -1 if a broadcast reaches nobody, -EINVAL if malformed.</summary>
    public int SetMsi(in kvm_msi msi)
    {
        if ((msi.flags & ~KvmApi.KVM_MSI_VALID_DEVID) != 0 || !Routing.TryDecodeMsi(msi.address_lo, msi.address_hi, msi.data, out LapicInterrupt message))
            return -Errno.EINVAL;
        return Deliver(message, msi.address_lo, msi.address_hi, msi.data);
    }

    private int Deliver(in LapicInterrupt message, uint addressLow, uint addressHigh, uint data) =>
        message is { Mode: DeliveryMode.ExtInt, Vector: 0 } && Routing.Extension is { } extension
        && extension.TryMessage(addressLow, addressHigh, data, out int result) ? result : Bus.Deliver(null, message);

    /// <summary>Whether the vCPU has an external interrupt to take now: from the PIC through LINT0, or from its local APIC.</summary>
    public bool HasInterrupt(Lapic apic) => HasExtInt(apic) || apic.HasInterrupt();

    /// <summary>The PIC's output is raised and reaches this vCPU.</summary>
    public bool HasExtInt(Lapic apic) => Pic is { Output: true } && apic.AcceptsPicInterrupt;

    /// <summary>Acknowledges the vCPU's interrupt and returns its vector, or -1. PIC first, as its interrupts have no priority in the local APIC. Owner
    /// only.</summary>
    public int AckInterrupt(Lapic apic) => HasExtInt(apic) ? Pic!.Acknowledge() : apic.AckInterrupt();

    /// <summary>Registers a callback for acknowledgements (EOI) of a GSI: resample irqfds, PIT. It runs on a vCPU's thread with no lock held.</summary>
    public void AddAckNotifier(uint gsi, Action callback)
    {
        using (_notifierLock.Enter())
            Volatile.Write(ref _ackNotifiers, [.. _ackNotifiers, new AckNotifier(gsi, callback)]);
        Ioapic?.UpdateEoiVectors();
    }

    /// <summary>Removes a callback; one that runs at this moment is not waited for.</summary>
    public void RemoveAckNotifier(uint gsi, Action callback)
    {
        using (_notifierLock.Enter())
            Volatile.Write(ref _ackNotifiers, Array.FindAll(_ackNotifiers, n => n.Gsi != gsi || n.Callback != callback));
        Ioapic?.UpdateEoiVectors();
    }

    /// <summary>Registers a callback for mask changes of a GSI (argument: masked).</summary>
    internal void SetMaskNotifier(uint gsi, Action<bool>? callback)
    {
        using (_notifierLock.Enter())
        {
            var next = new Action<bool>?[Math.Max(_maskNotifiers.Length, (int)gsi + 1)];
            _maskNotifiers.CopyTo(next, 0);
            next[gsi] = callback;
            Volatile.Write(ref _maskNotifiers, next);
        }
    }

    /// <summary>Split irqchip: the client's IOAPIC saw an EOI for a GSI; runs its notifiers.</summary>
    public void NotifyAckedGsi(uint gsi)
    {
        foreach (AckNotifier n in Volatile.Read(ref _ackNotifiers))
            if (n.Gsi == gsi)
                n.Callback();
    }

    /// <summary>Gives a line source id back: withdraws it from every pin.</summary>
    public void ClearSource(int sourceId)
    {
        Ioapic?.ClearSource(sourceId);
        Pic?.ClearSource(sourceId);
    }

    private int GsiOf(uint chip, uint pin)
    {
        int[] pins = Routing.Current.GsiOfPin[chip];
        return pin < (uint)pins.Length ? pins[pin] : -1;
    }

    void IPinObserver.PinAcked(uint chip, uint pin)
    {
        int gsi = GsiOf(chip, pin);
        if (gsi >= 0)
            NotifyAckedGsi((uint)gsi);
    }

    void IPinObserver.PinMaskChanged(uint chip, uint pin, bool masked)
    {
        int gsi = GsiOf(chip, pin);
        Action<bool>?[] notifiers = Volatile.Read(ref _maskNotifiers);
        if ((uint)gsi < (uint)notifiers.Length)
            notifiers[gsi]?.Invoke(masked);
    }

    bool IPinObserver.PinHasAckNotifier(uint chip, uint pin)
    {
        int gsi = GsiOf(chip, pin);
        foreach (AckNotifier n in Volatile.Read(ref _ackNotifiers))
            if (n.Gsi == gsi)
                return true;
        return false;
    }

    bool IEoiHandler.HandlesEoi(Lapic apic, byte vector) => Ioapic?.HandlesVector(vector) ?? _exitBitmaps!.Contains(apic, vector);

    void IEoiHandler.Eoi(Lapic apic, byte vector, bool level, bool suppressed)
    {
        if (Ioapic is not null)
            Ioapic.Eoi(apic, vector, level, suppressed);
        else
            apic.NotifyClientEoi(vector);
    }

    void IEoiHandler.Restored(Lapic apic) => Ioapic?.Restored(apic);
}

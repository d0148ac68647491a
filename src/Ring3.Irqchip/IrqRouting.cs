using Ring3.Abi;

namespace Ring3.Irqchip;

/// <summary>Routes whose target lies above the irqchip: Xen event channels and Hyper-V synthetic interrupts.</summary>
public interface IRouteExtension
{
    /// <summary>Whether the route's parameters are acceptable: 0 or -errno.</summary>
    int Validate(in kvm_irq_routing_entry entry);

    /// <summary>Fires the route. Returns as <see cref="VmIrqchip.SetIrq"/> does; a level of false is ignored. Any thread, must not block.</summary>
    int Fire(in kvm_irq_routing_entry entry, bool level);

    /// <summary>Delivers a message that means nothing to a local APIC (vector 0, delivery mode ExtINT), if it means something here. Any thread, must not
    /// block.</summary>
    bool TryMessage(uint addressLow, uint addressHigh, uint data, out int result);
}

/// <summary>One resolved target of a GSI.</summary>
internal readonly record struct Route(uint Type, uint Chip, uint Pin, LapicInterrupt Message, kvm_irq_routing_entry Entry);

/// <summary>
/// The GSI table of one VM. Readers take an immutable <see cref="Table"/> by one reference load; <see cref="Set"/> builds and publishes a new one, as RCU does,
/// with the garbage collector as grace period.
/// </summary>
public sealed class IrqRouting(ApicBus bus, bool split)
{
    /// <summary>KVM_MAX_IRQ_ROUTES: the bound on both the number of routes and the GSI numbers.</summary>
    public const int MaxRoutes = 4096;

    private const int PicPinsPerChip = 8;

    internal sealed class Table(Route[][] byGsi, int[][] gsiOfPin)
    {
        internal readonly Route[][] ByGsi = byGsi;

        /// <summary>GSI of each pin of each chip (KVM_IRQCHIP_*), or -1.</summary>
        internal readonly int[][] GsiOfPin = gsiOfPin;
    }

    private static readonly Table s_empty = new([], [[], [], []]);
    private Table _table = s_empty;
    private int _generation;

    /// <summary>Called after a new table is published: an irqfd or EOI bitmap may have to be computed again.</summary>
    public event Action? Changed;

    /// <summary>Handler of route types the irqchip does not know; without one they are EINVAL.</summary>
    public IRouteExtension? Extension { get; set; }

    internal Table Current => Volatile.Read(ref _table);

    /// <summary>Increases with every <see cref="Set"/>.</summary>
    public int Generation => Volatile.Read(ref _generation);

    /// <summary>KVM_SET_GSI_ROUTING: replaces the whole table. 0 or -EINVAL, in which case the old table stays.</summary>
    public int Set(ReadOnlySpan<kvm_irq_routing_entry> entries)
    {
        if (entries.Length > MaxRoutes)
            return -Errno.EINVAL;
        uint count = 0;
        foreach (ref readonly kvm_irq_routing_entry e in entries)
        {
            if (e.gsi >= MaxRoutes)
                return -Errno.EINVAL;
            count = Math.Max(count, e.gsi + 1);
        }
        var lists = new List<Route>?[count];
        int[][] gsiOfPin = [NewPins(PicPinsPerChip), NewPins(PicPinsPerChip), NewPins(Ioapic.PinCount)];
        foreach (ref readonly kvm_irq_routing_entry e in entries)
        {
            List<Route> list = lists[e.gsi] ??= [];
            int error = Resolve(e, out Route route);
            if (error != 0)
                return error;
            if (!MayShare(list, route))
                return -Errno.EINVAL;
            list.Add(route);
            if (route.Type == KvmApi.KVM_IRQ_ROUTING_IRQCHIP)
                gsiOfPin[route.Chip][route.Pin] = (int)e.gsi;
        }
        Volatile.Write(ref _table, new Table(Array.ConvertAll(lists, l => l?.ToArray() ?? []), gsiOfPin));
        _ = Interlocked.Increment(ref _generation);
        Changed?.Invoke();
        return 0;
    }

    /// <summary>The table of a new irqchip: GSI 0-15 to PIC and IOAPIC, 16-23 to the IOAPIC; empty for a split irqchip.</summary>
    public void SetDefault()
    {
        if (split)
        {
            _ = Set([]);
            return;
        }
        _ = Set(Wiring(timerPin: 0));
    }

    /// <summary>
    /// The wiring of a PC's mainboard, for <see cref="Set"/>: as the default, but the PIT (GSI 0) reaches IOAPIC pin 2, as ACPI and MP tables of PCs say.
    /// </summary>
    public static kvm_irq_routing_entry[] PcWiring() => Wiring(timerPin: 2);

    private static kvm_irq_routing_entry[] Wiring(uint timerPin)
    {
        var entries = new List<kvm_irq_routing_entry>();
        for (uint gsi = 0; gsi < Ioapic.PinCount; gsi++)
        {
            if (gsi != 2 || timerPin != 2)
                entries.Add(ChipRoute(gsi, KvmApi.KVM_IRQCHIP_IOAPIC, gsi == 0 ? timerPin : gsi));
            if (gsi < 2 * PicPinsPerChip)
                entries.Add(ChipRoute(gsi, gsi < PicPinsPerChip ? KvmApi.KVM_IRQCHIP_PIC_MASTER : KvmApi.KVM_IRQCHIP_PIC_SLAVE, gsi % PicPinsPerChip));
        }
        return [.. entries];
    }

    private static kvm_irq_routing_entry ChipRoute(uint gsi, uint chip, uint pin) =>
        new() { gsi = gsi, type = KvmApi.KVM_IRQ_ROUTING_IRQCHIP, irqchip = new kvm_irq_routing_irqchip { irqchip = chip, pin = pin } };

    private static int[] NewPins(int count)
    {
        var pins = new int[count];
        Array.Fill(pins, -1);
        return pins;
    }

    private int Resolve(in kvm_irq_routing_entry e, out Route route)
    {
        route = default;
        if (e.flags != 0 && (e.type != KvmApi.KVM_IRQ_ROUTING_MSI || (e.flags & ~KvmApi.KVM_MSI_VALID_DEVID) != 0))
            return -Errno.EINVAL;
        switch (e.type)
        {
            case KvmApi.KVM_IRQ_ROUTING_IRQCHIP:
                uint chip = e.irqchip.irqchip, pin = e.irqchip.pin;
                if (split || chip >= KvmApi.KVM_NR_IRQCHIPS || pin >= (chip == KvmApi.KVM_IRQCHIP_IOAPIC ? Ioapic.PinCount : PicPinsPerChip))
                    return -Errno.EINVAL;
                route = new Route(e.type, chip, pin, default, e);
                return 0;
            case KvmApi.KVM_IRQ_ROUTING_MSI:
                if (!TryDecodeMsi(e.msi.address_lo, e.msi.address_hi, e.msi.data, out LapicInterrupt message))
                    return -Errno.EINVAL;
                route = new Route(e.type, 0, 0, message, e);
                return 0;
            default:
                route = new Route(e.type, 0, 0, default, e);
                return Extension?.Validate(e) ?? -Errno.EINVAL;
        }
    }

    /// <summary>A GSI may reach one pin of each chip; every other kind of route is alone.</summary>
    private static bool MayShare(List<Route> list, in Route route)
    {
        foreach (Route other in list)
            if (other.Type != KvmApi.KVM_IRQ_ROUTING_IRQCHIP || route.Type != KvmApi.KVM_IRQ_ROUTING_IRQCHIP || other.Chip == route.Chip)
                return false;
        return true;
    }

    /// <summary>
    /// Decodes an MSI. SPEC: SDM volume 3, "Message Signalled Interrupts". False: in x2APIC format the low byte of the upper address is reserved.
    /// </summary>
    public bool TryDecodeMsi(uint addressLow, uint addressHigh, uint data, out LapicInterrupt message)
    {
        uint dest = addressLow >> 12 & 0xff;
        if (bus.X2ApicFormat)
            dest |= addressHigh & 0xffff_ff00;
        if (bus.ExtendedDestinationId)
            dest |= (addressLow >> 5 & 0x7f) << 8;
        message = new LapicInterrupt
        {
            Vector = (byte)data,
            Mode = (DeliveryMode)(data >> 8 & 7),
            Logical = (addressLow & 4) != 0,
            RedirectionHint = (addressLow & 8) != 0,
            Level = (data & 0x8000) != 0,
            Assert = true,
            Dest = dest,
        };
        return !bus.X2ApicFormat || (addressHigh & 0xff) == 0;
    }
}

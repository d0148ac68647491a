using System.Numerics;
using Ring3.Host;

namespace Ring3.Irqchip;

/// <summary>Receives EOI messages of local APICs: an IOAPIC in the kernel, or the route of the EOI to a client's IOAPIC.</summary>
internal interface IEoiHandler
{
    /// <summary>Whether the EOI of <paramref name="vector"/> on <paramref name="apic"/> matters. Lock-free.</summary>
    bool HandlesEoi(Lapic apic, byte vector);

    /// <summary>The guest ended <paramref name="vector"/>. On the vCPU's thread.</summary>
    /// <param name="level">The vector was delivered as level-triggered (TMR).</param>
    /// <param name="suppressed">SVR bit 12: the guest uses directed EOI, so remote IRR is not cleared by the broadcast.</param>
    void Eoi(Lapic apic, byte vector, bool level, bool suppressed);

    /// <summary>A local APIC's state was loaded: recomputes which of its vectors wait for an EOI.</summary>
    void Restored(Lapic apic);
}

/// <summary>
/// Connects the local APICs of one VM with each other and with the sources of interrupt messages. Delivery takes no lock: it reads an immutable
/// <see cref="ApicMap"/>.
/// </summary>
public sealed class ApicBus
{
    private readonly RankedLock _lock = new(LockRank.ApicBus);
    private readonly List<Lapic> _members = [];
    private ApicMap _map = new([]);
    private IEoiHandler? _eoi;
    private int _generation;

    /// <summary>Nanoseconds per APIC bus cycle (KVM_CAP_X86_APIC_BUS_CYCLES_NS). Set before the first vCPU exists.</summary>
    public uint BusPeriodNs { get; set; } = 1;

    /// <summary>KVM_X2APIC_API_USE_32BIT_IDS: MSI addresses carry destination bits 31:8 in the upper half, and register pages hold 32-bit ids.</summary>
    public bool X2ApicFormat { get; set; }

    /// <summary>KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK: destination 0xff of an MSI or IOAPIC message is no broadcast to APICs in x2APIC mode.</summary>
    public bool BroadcastQuirkDisabled { get; set; }

    /// <summary>KVM_FEATURE_MSI_EXT_DEST_ID: bits 11:5 of an MSI address, and bits 55:49 of a redirection entry, are destination bits 14:8.</summary>
    public bool ExtendedDestinationId { get; set; }

    /// <summary>Lowest-priority messages choose their target by vector modulo candidates (KVM's vector_hashing, its default); else round-robin.</summary>
    public bool VectorHashing { get; set; } = true;

    /// <summary>Increases whenever a destination may resolve differently.</summary>
    public int Generation => Volatile.Read(ref _generation);

    /// <summary>The local APICs in order of creation.</summary>
    public IReadOnlyList<Lapic> Lapics => Volatile.Read(ref _map).All;

    /// <summary>The same without an enumerator to allocate.</summary>
    internal ReadOnlySpan<Lapic> Members => Volatile.Read(ref _map).All;

    internal void Add(Lapic apic)
    {
        using (_lock.Enter())
        {
            _members.Add(apic);
            Publish();
        }
    }

    /// <summary>Disconnects the APIC of a vCPU that is being destroyed or was never completed.</summary>
    public void Remove(Lapic apic)
    {
        using (_lock.Enter())
        {
            _ = _members.Remove(apic);
            Publish();
        }
    }

    internal bool IsMember(Lapic apic)
    {
        using (_lock.Enter())
            return _members.Contains(apic);
    }

    /// <summary>An id, mode or enable bit changed: builds and publishes a new map.</summary>
    internal void Recalculate()
    {
        using (_lock.Enter())
            Publish();
    }

    private void Publish()
    {
        Volatile.Write(ref _map, new ApicMap([.. _members]));
        _ = Interlocked.Increment(ref _generation);
    }

    internal void SetEoiHandler(IEoiHandler? handler) => Volatile.Write(ref _eoi, handler);

    internal bool HandlesEoi(Lapic apic, byte vector) => Volatile.Read(ref _eoi)?.HandlesEoi(apic, vector) ?? false;

    /// <summary>Tells the controllers of an EOI for which <see cref="HandlesEoi"/> held while the vector was in service.</summary>
    internal void BroadcastEoi(Lapic apic, byte vector, bool level, bool suppressed) => Volatile.Read(ref _eoi)?.Eoi(apic, vector, level, suppressed);

    internal void RestoreInService(Lapic apic) => Volatile.Read(ref _eoi)?.Restored(apic);

    /// <summary>
    /// Delivers a message. Any thread; allocates nothing.
    /// </summary>
    /// <param name="source">The sender of an IPI; null for an IOAPIC or MSI message.</param>
    /// <param name="irq">The message.</param>
    /// <param name="map">If given, records the acceptors.</param>
    /// <returns>How many local APICs accepted it, or -1 if the destination is none that <see cref="ApicMap"/> resolves and names none.</returns>
    public int Deliver(Lapic? source, in LapicInterrupt irq, DeliveryMap? map = null)
    {
        ApicMap apics = Volatile.Read(ref _map);
        switch (irq.Shorthand)
        {
            case DestinationShorthand.Self:
                return source is null ? -1 : source.Accept(source, irq, map) ? 1 : 0;
            case DestinationShorthand.AllIncludingSelf:
                return DeliverAll(apics, source, null, irq, map);
            case DestinationShorthand.AllExcludingSelf:
                return DeliverAll(apics, source, source, irq, map);
        }
        if (IsBroadcast(source, irq))
            return DeliverBroadcast(apics, source, irq, map);
        if (!apics.TryGetWindow(irq, out ReadOnlySpan<Lapic?> window, out uint mask))
            return DeliverByMatch(apics, source, irq, map);
        // KVM: what its map resolves to nobody is blocked, not refused.
        if (irq.LowestPriority && irq.Logical)
            return Math.Max(0, DeliverToOne(window, mask, source, irq, map));
        int result = 0;
        for (; mask != 0; mask &= mask - 1)
            if (window[BitOperations.TrailingZeroCount(mask)] is { } apic)
                Accumulate(ref result, apic.Accept(source, irq, map));
        return result;
    }

    private int DeliverBroadcast(ApicMap apics, Lapic? source, in LapicInterrupt irq, DeliveryMap? map)
    {
        // KVM: lowest priority is no way to address everybody by the physical id 0xff, and becomes fixed. The hint stays: it chooses one, of a message that is
        // fixed whatever it was.
        LapicInterrupt message = irq.LowestPriority && !irq.Logical && irq.Dest == 0xff ? irq with { Mode = DeliveryMode.Fixed } : irq;
        return message.LowestPriority ? DeliverToOneOfAll(apics, source, message, map, matchAll: true) : DeliverAll(apics, source, null, message, map);
    }

    /// <summary>Delivers a message to one known local APIC, whatever its <see cref="LapicInterrupt.Dest"/>: paravirtual IPIs, whose ids must not be taken for a
    /// broadcast. Returns whether it was accepted.</summary>
    public static bool DeliverTo(Lapic target, in LapicInterrupt irq) => target.HardwareEnabled && target.Accept(null, irq, null);

    /// <summary>Whether the message could reach this APIC; for EOI-exit bitmaps.</summary>
    public bool Reaches(Lapic apic, in LapicInterrupt irq) => IsBroadcast(null, irq) || ApicMap.Matches(apic, irq);

    private bool IsBroadcast(Lapic? source, in LapicInterrupt irq)
    {
        if (source is { X2ApicEnabled: true })
            return irq.Dest == 0xffff_ffff;
        if (irq.Dest == 0xffff_ffff)
            return true;
        if (irq.Dest != 0xff)
            return false;
        // Physical and cluster 0xff address everybody; flat 0xff does by its bits.
        return source is not null || !BroadcastQuirkDisabled || !AnyX2Apic();
    }

    private bool AnyX2Apic()
    {
        foreach (Lapic apic in Volatile.Read(ref _map).All)
            if (apic.X2ApicEnabled)
                return true;
        return false;
    }

    private static int DeliverAll(ApicMap apics, Lapic? source, Lapic? except, in LapicInterrupt irq, DeliveryMap? map)
    {
        int result = -1;
        foreach (Lapic apic in apics.All)
            if (apic != except && apic.HardwareEnabled)
                Accumulate(ref result, apic.Accept(source, irq, map));
        return result;
    }

    private int DeliverByMatch(ApicMap apics, Lapic? source, in LapicInterrupt irq, DeliveryMap? map)
    {
        if (irq.LowestPriority)
            return DeliverToOneOfAll(apics, source, irq, map, matchAll: false);
        int result = -1;
        foreach (Lapic apic in apics.All)
            if (ApicMap.Matches(apic, irq))
                Accumulate(ref result, apic.Accept(source, irq, map));
        return result;
    }

    private int DeliverToOne(ReadOnlySpan<Lapic?> window, uint mask, Lapic? source, in LapicInterrupt irq, DeliveryMap? map)
    {
        int candidates = 0;
        Lapic? chosen = null;
        for (uint m = mask; m != 0; m &= m - 1)
            if (window[BitOperations.TrailingZeroCount(m)] is { Enabled: true } apic)
            {
                candidates++;
                chosen = Quieter(chosen, apic);
            }
        if (chosen is null)
            return -1;
        if (!VectorHashing || candidates == 1)
            return chosen.Accept(source, irq, map) ? 1 : 0;
        int skip = irq.Vector % candidates;
        for (uint m = mask; m != 0; m &= m - 1)
            if (window[BitOperations.TrailingZeroCount(m)] is { Enabled: true } apic && skip-- == 0)
                return apic.Accept(source, irq, map) ? 1 : 0;
        return 0;
    }

    private int DeliverToOneOfAll(ApicMap apics, Lapic? source, in LapicInterrupt irq, DeliveryMap? map, bool matchAll)
    {
        int candidates = 0;
        Lapic? chosen = null;
        foreach (Lapic apic in apics.All)
            if (apic.Enabled && (matchAll || ApicMap.Matches(apic, irq)))
            {
                candidates++;
                chosen = Quieter(chosen, apic);
            }
        if (chosen is null)
            return -1;
        int skip = irq.Vector % candidates;
        foreach (Lapic apic in apics.All)
            if (VectorHashing && apic.Enabled && (matchAll || ApicMap.Matches(apic, irq)) && skip-- == 0)
                return apic.Accept(source, irq, map) ? 1 : 0;
        return chosen.Accept(source, irq, map) ? 1 : 0;
    }

    private static Lapic Quieter(Lapic? a, Lapic b) => a is null || b.Arbitration - a.Arbitration < 0 ? b : a;

    private static void Accumulate(ref int result, bool accepted) => result = Math.Max(result, 0) + (accepted ? 1 : 0);
}

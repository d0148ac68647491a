namespace Ring3.Irqchip;

/// <summary>One 64-bit entry of the IOAPIC's redirection table. SPEC: 82093AA, "I/O Redirection Table Registers".</summary>
internal struct RedirectionEntry
{
    private const ulong RemoteIrrBit = 1 << 14, DeliveryStatusBit = 1 << 12, LevelBit = 1 << 15, MaskBit = 1 << 16, LogicalBit = 1 << 11;

    internal ulong Value;

    internal static RedirectionEntry Reset => new() { Value = MaskBit };

    internal readonly byte Vector => (byte)Value;
    internal readonly DeliveryMode Mode => (DeliveryMode)(Value >> 8 & 7);
    internal readonly bool Level => (Value & LevelBit) != 0;
    internal readonly bool Masked => (Value & MaskBit) != 0;

    internal bool RemoteIrr
    {
        readonly get => (Value & RemoteIrrBit) != 0;
        set => Value = value ? Value | RemoteIrrBit : Value & ~RemoteIrrBit;
    }

    /// <summary>Guest write of one half. Remote IRR and delivery status are read-only, but remote IRR falls when the entry becomes edge-triggered, as operating
    /// systems rely on.</summary>
    internal void Write(bool high, uint half)
    {
        ulong keep = Value & (RemoteIrrBit | DeliveryStatusBit);
        Value = high ? Value & 0xffff_ffff | (ulong)half << 32 : Value & ~0xffff_ffffUL | half;
        Value = Value & ~(RemoteIrrBit | DeliveryStatusBit) | keep;
        if (!Level)
            RemoteIrr = false;
    }

    /// <param name="extendedId">Bits 55:49 are destination bits 14:8.</param>
    internal readonly LapicInterrupt ToMessage(bool extendedId) => new()
    {
        Vector = Vector,
        Mode = Mode,
        Logical = (Value & LogicalBit) != 0,
        Level = Level,
        Assert = true,
        Dest = (uint)(Value >> 56) | (extendedId ? (uint)(Value >> 49 & 0x7f) << 8 : 0),
    };
}

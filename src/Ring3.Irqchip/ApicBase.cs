namespace Ring3.Irqchip;

/// <summary>IA32_APIC_BASE of one processor: its value, and which values may follow.</summary>
public sealed class ApicBase
{
    /// <summary>Bits of the register, and the address after reset.</summary>
    public const ulong BSP = 1 << 8, EXTD = 1 << 10, EN = 1 << 11, DefaultAddress = 0xfee0_0000;

    private readonly ulong _reset;

    public ApicBase(bool bootProcessor)
    {
        _reset = DefaultAddress | EN | (bootProcessor ? BSP : 0);
        Value = _reset;
    }

    public ulong Value { get; private set; }

    /// <summary>Guest physical address of the xAPIC page.</summary>
    public ulong Address => Value & ~0xfffUL;

    public ApicMode Mode => ModeOf(Value);

    /// <summary>The global enable, which CPUID shows as the APIC bit.</summary>
    public bool IsEnabled => (Value & EN) != 0;

    /// <summary>CPUID reports x2APIC: bit 10 may be set.</summary>
    public bool X2ApicSupported { get; set; } = true;

    /// <summary>MAXPHYADDR of the guest.</summary>
    public int PhysicalAddressBits { get; set; } = 48;

    /// <summary>
    /// Writes the register; where there is a local APIC, it is written through <see cref="Lapic.SetBase"/>. False, and nothing changed: #GP(0) for the guest,
    /// EINVAL for the client. SPEC: SDM volume 3, "x2APIC State Transitions".
    /// </summary>
    /// <param name="hostInitiated">The client sets state: any valid mode may follow any other.</param>
    public bool TrySet(ulong value, bool hostInitiated)
    {
        ulong reserved = ~((1UL << PhysicalAddressBits) - 1) | 0x2ff | (X2ApicSupported ? 0 : EXTD);
        ApicMode mode = ModeOf(value), old = Mode;
        if ((value & reserved) != 0 || mode == ApicMode.Invalid)
            return false;
        if (!hostInitiated && (old == ApicMode.X2Apic && mode == ApicMode.XApic || old == ApicMode.Disabled && mode == ApicMode.X2Apic))
            return false;
        Value = value;
        return true;
    }

    /// <summary>Power-on and reset. INIT leaves the register alone.</summary>
    internal void Reset() => Value = _reset;

    private static ApicMode ModeOf(ulong value) => (ApicMode)(value >> 10 & 3);
}

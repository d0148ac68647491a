namespace Ring3.Kvm;

/// <summary>Fixed-point ratios between clocks.</summary>
internal static class PvClockScale
{
    /// <summary>
    /// Multiplier and shift with which a guest turns TSC ticks of <paramref name="khz"/> into nanoseconds: ns = (ticks shifted left by Shift, or right when it
    /// is negative) * Mul >> 32. Mul has its top bit set, so that the error is below 2^-31.
    /// </summary>
    public static (uint Mul, sbyte Shift) ForTscKhz(uint khz)
    {
        // Nanoseconds per tick with 64 fraction bits.
        UInt128 perTick = ((UInt128)1_000_000 << 64) / khz;
        int shift = 0;
        while (perTick >= (UInt128)1 << 64)
        {
            perTick >>= 1;
            shift++;
        }
        while (perTick < (UInt128)1 << 63)
        {
            perTick <<= 1;
            shift--;
        }
        return ((uint)(perTick >> 32), (sbyte)shift);
    }

    /// <summary>What the guest computes.</summary>
    public static ulong ToNanoseconds(ulong ticks, uint mul, sbyte shift)
    {
        ulong t = shift < 0 ? ticks >> -shift : ticks << shift;
        return (ulong)((UInt128)t * mul >> 32);
    }

    /// <summary>Ratio guest to host with 48 fraction bits.</summary>
    public static ulong TscMultiplier(uint guestKhz, uint hostKhz) => (ulong)(((UInt128)guestKhz << 48) / hostKhz);

    public static ulong Scale(ulong tsc, ulong multiplier) => multiplier == 1UL << 48 ? tsc : (ulong)((UInt128)tsc * multiplier >> 48);
}

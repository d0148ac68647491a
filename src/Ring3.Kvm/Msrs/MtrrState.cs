using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>Memory type range registers: kept and checked, without effect, because software memory has one type. SPEC: SDM volume 3, "Memory Type Range Registers".</summary>
internal sealed class MtrrState
{
    private const int VariableRanges = 8;
    /// <summary>Eight variable ranges, fixed ranges, write-combining.</summary>
    public const ulong Capability = VariableRanges | 1 << 8 | 1 << 10;

    private readonly ulong[] _variable = new ulong[VariableRanges * 2];
    private readonly ulong[] _fixed = new ulong[11];
    private ulong _defaultType;

    public bool TryRead(uint msr, out ulong value)
    {
        value = 0;
        if (msr == Msr.MTRR_CAP)
            value = Capability;
        else if (msr == Msr.MTRR_DEF_TYPE)
            value = _defaultType;
        else if (msr is >= MsrIndex.MTRR_VAR_FIRST and <= MsrIndex.MTRR_VAR_LAST)
            value = _variable[msr - MsrIndex.MTRR_VAR_FIRST];
        else if (FixedIndex(msr) is >= 0 and var i)
            value = _fixed[i];
        else
            return false;
        return true;
    }

    /// <summary>False: not an MTRR, or a value that faults.</summary>
    /// <param name="physicalAddressBits">MAXPHYADDR of the guest: bits above it are reserved in bases and masks.</param>
    public bool TryWrite(uint msr, ulong value, int physicalAddressBits)
    {
        if (msr == Msr.MTRR_DEF_TYPE)
        {
            if ((value & ~0xcffUL) != 0 || !IsType((byte)value))
                return false;
            _defaultType = value;
            return true;
        }
        if (msr is >= MsrIndex.MTRR_VAR_FIRST and <= MsrIndex.MTRR_VAR_LAST)
        {
            bool mask = (msr & 1) != 0;
            ulong reserved = ~((1UL << physicalAddressBits) - 1) | (mask ? 0x7ffUL : 0xf00);
            if ((value & reserved) != 0 || !mask && !IsType((byte)value))
                return false;
            _variable[msr - MsrIndex.MTRR_VAR_FIRST] = value;
            return true;
        }
        int i = FixedIndex(msr);
        if (i < 0)
            return false;
        for (int b = 0; b < 8; b++)
            if (!IsType((byte)(value >> (8 * b))))
                return false;
        _fixed[i] = value;
        return true;
    }

    private static int FixedIndex(uint msr) => msr switch
    {
        MsrIndex.MTRR_FIX64K => 0,
        >= MsrIndex.MTRR_FIX16K_FIRST and <= MsrIndex.MTRR_FIX16K_LAST => (int)(msr - MsrIndex.MTRR_FIX16K_FIRST) + 1,
        >= MsrIndex.MTRR_FIX4K_FIRST and <= MsrIndex.MTRR_FIX4K_LAST => (int)(msr - MsrIndex.MTRR_FIX4K_FIRST) + 3,
        _ => -1,
    };

    /// <summary>UC, WC, WT, WP, WB.</summary>
    private static bool IsType(byte type) => type < 8 && (0x73 >> type & 1) != 0;
}

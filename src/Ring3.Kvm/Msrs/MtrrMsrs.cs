using Ring3.Arch;

namespace Ring3.Kvm;

/// <summary>
/// Memory type range registers: kept and checked, without effect, because software memory has one type. SPEC: SDM volume 3, "Memory Type Range Registers".
/// </summary>
internal sealed class MtrrMsrs(VcpuCore core) : VcpuPart(core)
{
    private const int VariableRanges = 8;
    private const uint VariableFirst = 0x200, Fixed64K = 0x250, Fixed16K = 0x258, Fixed4K = 0x268;
    /// <summary>Eight variable ranges, fixed ranges, write-combining.</summary>
    private const ulong Capability = VariableRanges | 1 << 8 | 1 << 10;

    private readonly ulong[] _variable = new ulong[VariableRanges * 2];
    private readonly ulong[] _fixed64K = new ulong[1], _fixed16K = new ulong[2], _fixed4K = new ulong[8];
    private ulong _defaultType;

    public static MsrRegister[] Registers { get; } =
    [
        new(Msr.MTRR_CAP) { Read = (_, _) => Capability },
        new(Msr.MTRR_DEF_TYPE)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Mtrr._defaultType,
            Write = (m, _, v) => (v & ~0xcffUL) == 0 && IsType((byte)v) && Set(ref m.Mtrr._defaultType, v),
        },
        Fixed(Fixed64K, 1, m => m._fixed64K),
        Fixed(Fixed16K, 2, m => m._fixed16K),
        Fixed(Fixed4K, 8, m => m._fixed4K),
        new(VariableFirst, VariableRanges * 2)
        {
            Listed = MsrListing.Always,
            Read = (m, a) => m.Mtrr._variable[a.Index - VariableFirst],
            Write = (m, a, v) => m.Mtrr.IsVariable(a.Index, v) && Set(ref m.Mtrr._variable[a.Index - VariableFirst], v),
        },
    ];

    private static MsrRegister Fixed(uint first, uint count, Func<MtrrMsrs, ulong[]> of) => new(first, count)
    {
        Listed = MsrListing.Always,
        Read = (m, a) => of(m.Mtrr)[a.Index - first],
        Write = (m, a, v) => AreTypes(v) && Set(ref of(m.Mtrr)[a.Index - first], v),
    };

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }

    /// <summary>Bases at even numbers, masks at odd ones: bits above the guest's MAXPHYADDR are reserved in both.</summary>
    private bool IsVariable(uint msr, ulong value)
    {
        bool mask = (msr & 1) != 0;
        ulong reserved = ~((1UL << Cpu.CpuidFeatures.PhysicalAddressBits) - 1) | (mask ? 0x7ffUL : 0xf00);
        return (value & reserved) == 0 && (mask || IsType((byte)value));
    }

    private static bool AreTypes(ulong value)
    {
        for (int b = 0; b < 8; b++)
            if (!IsType((byte)(value >> (8 * b))))
                return false;
        return true;
    }

    /// <summary>UC, WC, WT, WP, WB.</summary>
    private static bool IsType(byte type) => type < 8 && (0x73 >> type & 1) != 0;
}

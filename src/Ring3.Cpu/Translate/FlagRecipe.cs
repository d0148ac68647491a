using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// How the six status flags follow from two values. The numbers appear in emitted code (<see cref="CpuState.CcKind"/>), with the operand size in bits 4 and
/// 5.
/// </summary>
internal enum FlagKind : byte
{
    /// <summary>The interpreter's three words hold.</summary>
    Words,
    /// <summary>A: low byte OF as SETO gives it, second byte as LAHF gives it.</summary>
    Packed,
    /// <summary>Of A - B.</summary>
    Compare,
    /// <summary>Of a subtraction that gave A and took B away.</summary>
    Subtract,
    /// <summary>Of an addition that gave A and added B.</summary>
    Add,
    /// <summary>Of a logical operation that gave A.</summary>
    Logic,
    /// <summary>Of A &amp; B.</summary>
    Test,
    /// <summary>Of a negation that gave A.</summary>
    Negate,
    /// <summary>Of A shifted by B, which is neither 0 nor masked any more; 32 and 64 bits.</summary>
    ShiftLeft, ShiftRight, ShiftRightSigned,
}

/// <summary>From recipes to flags. SPEC: SDM volume 1, "Status Flags"; AF of logical operations is 0, as processors do it.</summary>
internal static class FlagRecipe
{
    public static ulong Status(FlagKind kind, int log2Size, ulong a, ulong b)
    {
        switch (kind)
        {
            case FlagKind.Packed:
                return a >> 8 & (Rflags.Status & ~Rflags.OF) | (a & 1) << 11;
            case FlagKind.Compare:
                return OfSubtraction(log2Size, a, b);
            case FlagKind.Subtract:
                return OfSubtraction(log2Size, a + b, b);
            case FlagKind.Negate:
                return OfSubtraction(log2Size, 0, 0 - a);
            case FlagKind.Add:
                ulong x = a - b;
                return OfResult(log2Size, a, x & b | (x | b) & ~a);
            case FlagKind.Logic:
                return OfResult(log2Size, a, 0);
            case FlagKind.ShiftLeft or FlagKind.ShiftRight or FlagKind.ShiftRightSigned:
                return OfShift(kind, log2Size, a, (int)b);
            default:
                return OfResult(log2Size, a & b, 0);
        }
    }

    private static ulong OfSubtraction(int log2Size, ulong x, ulong b)
    {
        ulong r = x - b;
        return OfResult(log2Size, r, ~x & b | (~x | b) & r);
    }

    /// <summary>OF of a count above 1, which is undefined, is what the handlers make of it.</summary>
    private static ulong OfShift(FlagKind kind, int log2Size, ulong a, int count)
    {
        int bits = 8 << log2Size;
        if (kind == FlagKind.ShiftLeft)
        {
            ulong left = a << count, carry = a >> (bits - count) & 1;
            return OfResult(log2Size, left, 0) | carry | (carry ^ left >> (bits - 1) & 1) << 11;
        }
        a = a << (64 - bits) >> (64 - bits);
        ulong last = a >> (count - 1) & 1;
        if (kind == FlagKind.ShiftRight)
            return OfResult(log2Size, a >> count, 0) | last | ((a >> count ^ a >> count << 1) >> (bits - 1) & 1) << 11;
        long wide = bits == 32 ? (int)a : (long)a;
        return OfResult(log2Size, (ulong)(wide >> count), 0) | last;
    }

    /// <summary>Flags of a result and its vector of carries out of each bit.</summary>
    private static ulong OfResult(int log2Size, ulong r, ulong carries)
    {
        int bits = 8 << log2Size, unused = 64 - bits;
        ulong flags = 0;
        if (r << unused == 0)
            flags |= Rflags.ZF;
        flags |= (r >> (bits - 1) & 1) << 7;
        if ((System.Numerics.BitOperations.PopCount((uint)r & 0xff) & 1) == 0)
            flags |= Rflags.PF;
        ulong carry = carries >> (bits - 1) & 1;
        return flags | carry | (carries >> 3 & 1) << 4 | (carry ^ carries >> (bits - 2) & 1) << 11;
    }
}

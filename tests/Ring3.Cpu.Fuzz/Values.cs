using System.Runtime.CompilerServices;

namespace Ring3.Differential;

/// <summary>Values at which instructions change their behaviour: bounds, single bits, and every class of floating-point number.</summary>
/// <remarks>SAFETY: callers pass pointers to at least as many bytes as the method's name or parameter says.</remarks>
internal static unsafe class Values
{
    private static readonly uint[] s_single =
    [
        0, 0x8000_0000, 0x3f80_0000, 0xbf80_0000, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xff80_0001, 0x7fbf_ffff, 0x7fff_ffff, 1,
            0x8000_0001, 0x007f_ffff,
        0x807f_ffff, 0x0080_0000, 0x8080_0000, 0x7f7f_ffff, 0xff7f_ffff, 0x4f00_0000, 0xcf00_0000, 0x5f00_0000, 0xdf00_0000, 0x4eff_ffff, 0x4f80_0000,
            0x3f00_0000, 0xbf00_0000,
        0x3fc0_0000, 0x4020_0000, 0x4b00_0000, 0x4b7f_ffff, 0x4b80_0000, 0x3400_0000, 0x3eaa_aaab, 0x4049_0fdb, 0x477f_e000, 0x477f_f000, 0x3380_0000,
            0x3300_0000, 0x3880_0000, 0x387f_c000,
    ];

    private static readonly ulong[] s_double =
    [
        0, 0x8000_0000_0000_0000, 0x3ff0_0000_0000_0000, 0xbff0_0000_0000_0000, 0x7ff0_0000_0000_0000, 0xfff0_0000_0000_0000, 0x7ff8_0000_0000_0000,
            0xfff8_0000_0000_0000, 0x7ff0_0000_0000_0001,
        0xfff0_0000_0000_0001, 0x7ff7_ffff_ffff_ffff, 0x7fff_ffff_ffff_ffff, 1, 0x8000_0000_0000_0001, 0x000f_ffff_ffff_ffff, 0x800f_ffff_ffff_ffff,
            0x0010_0000_0000_0000, 0x8010_0000_0000_0000,
        0x7fef_ffff_ffff_ffff, 0xffef_ffff_ffff_ffff, 0x41e0_0000_0000_0000, 0xc1e0_0000_0000_0000, 0x41df_ffff_ffc0_0000, 0x43e0_0000_0000_0000,
            0xc3e0_0000_0000_0000, 0x3fe0_0000_0000_0000,
        0xbfe0_0000_0000_0000, 0x4004_0000_0000_0000, 0x4330_0000_0000_0000, 0x433f_ffff_ffff_ffff, 0x3cb0_0000_0000_0000, 0x47ef_ffff_e000_0000,
            0x47ef_ffff_f000_0000, 0x3810_0000_0000_0000,
        0x380f_ffff_ffff_ffff, 0x36a0_0000_0000_0000, 0x3690_0000_0000_0000, 0x3fd5_5555_5555_5555, 0x4009_21fb_5444_2d18,
    ];

    /// <summary>Exponent and sign word, then significand, of 80-bit numbers.</summary>
    private static readonly (ushort SignExponent, ulong Significand)[] s_extended =
    [
        (0, 0), (0x8000, 0), (0x3fff, 1UL << 63), (0xbfff, 1UL << 63), (0x7fff, 1UL << 63), (0xffff, 1UL << 63), (0x7fff, 0xc000_0000_0000_0000),
            (0xffff, 0xc000_0000_0000_0000),
        (0x7fff, 0x8000_0000_0000_0001), (0xffff, 0xa000_0000_0000_0000), (0, 1), (0x8000, 0x7fff_ffff_ffff_ffff), (0, 1UL << 63), (0x0001, 1UL << 63),
            (0x7ffe, ulong.MaxValue), (0xfffe, ulong.MaxValue),
        (0x7fff, 0), (0x7fff, 0x4000_0000_0000_0000), (0x3fff, 0x4000_0000_0000_0000), (0x4000, 0xc90f_daa2_2168_c235), (0x403e, 1UL << 63),
            (0xc03e, 1UL << 63), (0x401e, 1UL << 63), (0x400e, 1UL << 63),
        (0x3ffe, 1UL << 63), (0x4000, 0xa000_0000_0000_0000), (0x403e, ulong.MaxValue), (0x3ffd, 0xaaaa_aaaa_aaaa_aaab), (0x43fe, ulong.MaxValue),
            (0x3c01, 1UL << 63), (0x407e, 0xffff_ff80_0000_0000), (0x3f81, 1UL << 63),
    ];

    internal static ulong Integer(ref FuzzRandom r)
    {
        switch (r.Below(10))
        {
            case 0: return 0;
            case 1: return ulong.MaxValue;
            case 2: return 1UL << r.Below(64);
            case 3: return (1UL << r.Below(64)) - 1;
            case 4: return (ulong)r.Below(256);
            case 5: return ~0UL << r.Below(64);
            case 6: return (ulong)(long)(sbyte)r.Next();
            case 7: return (uint)r.Next();
            default: return r.Next();
        }
    }

    internal static uint Single(ref FuzzRandom r) => r.Below(4) switch
    {
        0 or 1 => r.Pick<uint>(s_single),
        2 => (uint)r.Next(),
        _ => BitConverter.SingleToUInt32Bits((r.Below(2001) - 1000) * 0.25f),
    };

    internal static ulong Double(ref FuzzRandom r) => r.Below(4) switch
    {
        0 or 1 => r.Pick<ulong>(s_double),
        2 => r.Next(),
        _ => BitConverter.DoubleToUInt64Bits((r.Below(2001) - 1000) * 0.25),
    };

    internal static void Extended(ref FuzzRandom r, byte* at)
    {
        (ushort SignExponent, ulong Significand) v = r.Below(5) switch
        {
            0 or 1 => r.Pick<(ushort, ulong)>(s_extended),
            2 => ((ushort)r.Next(), r.Next()),
            3 => ((ushort)((r.Next() & 0x8000) | (ulong)(0x3fff + r.Below(140) - 70)), r.Next() | 1UL << 63),
            _ => ((ushort)((r.Next() & 0x8000) | (ulong)(0x3fff + r.Below(20))), (r.Next() & ~0UL << 48) | 1UL << 63),
        };
        Unsafe.WriteUnaligned(at, v.Significand);
        Unsafe.WriteUnaligned(at + 8, v.SignExponent);
    }

    /// <summary>Fills <paramref name="bytes"/> bytes (a multiple of 8) with lanes of one random kind.</summary>
    internal static void Lanes(ref FuzzRandom r, byte* at, int bytes)
    {
        int kind = r.Below(6);
        for (int i = 0; i < bytes; i += 8)
        {
            ulong v = kind switch
            {
                0 or 1 => Single(ref r) | (ulong)Single(ref r) << 32,
                2 or 3 => Double(ref r),
                4 => r.Next(),
                _ => Integer(ref r),
            };
            Unsafe.WriteUnaligned(at + i, v);
        }
    }

    /// <summary>An operand of <paramref name="bytes"/> bytes, any number.</summary>
    internal static void Operand(ref FuzzRandom r, byte* at, int bytes)
    {
        byte* buffer = stackalloc byte[64];
        for (int done = 0; done < bytes; done += 64)
        {
            Lanes(ref r, buffer, 64);
            if (bytes == 10)
                Extended(ref r, buffer);
            else if (bytes <= 8)
                Unsafe.WriteUnaligned(buffer, r.Below(3) switch { 0 => bytes == 4 ? Single(ref r) : Double(ref r), _ => Integer(ref r) });
            Buffer.MemoryCopy(buffer, at + done, bytes - done, Math.Min(64, bytes - done));
        }
    }
}

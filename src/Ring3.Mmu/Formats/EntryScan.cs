using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace Ring3.Mmu;

/// <summary>Looks for bits in many entries at once. What it finds is a hint: entries change while they are looked at.</summary>
/// <remarks>SAFETY: (whole file) the caller names readable, 32-byte aligned entries.</remarks>
internal static class EntryScan
{
    /// <summary>Most entries in one call.</summary>
    public const int Group = 64;

    /// <summary>Bit n of the result: entry n has all bits of <paramref name="mask"/>.</summary>
    /// <param name="count">Entries: a multiple of 16, at most <see cref="Group"/>.</param>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe ulong Matching(ulong* entries, int count, ulong mask)
    {
        ulong found = 0;
        if (!Vector256.IsHardwareAccelerated)
        {
            for (int i = 0; i < count; i++)
                found |= ((entries[i] & mask) == mask ? 1UL : 0) << i;
            return found;
        }
        Vector256<ulong> wanted = Vector256.Create(mask);
        for (int i = 0; i < count; i += 16)
        {
            // Four vectors a step: their tests are independent.
            uint bits = Test(entries + i, wanted) | Test(entries + i + 4, wanted) << 4 | Test(entries + i + 8, wanted) << 8
                | Test(entries + i + 12, wanted) << 12;
            found |= (ulong)bits << i;
        }
        return found;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static unsafe uint Test(ulong* entries, Vector256<ulong> wanted) =>
        Vector256.Equals(Vector256.LoadAligned(entries) & wanted, wanted).ExtractMostSignificantBits();
}

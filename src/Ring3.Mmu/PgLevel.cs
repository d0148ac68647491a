using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Mmu;

/// <summary>Page-table levels, counted from 1 as KVM does.</summary>
public static class PgLevel
{
    public const int Level4K = 1, Level2M = 2, Level1G = 3, Root4 = 4;
    /// <summary>Largest level that can map memory.</summary>
    public const int MaxLeaf = Level1G;

    /// <summary>log2 of the bytes that one entry covers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Shift(int level) => Page.Shift + (level - 1) * 9;

    /// <summary>Bytes that one entry covers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Bytes(int level) => 1UL << Shift(level);

    /// <summary>4 KiB pages that one entry covers.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Pages(int level) => 1UL << (level - 1) * 9;

    /// <summary>Index of a gfn's entry in a table of this level.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Index(ulong gfn, int level) => (int)(gfn >> (level - 1) * 9) & 511;

    /// <summary>First gfn of the entry that contains <paramref name="gfn"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong AlignDown(ulong gfn, int level) => gfn & ~(Pages(level) - 1);
}

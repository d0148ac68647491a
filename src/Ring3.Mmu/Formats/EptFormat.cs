using System.Runtime.CompilerServices;

namespace Ring3.Mmu;

/// <summary>The tables that Ring3's processor walks: EPT with Accessed and Dirty flags. Bits: <see cref="Spte"/>.</summary>
internal readonly struct EptFormat : ITableFormat
{
    public static int RootLevel => PgLevel.Root4;

    public static int IndexBits(int level) => 9;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int PagesShift(int level) => (level - 1) * 9;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsPresent(ulong entry) => Spte.IsPresent(entry);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsLeaf(ulong entry, int level) => Spte.IsLeaf(entry, level);

    public static ulong TableAddress(ulong entry) => Spte.Address(entry);

    public static ulong Accessed => Spte.A;
    public static ulong Dirty => Spte.D;
    public static ulong YoungLeaf => Spte.Present | Spte.A;
    public static bool TablesHaveAccessed => true;
}

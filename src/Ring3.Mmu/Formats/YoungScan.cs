using System.Numerics;
using System.Runtime.CompilerServices;

namespace Ring3.Mmu;

/// <summary>One lockless aging pass over a range of one set of tables.</summary>
/// <remarks>
/// <para>Accessed bits go by compare-exchange of the value that was read, so a Dirty bit, a right or a mapping that somebody changes meanwhile stays as that
/// somebody left it; young information may be lost with the exchange.</para>
/// <para>Tables with Accessed bits. Where the processor sets the bit in every entry on its way, an entry of level 2 without it says that nobody has walked to
/// the pages below since it was cleared: the table is skipped. It is cleared only when all pages below it are aged with it, and <i>before</i> they are looked
/// at, so a walk that comes later sets it again:
/// <code>
/// pass                                   walk
/// table entry: A = 0                     table entry: A is 1, nothing to do
/// leaves: none has A
///                                        leaf: A = 1      -> seen by the first pass after the next walk through this table entry
/// </code>
/// That race is the price: an access can be reported late, or not at all if no walk follows. A processor that caches table entries has the same effect for as
/// long as it keeps one, since nothing is flushed.</para>
/// SAFETY: (whole file) tables are reached through an iterator, inside the caller's RCU section.
/// </remarks>
internal static class YoungScan<TFormat> where TFormat : struct, ITableFormat
{
    private const int TableLevel = 2;

    /// <summary>Clears the Accessed bits of [start, end) and sets bit gfn - <paramref name="origin"/> in <paramref name="bitmap"/> for each page that was
    /// young. A huge leaf reports all its pages.</summary>
    /// <param name="table">Host address of the top table.</param>
    public static void TestClear(ulong table, int rootLevel, ulong start, ulong end, ulong origin, Span<ulong> bitmap)
    {
        var it = new TdpIterator<TFormat>(table, rootLevel, start, end, TableLevel);
        while (it.MoveNext())
        {
            if (it.IsPresentLeaf)
            {
                if (TryClear(ref it))
                    PageBitmap.SetRange(bitmap, Math.Max(it.Gfn, start) - origin, Math.Min(it.EndGfn, end) - origin);
            }
            else if (it.Level == TableLevel && it.IsTable)
                ScanTable(ref it, Math.Max(it.Gfn, start), Math.Min(it.EndGfn, end), origin, bitmap);
        }
    }

    /// <summary>True if the iterator's leaf was young. BENIGN-RACE: when the entry changes under the exchange the bit stays or is lost with the mapping; the
    /// page is reported young either way.</summary>
    public static unsafe bool TryClear(ref TdpIterator<TFormat> it)
    {
        ulong young = it.OldSpte;
        if ((young & TFormat.Accessed) == 0)
            return false;
        Interlocked.CompareExchange(ref *it.Sptep, young & ~TFormat.Accessed, young);
        return true;
    }

    // At full speed from the first call: a pass over a large guest is few calls.
    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static unsafe void ScanTable(ref TdpIterator<TFormat> it, ulong first, ulong end, ulong origin, Span<ulong> bitmap)
    {
        if (TFormat.TablesHaveAccessed)
        {
            if ((it.OldSpte & TFormat.Accessed) == 0)
                return;
            if (first == it.Gfn && end == it.EndGfn)
                Interlocked.CompareExchange(ref *it.Sptep, it.OldSpte & ~TFormat.Accessed, it.OldSpte);
        }
        ulong* entries = (ulong*)TFormat.TableAddress(it.OldSpte);
        int size = Math.Min(1 << TFormat.IndexBits(TableLevel - 1), EntryScan.Group);
        for (ulong gfn = first; gfn < end;)
        {
            int index = (int)(gfn - it.Gfn), inGroup = index & (size - 1), n = (int)Math.Min((ulong)(size - inGroup), end - gfn);
            ulong young = EntryScan.Matching(entries + index - inGroup, size, TFormat.YoungLeaf) >> inGroup & ulong.MaxValue >> (64 - n);
            if (young != 0)
            {
                Clear(entries + index, young);
                PageBitmap.Or(bitmap, gfn - origin, young);
            }
            gfn += (ulong)n;
        }
    }

    [MethodImpl(MethodImplOptions.AggressiveOptimization)]
    private static unsafe void Clear(ulong* entries, ulong young)
    {
        for (; young != 0; young &= young - 1)
        {
            ref ulong entry = ref entries[BitOperations.TrailingZeroCount(young)];
            ulong old = Volatile.Read(ref entry);
            if ((old & TFormat.YoungLeaf) == TFormat.YoungLeaf)
                Interlocked.CompareExchange(ref entry, old & ~TFormat.Accessed, old);
        }
    }
}

using System.Runtime.InteropServices;

namespace Ring3.Mmu.Power;

/// <summary>
/// Hashed page table of a VM: groups of eight 16-byte entries, filled by the guest's H_ENTER, and for each guest page the list of entries that map it. 64 KiB
/// pages in 256 MiB segments. SPEC: Power ISA v3.0 book III, "HPT Translation".
/// </summary>
/// <remarks>
/// <code>
/// doubleword 0   2-56 AVPN (virtual address >> 23), 61 L large page, 62 H secondary hash, 63 V valid
/// doubleword 1   7-43 RPN, 44-51 page size, 55 R, 56 C, 62-63 PP
/// </code>
/// One page of the guest may be mapped by many entries, which only the lists know: every operation needs mmu_lock in write mode, and nothing here can be done
/// without it. The processor alone takes no lock: it sets R and C, each by a store to the byte that holds it (bytes 14 and 15), so software too clears them by
/// byte stores; a store of the doubleword would undo what the processor sets meanwhile.
/// SAFETY: (whole type) indexes are below the table's size; the memory lives until Dispose.
/// </remarks>
internal sealed class HashTable : IDisposable
{
    public const int GroupEntries = 8;
    private const int EntryShift = 4, GroupShift = 7, SegmentShift = 28, AvpnShift = 23;
    private const ulong Large = 4, Secondary = 2, Valid = 1, PageSize64K = 1UL << 12, RealPage = 0x01ff_ffff_ffff_0000;
    private const int ReferencedByte = 14, ChangedByte = 15;
    private const byte ReferencedBit = 1, ChangedBit = 0x80, ReadWrite = 2, ReadOnly = 3;

    private readonly unsafe byte* _table;
    private readonly int _order;
    /// <summary>For each guest page the first of its entries, for each entry the next one; plus one, 0 ends.</summary>
    private readonly int[] _first, _next;
    private readonly ulong[] _pageOf;

    /// <param name="order">log2 of the table's bytes.</param>
    /// <param name="pages">Guest pages.</param>
    public unsafe HashTable(int order, ulong pages)
    {
        _order = order;
        nuint bytes = (nuint)1 << order;
        _table = (byte*)NativeMemory.AlignedAlloc(bytes, bytes);
        NativeMemory.Clear(_table, bytes);
        _first = new int[pages];
        _next = new int[1 << order - EntryShift];
        _pageOf = new ulong[_next.Length];
    }

    public unsafe PartitionEntry Entry => PartitionEntry.Hash((ulong)_table, _order);

    /// <summary>Group of a virtual address: virtual segment number exclusive-or page number in the segment.</summary>
    public static ulong GroupOf(ulong va, bool secondary, int order)
    {
        ulong hash = va >> SegmentShift ^ (va & (1UL << SegmentShift) - 1) >> RadixFormat.PageShift;
        return (secondary ? ~hash : hash) & (1UL << order - GroupShift) - 1;
    }

    /// <summary>Doubleword 0 of a valid entry for a virtual address.</summary>
    public static ulong MakeTag(ulong va, bool secondary) => va >> AvpnShift << 7 | Large | (secondary ? Secondary : 0) | Valid;

    /// <summary>H_ENTER without H_EXACT: maps a virtual address to a guest page in the group that the guest has chosen. False: the group is full
    /// (H_PTEG_FULL).</summary>
    public unsafe bool Enter(ulong va, bool secondary, ulong gfn, ulong hva, bool writable)
    {
        ulong group = GroupOf(va, secondary, _order);
        for (ulong i = group * GroupEntries; i < (group + 1) * GroupEntries; i++)
        {
            ulong* entry = (ulong*)(_table + (i << EntryShift));
            if (entry[0] != 0)
                continue;
            entry[1] = RadixFormat.InMemory(hva & RealPage | PageSize64K | (writable ? ReadWrite : (ulong)ReadOnly));
            // PAIRS-WITH: the processor's search (reads doubleword 0, then doubleword 1).
            Volatile.Write(ref entry[0], RadixFormat.InMemory(MakeTag(va, secondary)));
            (_pageOf[i], _next[i], _first[gfn]) = (gfn, _first[gfn], (int)i + 1);
            return true;
        }
        return false;
    }

    /// <summary>Whether any entry of a guest page was referenced; none is afterwards. No flush, as in every other table.</summary>
    public bool TestClearYoung(ulong gfn)
    {
        bool young = false;
        for (int i = _first[gfn]; i != 0; i = _next[i - 1])
            young |= TestClear(i, ReferencedByte, ReferencedBit);
        return young;
    }

    /// <summary>Whether any entry of a guest page was changed; none is afterwards. A flush is owed.</summary>
    public bool TestClearDirty(ulong gfn)
    {
        bool dirty = false;
        for (int i = _first[gfn]; i != 0; i = _next[i - 1])
            dirty |= TestClear(i, ChangedByte, ChangedBit);
        return dirty;
    }

    /// <summary>Makes the entries of a guest page invalid. C is final after a flush; then <see cref="Release"/>.</summary>
    /// <returns>True if there were any.</returns>
    public unsafe bool Invalidate(ulong gfn)
    {
        for (int i = _first[gfn]; i != 0; i = _next[i - 1])
        {
            ulong* tag = (ulong*)(_table + ((ulong)(i - 1) << EntryShift));
            Volatile.Write(ref *tag, *tag & ~RadixFormat.InMemory(Valid));
        }
        return _first[gfn] != 0;
    }

    /// <summary>Empties the invalid entries of a guest page, after a flush. True if one was changed.</summary>
    public unsafe bool Release(ulong gfn)
    {
        bool dirty = TestClearDirty(gfn);
        for (int i = _first[gfn]; i != 0; i = _next[i - 1])
            *(ulong*)(_table + ((ulong)(i - 1) << EntryShift)) = 0;
        _first[gfn] = 0;
        return dirty;
    }

    private unsafe bool TestClear(int i, int offset, byte bit)
    {
        ref byte b = ref _table[((ulong)(i - 1) << EntryShift) + (ulong)offset];
        byte value = Volatile.Read(ref b);
        if ((value & bit) == 0)
            return false;
        Volatile.Write(ref b, (byte)(value & ~bit));
        return true;
    }

    public unsafe void Dispose() => NativeMemory.AlignedFree(_table);
}

using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>What a walk found. The flags are the guest's and the nested permissions of one 4 KiB piece, independent of CPL and control registers.</summary>
[Flags]
internal enum PageFlags : uint
{
    None = 0,
    /// <summary>Guest: writable, user, no-execute in the sense of the combined entries.</summary>
    Writable = 1, User = 2, NoExecute = 4,
    /// <summary>Guest leaf has D set; nested leaf has D set.</summary>
    Dirty = 8, NestedDirty = 16,
    NestedRead = 32, NestedWrite = 64, NestedExecute = 128,
    Global = 256,
    /// <summary>Four bits: the leaf's protection key, in 4-level and 5-level paging.</summary>
    Key = 0xf << 12,
}

/// <summary>
/// Level-2 TLB: 4-way set-associative, 4 KiB pieces, tagged with the numbers that <see cref="Tlb"/> allocates for (ASID, PCID) and for an ASID's global pages;
/// and a cache of page-directory entries (the last level of tables), so that most misses read one guest entry.
/// </summary>
/// <remarks>SAFETY: unmanaged arrays owned by this object, indices masked.</remarks>
internal sealed unsafe class TlbLevel2
{
    private const int Ways = 4, Sets = 512;
    internal const int Capacity = Ways * Sets, StructureEntries = 128;

    [StructLayout(LayoutKind.Sequential, Size = 32)]
    internal struct Entry
    {
        public ulong Vpn;
        public byte* Host;
        public ulong Gpa;
        /// <summary>0 = invalid.</summary>
        public uint Tag;
        public PageFlags Flags;
    }

    /// <summary>A last-level table: its host page, and the permissions that the entries above it combine to.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 32)]
    internal struct Structure
    {
        public ulong Vpn2M;
        public ulong TableGpa;
        public uint Tag;
        public PageFlags Flags;
        /// <summary>Flush count at insertion; an older entry is invalid.</summary>
        public ulong Epoch;
    }

    private readonly Entry* _entries = (Entry*)HostMemory.Map((nuint)(Ways * Sets * sizeof(Entry)));
    private readonly Structure* _structures = (Structure*)HostMemory.Map((nuint)(StructureEntries * sizeof(Structure)));
    private uint _victim;
    private ulong _structureEpoch;

    public void Free()
    {
        HostMemory.Unmap(_entries, (nuint)(Ways * Sets * sizeof(Entry)));
        HostMemory.Unmap(_structures, (nuint)(StructureEntries * sizeof(Structure)));
    }

    private static uint SetOf(ulong vpn) => (uint)(vpn ^ (vpn >> 9)) & (Sets - 1);

    /// <summary>The entry for a page in the space <paramref name="space"/> or among the global pages <paramref name="global"/>, or null.</summary>
    public Entry* Find(ulong vpn, uint space, uint global)
    {
        Entry* e = _entries + SetOf(vpn) * Ways;
        for (int i = 0; i < Ways; i++, e++)
            if (e->Vpn == vpn && e->Tag != 0 && (e->Tag == space || e->Tag == global))
                return e;
        return null;
    }

    /// <returns>The entry's place, for <see cref="IndexOf"/>.</returns>
    public Entry* Insert(ulong vpn, uint tag, byte* host, ulong gpa, PageFlags flags)
    {
        Entry* set = _entries + SetOf(vpn) * Ways;
        Entry* slot = set + (_victim++ & (Ways - 1));
        for (int i = 0; i < Ways; i++)
            if (set[i].Tag == 0 || (set[i].Vpn == vpn && set[i].Tag == tag))
            {
                slot = set + i;
                break;
            }
        *slot = new Entry { Vpn = vpn, Host = host, Gpa = gpa, Tag = tag, Flags = flags };
        return slot;
    }

    public int IndexOf(Entry* e) => (int)(e - _entries);

    public static int StructureIndex(ulong vpn2M) => (int)(vpn2M & (StructureEntries - 1));

    /// <summary>Drops the entries of guest frames [start, end), and cached table entries.</summary>
    public void FlushGfns(ulong start, ulong end)
    {
        ulong first = start << 12, bytes = (end - start) << 12;
        for (int i = 0; i < Capacity; i++)
            if (_entries[i].Gpa - first < bytes)
                _entries[i].Tag = 0;
        ClearStructures();
    }

    public void FlushPage(ulong vpn)
    {
        Entry* e = _entries + SetOf(vpn) * Ways;
        for (int i = 0; i < Ways; i++, e++)
            if (e->Vpn == vpn)
                e->Tag = 0;
    }

    public void FlushRange(ulong vpn, ulong pages)
    {
        for (int i = 0; i < Ways * Sets; i++)
            if (_entries[i].Vpn - vpn < pages)
                _entries[i].Tag = 0;
        ClearStructures();
    }

    public Structure* FindStructure(ulong vpn2M, uint space)
    {
        Structure* s = _structures + (vpn2M & (StructureEntries - 1));
        return s->Vpn2M == vpn2M && s->Tag == space && s->Epoch == _structureEpoch ? s : null;
    }

    public void InsertStructure(ulong vpn2M, uint space, ulong tableGpa, PageFlags flags) =>
        _structures[vpn2M & (StructureEntries - 1)] = new Structure { Vpn2M = vpn2M, TableGpa = tableGpa, Tag = space, Flags = flags, Epoch = _structureEpoch };

    /// <summary>INVLPG drops every cached table of the PCID, whatever its address.</summary>
    public void ClearStructures() => _structureEpoch++;

    public void Clear()
    {
        new Span<byte>(_entries, Ways * Sets * sizeof(Entry)).Clear();
        ClearStructures();
    }
}

/// <summary>Guest-physical translations (the second dimension), tagged by ASID. A guest cannot flush them; the owner does with FlushAsid.</summary>
/// <remarks>SAFETY: unmanaged array owned by this object, index masked.</remarks>
internal sealed unsafe class NestedTlb
{
    internal const int Entries = 512;

    [StructLayout(LayoutKind.Sequential, Size = 32)]
    internal struct Entry
    {
        public ulong Gfn;
        public byte* Host;
        /// <summary>0 = invalid.</summary>
        public uint Tag;
        public PageFlags Flags;
    }

    private readonly Entry* _entries = (Entry*)HostMemory.Map((nuint)(Entries * sizeof(Entry)));

    public static int IndexOf(ulong gfn) => (int)(gfn & (Entries - 1));

    /// <summary>Drops the entries of guest frames [start, end).</summary>
    public void FlushGfns(ulong start, ulong end)
    {
        for (int i = 0; i < Entries; i++)
            if (_entries[i].Gfn - start < end - start)
                _entries[i].Tag = 0;
    }

    public void Free() => HostMemory.Unmap(_entries, (nuint)(Entries * sizeof(Entry)));

    public Entry* Find(ulong gfn, uint tag)
    {
        Entry* e = _entries + (gfn & (Entries - 1));
        return e->Gfn == gfn && e->Tag == tag ? e : null;
    }

    public void Insert(ulong gfn, uint tag, byte* host, PageFlags flags) =>
        _entries[gfn & (Entries - 1)] = new Entry { Gfn = gfn, Host = host, Tag = tag, Flags = flags };

    public void Clear() => new Span<byte>(_entries, Entries * sizeof(Entry)).Clear();
}

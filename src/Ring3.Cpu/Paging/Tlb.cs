using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Entry of the level-1 TLB, 32 bytes. An access of <c>size</c> bytes at <c>lin</c> hits when
/// <c>(((lin + size - 1) &amp; ~0xfff) | c-&gt;TlbContext) == Tag</c>; an access that crosses a page never hits.
/// </summary>
[StructLayout(LayoutKind.Sequential, Size = 32)]
public unsafe struct TlbEntry
{
    /// <summary>Page | context for data reads (fetches in the fetch array); <see cref="Tlb.Invalid"/> when reads miss.</summary>
    public ulong TagRead;
    /// <summary>Page | context for writes; <see cref="Tlb.Invalid"/> until both dimensions are writable and dirty.</summary>
    public ulong TagWrite;
    /// <summary>Host address = linear address + Addend.</summary>
    public long Addend;
    /// <summary>Code bitmap of the host page: bit n is set when the 64-byte granule n holds decoded code.</summary>
    public ulong* CodeBits;
}

/// <summary>
/// Level-1 TLB and the allocation of its 12-bit context numbers.
/// A context stands for (ASID, PCID, privilege class) since the last flush that covered it. Flushing an ASID, a PCID or everything allocates new numbers
/// instead of
/// clearing entries; entries of a dropped number can never hit again until the numbers run out, and then everything is cleared.
/// </summary>
/// <remarks>SAFETY: the arrays are unmanaged, this object's for its lifetime, and indexed with masks. Owner thread only.</remarks>
internal sealed unsafe class Tlb
{
    /// <summary>Entries by page number; the second places of entries that others displaced, behind them; entries of instruction fetches.</summary>
    public const int Level1Entries = 8192, DisplacedEntries = 8192, FetchEntries = 256;
    /// <summary>Places of entries that were lent and are hidden (<see cref="TakeBack"/>), between those that were displaced and those of fetches.</summary>
    public const int HiddenEntries = 16;
    public const ulong Invalid = ulong.MaxValue;

    /// <summary>
    /// Numbers 1..LastContext are handed out. 0 is "none"; 0xfff would make a tag equal to <see cref="Invalid"/>, and so would lesser ones with the low five
    /// bits
    /// of an address added to them, as translated code does.
    /// </summary>
    private const ushort LastContext = 0xfff - 32;
    private const int SpaceSlots = 64;

    /// <summary>Data translations, indexed by linear page.</summary>
    public readonly TlbEntry* Level1;
    /// <summary>Instruction translations, indexed by linear page; only TagRead and Addend are used.</summary>
    public readonly TlbEntry* Fetch;
    public readonly TlbLevel2 Level2 = new();
    public readonly NestedTlb Nested = new();

    /// <summary>Translations of one (ASID, PCID): its level-2 tag and its level-1 context numbers by <see cref="PrivilegeClass"/>.</summary>
    private struct Space
    {
        public uint Asid, Pcid;
        /// <summary>Level-2 tag of the non-global translations; 0 = slot unused.</summary>
        public uint Id;
        public fixed ushort Contexts[(int)PrivilegeClass.Count];
    }

    /// <summary>The current space and ASID, where translated code finds the numbers of the contexts that it changes to.</summary>
    private struct Selection
    {
        public Space* Space;
        public AsidTags* Asid;
    }

    private readonly Space* _spaces;
    private readonly AsidTags* _asids;
    private readonly Selection* _selection;
    private ushort _nextContext = 1;
    private uint _nextId = 1;
    private Space* Current
    {
        get => _selection->Space;
        set => _selection->Space = value;
    }
    private AsidTags* CurrentAsid
    {
        get => _selection->Asid;
        set => _selection->Asid = value;
    }

    /// <summary>Level-2 tags of what an ASID shares among its PCIDs.</summary>
    private struct AsidTags
    {
        public uint Asid, GlobalId, NestedId;
        /// <summary>Context number of the supervisor's fetches from global pages; 0: none yet.</summary>
        public ushort CodeContext;
        /// <summary>
        /// The supervisor has executed a page that is not global since the global ones were dropped: its fetches are those of its address space.
        /// </summary>
        public bool LocalCode;
    }
    private const int AsidSlots = 16;

    /// <summary>
    /// Changes whenever a cached fetch translation may have gone without its context number changing: drop everything keyed by (rip, context).
    /// </summary>
    public uint FetchGeneration;

    // Linear pages that were executed (hashed), and 2 MiB / 1 GiB regions that are mapped by large pages but cached in 4 KiB pieces (hashed).
    private readonly ulong* _executed;
    private readonly ulong* _large2M;
    private readonly ulong* _large1G;
    private const int FilterWords = 1024, FilterBits = FilterWords * 64;

    // Statistics.
    public ulong Misses, Walks, NestedWalks, Flushes;

    /// <summary>Bytes of the memory that the constructor is given.</summary>
    public static nuint Bytes =>
        (nuint)((Level1Entries + DisplacedEntries + HiddenEntries + FetchEntries) * sizeof(TlbEntry) + 3 * FilterWords * 8 + SpaceSlots * sizeof(Space)
            + AsidSlots * sizeof(AsidTags) + sizeof(Selection));

    /// <summary>Bytes from the memory's begin to the pointers to the current space and ASID.</summary>
    public static int CurrentSpaceOffset => (int)Bytes - sizeof(Selection);
    public static int CurrentAsidOffset => CurrentSpaceOffset + sizeof(Space*);

    /// <summary>Bytes from a space to a context's number (16 bits, 0: none yet), and from an ASID to its fields that choose the supervisor's.</summary>
    public static int ContextOffset(PrivilegeClass privilege)
    {
        Space space;
        return (int)((byte*)&space.Contexts[(int)privilege] - (byte*)&space);
    }

    public static int CodeContextOffset
    {
        get
        {
            AsidTags tags;
            return (int)((byte*)&tags.CodeContext - (byte*)&tags);
        }
    }

    public static int LocalCodeOffset
    {
        get
        {
            AsidTags tags;
            return (int)((byte*)&tags.LocalCode - (byte*)&tags);
        }
    }

    /// <summary>Releases the memory; the processor never runs again.</summary>
    public void Free()
    {
        Level2.Free();
        Nested.Free();
    }

    /// <param name="at">Zeroed memory of <see cref="Bytes"/> bytes, which stays the caller's; level 1 comes first.</param>
    /// <param name="lent">Number of pages lent, for those who look before they call <see cref="TakeBack"/>.</param>
    /// <param name="lentTags">Their tags in level 1, <see cref="MaxLent"/> at most.</param>
    public Tlb(byte* at, int* lent, ulong* lentTags)
    {
        _lent = lent;
        _lentTags = lentTags;
        Level1 = (TlbEntry*)at;
        Fetch = Level1 + Level1Entries + DisplacedEntries + HiddenEntries;
        _executed = (ulong*)(Fetch + FetchEntries);
        _large2M = _executed + FilterWords;
        _large1G = _large2M + FilterWords;
        _spaces = (Space*)(_large1G + FilterWords);
        _asids = (AsidTags*)(_spaces + SpaceSlots);
        _selection = (Selection*)(at + CurrentSpaceOffset);
        Current = _spaces;
        CurrentAsid = _asids;
        ClearLevel1();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Index(ulong linear) => (int)(linear >> 12) & (Level1Entries - 1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int FetchIndex(ulong linear) => (int)(linear >> 12) & (FetchEntries - 1);

    /// <summary>Level-2 tag of the current PCID's own translations.</summary>
    public uint SpaceId => Current->Id;
    /// <summary>Level-2 tag of the current ASID's global translations.</summary>
    public uint GlobalId => CurrentAsid->GlobalId;
    /// <summary>Tag of the current ASID's guest-physical translations.</summary>
    public uint NestedId => CurrentAsid->NestedId;

    /// <summary>Makes (asid, pcid) current.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Select(uint asid, uint pcid)
    {
        Space* current = Current;
        if (current->Id == 0 || current->Asid != asid || current->Pcid != pcid)
            SelectOther(asid, pcid);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void SelectOther(uint asid, uint pcid)
    {
        AsidTags* tags = _asids + (asid & (AsidSlots - 1));
        if (tags->GlobalId == 0 || tags->Asid != asid)
        {
            if (tags->GlobalId != 0)
                DropSpaces(tags->Asid);
            *tags = new AsidTags { Asid = asid, GlobalId = NextId(), NestedId = NextId() };
        }
        CurrentAsid = tags;
        Space* space = SlotOf(asid, pcid);
        if (space->Id == 0 || space->Asid != asid || space->Pcid != pcid)
            *space = new Space { Asid = asid, Pcid = pcid, Id = NextId() };
        Current = space;
    }

    /// <summary>Context number of the current space for one privilege class.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public ushort Context(PrivilegeClass privilege)
    {
        ushort context = Current->Contexts[(int)privilege];
        return context != 0 ? context : AllocateContext(privilege);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private ushort AllocateContext(PrivilegeClass privilege)
    {
        return Current->Contexts[(int)privilege] = NextContext();
    }

    private ushort NextContext()
    {
        if (_nextContext > LastContext)
        {
            ClearLevel1();
            DropContexts();
            _nextContext = 1;
            FetchGeneration++;
        }
        return _nextContext++;
    }

    /// <summary>
    /// Context number of fetches by the supervisor, whose own number is <paramref name="own"/>. As long as all that it executes is global, every address space
    /// of the ASID has the same. May drop all numbers.
    /// </summary>
    public ulong CodeContext(ulong own)
    {
        AsidTags* tags = CurrentAsid;
        if (tags->LocalCode)
            return own;
        if (tags->CodeContext == 0)
            tags->CodeContext = NextContext();
        return tags->CodeContext;
    }

    /// <summary>The supervisor executes a page that is not global.</summary>
    public void ExecutesLocalCode() => CurrentAsid->LocalCode = true;

    private static void RenewGlobal(AsidTags* tags, uint id)
    {
        tags->GlobalId = id;
        tags->CodeContext = 0;
        tags->LocalCode = false;
    }

    /// <summary>Drops the current PCID's translations except the global ones (MOV CR3).</summary>
    public void FlushCurrentPcid()
    {
        Flushes++;
        Renew(Current);
    }

    /// <summary>Drops the translations of a PCID of the current ASID except the global ones (INVPCID type 1).</summary>
    public void FlushPcid(uint pcid)
    {
        Flushes++;
        Space* space = SlotOf(CurrentAsid->Asid, pcid);
        if (space->Id != 0 && space->Asid == CurrentAsid->Asid && space->Pcid == pcid)
            Renew(space);
    }

    /// <summary>Drops every linear translation of the current ASID, of all PCIDs (INVPCID types 2 and 3, changes of CR0, CR4 and EFER).</summary>
    public void FlushAllPcids(bool global)
    {
        Flushes++;
        for (int i = 0; i < SpaceSlots; i++)
            if (_spaces[i].Id != 0 && _spaces[i].Asid == CurrentAsid->Asid)
                Renew(_spaces + i);
        if (global)
            RenewGlobal(CurrentAsid, NextId());
    }

    /// <summary>Makes level 1 forget everything, keeping level 2: permissions are to be evaluated anew.</summary>
    public void DropContexts()
    {
        for (int i = 0; i < SpaceSlots; i++)
            ClearContexts(_spaces + i);
        for (int i = 0; i < AsidSlots; i++)
            _asids[i].CodeContext = 0;
    }

    // Level-1 entries of pages with a protection key: index, and key from bit 16 on. More than fit: all of level 1 counts.
    private const int MaxKeyed = 64, KeyedShift = 16;
    private readonly uint[] _keyed = new uint[MaxKeyed];
    private int _keyedCount;

    /// <summary>Remembers that a level-1 entry depends on the rights of a key. Key 0, which nearly every page has, is not remembered.</summary>
    public void NoteKeyed(ulong linear, int key)
    {
        uint entry = (uint)(Index(linear) | key << KeyedShift);
        if (key == 0 || _keyedCount > MaxKeyed || Array.IndexOf(_keyed, entry, 0, _keyedCount) >= 0)
            return;
        if (_keyedCount < MaxKeyed)
            _keyed[_keyedCount] = entry;
        _keyedCount++;
    }

    /// <summary>Level 1 forgets what depends on the keys whose bits in PKRU have changed. True: contexts have gone.</summary>
    public bool DropKeyed(uint changed)
    {
        if ((changed & 3) != 0 || _keyedCount > MaxKeyed)
        {
            DropContexts();
            _keyedCount = 0;
            return true;
        }
        int kept = 0;
        for (int i = 0; i < _keyedCount; i++)
        {
            uint entry = _keyed[i];
            if ((changed >> (int)(2 * (entry >> KeyedShift)) & 3) == 0)
                _keyed[kept++] = entry;
            else
                DropEntry(entry & (Level1Entries - 1));
        }
        _keyedCount = kept;
        return false;
    }

    /// <summary>So many pages are lent at most.</summary>
    public const int MaxLent = 8;
    private readonly int* _lent;
    private readonly ulong* _lentTags;

    /// <summary>
    /// Before level 1 gets a user page for the supervisor, with CR4.SMAP and RFLAGS.AC set: STAC and CLAC do not change the context, so the entry may be there
    /// only until AC is cleared.
    /// </summary>
    public void Lend(ulong tag)
    {
        for (int i = 0; i < *_lent; i++)
            if (_lentTags[i] == tag)
                return;
        if (*_lent == MaxLent)
            TakeBack();
        _lentTags[(*_lent)++] = tag;
    }

    /// <summary>
    /// No access finds the pages that were lent any more. To be called when RFLAGS.AC or the supervisor's privilege ends. Their entries are hidden, where an
    /// access that misses finds them as long as AC is set again (<see cref="TlbRoutines.Miss"/>), and what flushes level 1 drops them.
    /// </summary>
    public void TakeBack()
    {
        for (int i = 0; i < *_lent; i++)
        {
            Hide(DisplacedAt(_lentTags[i]), _lentTags[i]);
            Hide(Level1 + Index(_lentTags[i]), _lentTags[i]);
        }
        *_lent = 0;
    }

    private void Hide(TlbEntry* e, ulong tag)
    {
        if (e->TagRead == tag)
            *HiddenAt(tag) = *e;
        if (e->TagRead == tag)
            e->TagRead = Invalid;
        if (e->TagWrite == tag)
            e->TagWrite = Invalid;
    }

    private TlbEntry* Hidden => Level1 + Level1Entries + DisplacedEntries;

    /// <summary>The same page of two address spaces has two places, mostly.</summary>
    private TlbEntry* HiddenAt(ulong tag) => Hidden + ((tag >> 12) + tag & HiddenEntries - 1);

    /// <summary>The entry for a tag, to be filled. What it holds of another page or context goes to the second place: <see cref="TlbRoutines.Miss"/>.</summary>
    public TlbEntry* Displace(ulong tag)
    {
        TlbEntry* e = Level1 + Index(tag), displaced = DisplacedAt(tag);
        if (e->TagRead != tag && e->TagWrite != tag)
            *displaced = *e;
        return e;
    }

    private TlbEntry* DisplacedAt(ulong linear) => Level1 + Level1Entries + (Index(linear) & (DisplacedEntries - 1));

    /// <summary>Drops an entry, what it may have displaced or left, and all that are hidden.</summary>
    private void DropEntry(uint index)
    {
        TlbEntry* e = Level1 + index, displaced = DisplacedAt((ulong)index << 12);
        e->TagRead = e->TagWrite = displaced->TagRead = displaced->TagWrite = Invalid;
        for (int i = 0; i < HiddenEntries; i++)
            Hidden[i].TagRead = Hidden[i].TagWrite = Invalid;
    }

    /// <summary>Drops all translations of an ASID, linear and guest-physical.</summary>
    public void FlushAsid(uint asid)
    {
        Flushes++;
        DropSpaces(asid);
        AsidTags* tags = _asids + (asid & (AsidSlots - 1));
        if (tags->GlobalId != 0 && tags->Asid == asid)
        {
            RenewGlobal(tags, NextId());
            tags->NestedId = NextId();
        }
    }

    /// <summary>
    /// Drops what was derived from guest frames [start, end), in every ASID. Level 1 does not know guest frames: it is dropped as a whole and filled again from
    /// level 2. Cached table entries name guest frames, not
    /// host memory, but what they were read from may be among those that changed: they go.
    /// </summary>
    public void FlushGfns(ulong start, ulong end)
    {
        Flushes++;
        DropContexts();
        Level2.FlushGfns(start, end);
        Nested.FlushGfns(start, end);
    }

    /// <summary>Drops everything.</summary>
    public void FlushAll()
    {
        Flushes++;
        for (int i = 0; i < SpaceSlots; i++)
            if (_spaces[i].Id != 0)
                Renew(_spaces + i);
        for (int i = 0; i < AsidSlots; i++)
            if (_asids[i].GlobalId != 0)
            {
                RenewGlobal(_asids + i, NextId());
                _asids[i].NestedId = NextId();
            }
        new Span<ulong>(_executed, 3 * FilterWords).Clear();
        FetchGeneration++;
    }

    /// <summary>Drops the translations of the page that holds <paramref name="linear"/>, of any size, in every context (INVLPG).</summary>
    public void FlushPage(ulong linear)
    {
        Flushes++;
        if (Test(_large1G, linear >> 30))
            FlushRange(linear & ~((1UL << 30) - 1), 1UL << 30);
        else if (Test(_large2M, linear >> 21))
            FlushRange(linear & ~((1UL << 22) - 1), 1UL << 22);
        else
        {
            ulong page = linear & ~0xfffUL;
            DropEntry(Level1 + Index(linear), page);
            DropEntry(DisplacedAt(linear), page);
            for (int i = 0; i < HiddenEntries; i++)
                DropEntry(Hidden + i, page);
            DropEntry(Fetch + FetchIndex(linear), page);
            Level2.FlushPage(linear >> 12);
            Level2.ClearStructures();
            if (Test(_executed, linear >> 12))
                FetchGeneration++;
        }
    }

    /// <summary>Remembers that a page was executed through a cached translation.</summary>
    public void MarkExecuted(ulong linear) => Set(_executed, linear >> 12);

    /// <summary>Remembers that <paramref name="linear"/> lies in a page of 2 or 4 MiB (<paramref name="shift"/> 21 or 22) or 1 GiB (30).</summary>
    public void MarkLarge(ulong linear, int shift)
    {
        if (shift == 30)
            Set(_large1G, linear >> 30);
        else
        {
            Set(_large2M, linear >> 21);
            if (shift == 22)
                Set(_large2M, (linear >> 21) ^ 1);
        }
    }

    private void FlushRange(ulong start, ulong size)
    {
        // The pages of the range are neighbours in all arrays.
        FlushRange(Level1, Level1Entries, Index(start), start, size);
        FlushRange(Level1 + Level1Entries, DisplacedEntries, Index(start), start, size);
        FlushRange(Hidden, HiddenEntries, 0, start, size);
        FlushRange(Fetch, FetchEntries, FetchIndex(start), start, size);
        Level2.FlushRange(start >> 12, size >> 12);
        FetchGeneration++;
    }

    private static void FlushRange(TlbEntry* entries, int count, int first, ulong start, ulong size)
    {
        for (ulong left = Math.Min(size >> 12, (ulong)count); left != 0; left--, first++)
        {
            TlbEntry* e = entries + (first & (count - 1));
            if ((e->TagRead & ~0xfffUL) - start < size || (e->TagWrite & ~0xfffUL) - start < size)
                e->TagRead = e->TagWrite = Invalid;
        }
    }

    private static void DropEntry(TlbEntry* e, ulong page)
    {
        if ((e->TagRead & ~0xfffUL) == page || (e->TagWrite & ~0xfffUL) == page)
            e->TagRead = e->TagWrite = Invalid;
    }

    private void ClearLevel1()
    {
        *_lent = 0;
        for (int i = 0; i < Level1Entries + DisplacedEntries + HiddenEntries + FetchEntries; i++)
            Level1[i].TagRead = Level1[i].TagWrite = Invalid;
    }

    private void DropSpaces(uint asid)
    {
        for (int i = 0; i < SpaceSlots; i++)
            if (_spaces[i].Id != 0 && _spaces[i].Asid == asid)
                Renew(_spaces + i);
    }

    private void Renew(Space* space)
    {
        space->Id = NextId();
        ClearContexts(space);
    }

    private static void ClearContexts(Space* space)
    {
        for (int i = 0; i < (int)PrivilegeClass.Count; i++)
            space->Contexts[i] = 0;
    }

    private Space* SlotOf(uint asid, uint pcid) => _spaces + ((asid * 7 + pcid) & (SpaceSlots - 1));

    private uint NextId()
    {
        if (++_nextId == 0)
        {
            // 2^32 flushes: tags are about to be reused, so nothing cached may survive.
            Level2.Clear();
            Nested.Clear();
            _nextId = 1;
        }
        return _nextId;
    }

    private static void Set(ulong* filter, ulong number)
    {
        uint bit = (uint)(number ^ (number >> 16)) & (FilterBits - 1);
        filter[bit >> 6] |= 1UL << (int)(bit & 63);
    }

    private static bool Test(ulong* filter, ulong number)
    {
        uint bit = (uint)(number ^ (number >> 16)) & (FilterBits - 1);
        return (filter[bit >> 6] >> (int)(bit & 63) & 1) != 0;
    }
}

/// <summary>What a level-1 context says about the privilege of its accesses.</summary>
internal enum PrivilegeClass
{
    /// <summary>CPL 3.</summary>
    User,
    /// <summary>CPL 3 with alignment checks on: never inserted, so that every access takes the slow path.</summary>
    UserAligned,
    /// <summary>Supervisor; with CR4.SMAP set user pages are in reach only while they are lent (<see cref="Tlb.Lend"/>).</summary>
    Supervisor,
    Count,
}

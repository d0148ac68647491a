using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>How CR0.PG, CR4.PAE, EFER.LMA and CR4.LA57 select the guest's tables.</summary>
internal enum PagingMode { None, Legacy, Pae, FourLevel, FiveLevel }

/// <summary>One 4 KiB piece of a linear address space.</summary>
internal unsafe struct Translation
{
    /// <summary>Host address of the page; null for MMIO.</summary>
    public byte* Host;
    /// <summary>Guest-physical address of the page.</summary>
    public ulong Gpa;
    public PageFlags Flags;
    /// <summary>The page is global (CR4.PGE and G in the leaf).</summary>
    public bool Global;
}

/// <summary>The first dimension: linear to guest-physical through the guest's tables. SPEC: SDM volume 3, "Paging".</summary>
/// <remarks>SAFETY: guest tables are reached only through nested translations, read with Volatile, and written with compare-exchange.</remarks>
internal sealed unsafe partial class PagingUnit
{
    /// <summary>An entry on the way down, kept until the access is known to be allowed and its A and D bits are set.</summary>
    private struct WalkEntry
    {
        public ulong Gpa, Value;
    }

    private struct WalkState
    {
        public ulong Linear, LeafGpa, TableGpa;
        public PageFlags Flags;
        public int Count, LeafShift, EntrySize;
        public bool Global, FromCache;
        public WalkEntry E0, E1, E2, E3, E4;
    }

    private enum WalkResult { Ok, NotPresent, Reserved, Exit, Changed }

    /// <summary>Translates one linear page for an access, with every check and every A and D update in both dimensions, and fills level 2.</summary>
    private TranslateResult WalkAndFill(CpuState* c, ulong linear, AccessKind access, out Translation t)
    {
        Tlb.Walks++;
        Sanitizer?.BeginWalk();
        t = default;
        WalkState w = default;
        if ((c->Cr0 & Cr0.PG) == 0)
        {
            w.LeafGpa = linear & ~0xfffUL;
            w.Flags = PageFlags.Writable | PageFlags.User | PageFlags.Dirty;
        }
        else
        {
            TranslateResult guest = WalkGuest(c, linear, access, &w);
            if (guest != TranslateResult.Ok)
                return guest;
        }
        t.Gpa = w.LeafGpa;
        t.Global = w.Global;
        AccessKind kind = access & (AccessKind.Read | AccessKind.Write | AccessKind.Execute);
        TranslateResult nested = NestedTranslate(c, w.LeafGpa | (linear & 0xfff), kind
            | (access & AccessKind.User), linear, out t.Host, out PageFlags nestedFlags);
        if (nested != TranslateResult.Ok)
            return nested;
        t.Flags = w.Flags | nestedFlags;
        TlbLevel2.Entry* e = Tlb.Level2.Insert(linear >> 12, w.Global ? Tlb.GlobalId : Tlb.SpaceId, t.Host, t.Gpa, t.Flags);
        Sanitizer?.Level2Filled(c, Tlb.Level2.IndexOf(e), w.Global, CpuMode.CurrentPcid(c));
        if (w.LeafShift > 12)
            Tlb.MarkLarge(linear, w.LeafShift);
        return TranslateResult.Ok;
    }

    private TranslateResult WalkGuest(CpuState* c, ulong linear, AccessKind access, WalkState* w)
    {
        for (; ; )
        {
            WalkResult r = ReadTables(c, linear, w, true);
            if (r == WalkResult.Ok && !Permits(c, w->Flags, access))
            {
                Outcome.RaisePageFault(c, linear, FaultCode(c, access) | PageFaultError.P | (KeyForbids(c, w->Flags, access) ? PageFaultError.PK : 0));
                return TranslateResult.Fault;
            }
            if (r == WalkResult.Ok)
                r = SetAccessedAndDirty(c, access, w);
            switch (r)
            {
                case WalkResult.Ok:
                    if (w->LeafShift == 12 && !w->FromCache)
                    {
                        Tlb.Level2.InsertStructure(linear >> 21, Tlb.SpaceId, w->TableGpa, StructureFlags(w));
                        Sanitizer?.StructureFilled(c, TlbLevel2.StructureIndex(linear >> 21), CpuMode.CurrentPcid(c));
                    }
                    return TranslateResult.Ok;
                case WalkResult.NotPresent:
                    Outcome.RaisePageFault(c, linear, FaultCode(c, access));
                    return TranslateResult.Fault;
                case WalkResult.Reserved:
                    Outcome.RaisePageFault(c, linear, FaultCode(c, access) | PageFaultError.P | PageFaultError.RSVD);
                    return TranslateResult.Fault;
                case WalkResult.Exit:
                    return TranslateResult.Exit;
            }
        }
    }

    private static PageFlags StructureFlags(WalkState* w)
    {
        PageFlags flags = PageFlags.Writable | PageFlags.User;
        WalkEntry* e = &w->E0;
        for (int i = 0; i < w->Count - 1; i++)
            flags = Combine(flags, e[i].Value, w->EntrySize == 8);
        return flags;
    }

    private static PageFlags Combine(PageFlags flags, ulong entry, bool wide)
    {
        if ((entry & Pte.W) == 0)
            flags &= ~PageFlags.Writable;
        if ((entry & Pte.U) == 0)
            flags &= ~PageFlags.User;
        if (wide && (entry & Pte.NX) != 0)
            flags |= PageFlags.NoExecute;
        return flags;
    }

    /// <summary>
    /// Follows the tables down to the leaf without checking permissions. With <paramref name="fill"/> off nothing is cached, nothing nested is marked and no
    /// exit is raised.
    /// </summary>
    private WalkResult ReadTables(CpuState* c, ulong linear, WalkState* w, bool fill)
    {
        PagingMode mode = CpuMode.PagingModeOf(c);
        *w = new WalkState { Linear = linear };
        w->Flags = PageFlags.Writable | PageFlags.User;
        w->EntrySize = mode == PagingMode.Legacy ? 4 : 8;
        int level = mode switch { PagingMode.FiveLevel => 5, PagingMode.FourLevel => 4, _ => 2 };
        int indexBits = mode == PagingMode.Legacy ? 10 : 9;
        ulong table = mode == PagingMode.Legacy ? c->Cr3 & 0xffff_f000 : c->Cr3 & Pte.Address;
        if (mode == PagingMode.Pae)
        {
            ulong pdpte = c->Pdptr[(linear >> 30) & 3];
            if ((pdpte & Pte.P) == 0)
                return WalkResult.NotPresent;
            table = pdpte & Pte.Address;
        }
        if (fill)
        {
            TlbLevel2.Structure* s = Tlb.Level2.FindStructure(linear >> 21, Tlb.SpaceId);
            if (s != null && (Sanitizer is null || Sanitizer.AllowsStructure(c, TlbLevel2.StructureIndex(linear >> 21), linear)))
            {
                w->FromCache = true;
                w->Flags = s->Flags;
                table = s->TableGpa;
                level = 1;
            }
        }
        WalkEntry* at = &w->E0;
        for (; ; level--, at++)
        {
            int shift = 12 + indexBits * (level - 1);
            ulong index = (linear >> shift) & ((1UL << indexBits) - 1);
            at->Gpa = table + index * (ulong)w->EntrySize;
            if (!ReadTableEntry(c, at->Gpa, w->EntrySize, linear, fill, out at->Value))
                return WalkResult.Exit;
            ulong entry = at->Value;
            if ((entry & Pte.P) == 0)
                return WalkResult.NotPresent;
            bool large = level > 1 && (entry & Pte.PS) != 0 && (mode != PagingMode.Legacy || (c->Cr4 & Cr4.PSE) != 0);
            if ((entry & ReservedBits(c, mode, level, large)) != 0)
                return WalkResult.Reserved;
            w->Count++;
            w->Flags = Combine(w->Flags, entry, w->EntrySize == 8);
            if (level == 1 || large)
            {
                SetLeaf(c, mode, linear, shift, entry, w);
                return WalkResult.Ok;
            }
            table = mode == PagingMode.Legacy ? entry & 0xffff_f000 : entry & Pte.Address;
            w->TableGpa = table;
        }
    }

    private static void SetLeaf(CpuState* c, PagingMode mode, ulong linear, int shift, ulong entry, WalkState* w)
    {
        ulong offset = (1UL << shift) - 1;
        ulong frame = entry & Pte.Address & ~offset;
        if (mode == PagingMode.Legacy && shift == 22)
            frame = (entry & 0xffc0_0000) | ((entry >> 13 & 0xff) << 32);
        w->LeafShift = shift;
        w->LeafGpa = frame | (linear & offset & ~0xfffUL);
        w->Global = (entry & Pte.G) != 0 && (c->Cr4 & Cr4.PGE) != 0;
        if ((entry & Pte.D) != 0)
            w->Flags |= PageFlags.Dirty;
        if (mode >= PagingMode.FourLevel)
            w->Flags |= (PageFlags)((uint)(entry >> Pte.KeyShift) << KeyShift) & PageFlags.Key;
    }

    /// <summary>
    /// Bits that must be 0 in a present directory entry of 4 bytes that maps 4 MiB: with PSE-36 the address has up to 40 bits, of which this guest has
    /// MAXPHYADDR, else 32.
    /// </summary>
    public ulong ReservedLargePage32
    {
        get
        {
            int wide = _identity.Features.Pse36 ? Math.Min(_identity.Features.PhysicalAddressBits, 40) - 32 : 0;
            return (1UL << 21) | ((0xffUL << (13 + wide)) & 0x1f_e000);
        }
    }

    /// <summary>Bits that must be 0 in a present entry.</summary>
    internal ulong ReservedBits(CpuState* c, PagingMode mode, int level, bool large)
    {
        if (mode == PagingMode.Legacy)
            return large ? ReservedLargePage32 : 0;
        ulong reserved = Pte.Address & ~((1UL << _identity.Features.PhysicalAddressBits) - 1);
        if ((c->Efer & Efer.NXE) == 0)
            reserved |= Pte.NX;
        if (mode == PagingMode.Pae)
            reserved |= 0x7ff0_0000_0000_0000;
        if (level >= 4 || (level == 3 && !_identity.Features.Pages1G))
            reserved |= level >= 4 && _identity.Model.ReservesTopGlobal ? Pte.PS | Pte.G : Pte.PS;
        else if (large)
            reserved |= ((1UL << (12 + 9 * (level - 1))) - 1) & ~0x1fffUL;
        return reserved;
    }

    /// <summary>Reads a guest table entry. False: an exit is pending (or, without <paramref name="fill"/>, the memory is not there).</summary>
    private bool ReadTableEntry(CpuState* c, ulong gpa, int size, ulong linear, bool fill, out ulong value)
    {
        value = 0;
        byte* host;
        if (!fill)
        {
            host = PeekNested(c, gpa);
            if (host == null)
                return false;
            host += gpa & 0xfff;
            if (size == 8)
                return UserCopy.TryRead8((ulong)host, out value);
            bool readable = UserCopy.TryRead4((ulong)host, out uint narrow);
            value = narrow;
            return readable;
        }
        else
        {
            TranslateResult r = NestedTranslate(c, gpa, AccessKind.Read | AccessKind.GuestPageWalk, linear, out host, out _);
            if (r == TranslateResult.Mmio)
            {
                // KVM: page tables are read from memory slots only; without one there is nothing to continue with.
                c->Exit->Gpa = gpa;
                c->Exit->Gva = linear;
                c->Exit->InstructionLength = 0;
                Outcome.Leave(c, ExitReason.EmulationFailure);
                return false;
            }
            if (r != TranslateResult.Ok)
                return false;
        }
        host += gpa & 0xfff;
        value = size == 8 ? Volatile.Read(ref *(ulong*)host) : Volatile.Read(ref *(uint*)host);
        return true;
    }

    private WalkResult SetAccessedAndDirty(CpuState* c, AccessKind access, WalkState* w)
    {
        WalkEntry* e = &w->E0;
        for (int i = 0; i < w->Count; i++, e++)
        {
            bool leaf = i == w->Count - 1;
            ulong set = leaf && (access & AccessKind.Write) != 0 ? Pte.A | Pte.D : Pte.A;
            if ((e->Value & set) == set)
                continue;
            TranslateResult r = NestedTranslate(c, e->Gpa, AccessKind.Write | AccessKind.GuestPageWalk, w->Linear, out byte* host, out _);
            if (r == TranslateResult.Mmio)
                continue;
            if (r != TranslateResult.Ok)
            {
                c->Exit->Gva = w->Linear;
                return WalkResult.Exit;
            }
            Observer?.MayWrite(host);
            host += e->Gpa & 0xfff;
            if (w->EntrySize == 8)
            {
                if (!TrySet((ulong*)host, e->Value, set))
                    return WalkResult.Changed;
            }
            else if (Interlocked.CompareExchange(ref *(uint*)host, (uint)(e->Value | set), (uint)e->Value) != (uint)e->Value)
                return WalkResult.Changed;
            if (leaf && (set & Pte.D) != 0)
                w->Flags |= PageFlags.Dirty;
            CodeMayHaveChanged(host, w->EntrySize);
        }
        return WalkResult.Ok;
    }

    /// <summary>Position of <see cref="PageFlags.Key"/>.</summary>
    private const int KeyShift = 12;

    /// <summary>Whether the combined guest permissions and the page's protection key allow an access.</summary>
    private static bool Permits(CpuState* c, PageFlags flags, AccessKind access) => EntriesPermit(c, flags, access) && !KeyForbids(c, flags, access);

    /// <summary>
    /// Whether PKRU forbids a data access to a user page: access disable, or write disable, which like the W bit of entries counts for the supervisor with
    /// CR0.WP only. SPEC: SDM volume 3, "Protection Keys".
    /// </summary>
    private static bool KeyForbids(CpuState* c, PageFlags flags, AccessKind access)
    {
        const uint accessDisable = 1, writeDisable = 2;
        if ((c->Cr4 & Cr4.PKE) == 0 || (flags & PageFlags.User) == 0 || (access & AccessKind.Execute) != 0 || (c->Efer & Efer.LMA) == 0)
            return false;
        uint rights = c->Pkru >> (2 * KeyOf(flags));
        if ((rights & accessDisable) != 0)
            return true;
        return (rights & writeDisable) != 0 && (access & AccessKind.Write) != 0 && ((access & AccessKind.User) != 0 || (c->Cr0 & Cr0.WP) != 0);
    }

    private static int KeyOf(PageFlags flags) => (int)(flags & PageFlags.Key) >> KeyShift;

    /// <summary>Whether the combined entries allow an access. SPEC: SDM volume 3, "Determination of Access Rights".</summary>
    private static bool EntriesPermit(CpuState* c, PageFlags flags, AccessKind access)
    {
        bool userPage = (flags & PageFlags.User) != 0;
        if ((access & AccessKind.User) != 0)
        {
            if (!userPage)
                return false;
            if ((access & AccessKind.Execute) != 0)
                return (flags & PageFlags.NoExecute) == 0;
            return (access & AccessKind.Write) == 0 || (flags & PageFlags.Writable) != 0;
        }
        if ((access & AccessKind.Execute) != 0)
            return (flags & PageFlags.NoExecute) == 0 && !(userPage && (c->Cr4 & Cr4.SMEP) != 0);
        if (userPage && (c->Cr4 & Cr4.SMAP) != 0 && ((access & AccessKind.Implicit) != 0 || (c->Rflags & Rflags.AC) == 0))
            return false;
        return (access & AccessKind.Write) == 0 || (flags & PageFlags.Writable) != 0 || (c->Cr0 & Cr0.WP) == 0;
    }

    private static uint FaultCode(CpuState* c, AccessKind access)
    {
        uint code = 0;
        if ((access & AccessKind.Write) != 0)
            code |= PageFaultError.W;
        if ((access & AccessKind.User) != 0)
            code |= PageFaultError.U;
        bool reportsFetch = (c->Cr4 & Cr4.SMEP) != 0 || ((c->Cr4 & Cr4.PAE) != 0 && (c->Efer & Efer.NXE) != 0);
        if ((access & AccessKind.Execute) != 0 && reportsFetch)
            code |= PageFaultError.I;
        return code;
    }
}

using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Translation: from a linear address and a kind of access to a host page, through the TLB or both dimensions of tables, with every fault and exit on the way.
/// It keeps the level-1 context, which follows from control registers, CPL and
/// ASID, and makes the flushes of guest and owner. What is accessed is another's business (<see cref="GuestAccess"/>).
/// </summary>
/// <remarks>
/// It stands on the state with its exit block, the processor's identity, and the block cache, whose bitmaps level-1 entries point to.
/// SAFETY: host pages come from nested tables that the owner keeps while the processor is inside the guest; the TLB's level 1 lies behind the state and lives
/// as long.
/// </remarks>
internal sealed unsafe partial class PagingUnit
{
    /// <summary>The TLB. Its level 1 lies behind the state.</summary>
    internal readonly Tlb Tlb;
    internal TlbEntry* Level1 => ProcessorMemory.Level1Of(_state);
    private readonly CpuState* _state;
    private readonly Identity _identity;
    private readonly BlockCache _blocks;
    /// <summary>Null unless a test looks on. It is told of pages before they can be written to.</summary>
    internal ExecutionObserver? Observer;

    public PagingUnit(CpuState* state, Identity identity, BlockCache blocks)
    {
        _state = state;
        _identity = identity;
        _blocks = blocks;
        Tlb = new Tlb(ProcessorMemory.TlbOf(state), &state->LentPages, state->LentTags);
        UpdateContext(state);
    }

    public void Free() => Tlb.Free();

    /// <summary>Call after DR0-DR3 or DR7, the guest's or the owner's, changed.</summary>
    internal void DebugRegistersChanged(CpuState* c)
    {
        // Pages with data breakpoints are kept out of level 1.
        if (Breakpoints.Recompute(c))
        {
            Tlb.DropContexts();
            UpdateContext(c);
        }
        Breakpoints.UpdateStep(c);
    }

    /// <summary>Code bitmap of a host page, for level-1 entries.</summary>
    private ulong* CodeBitsOf(byte* hostPage) => _blocks.CodeMap.BitsFor(hostPage);

    /// <summary>After a write that did not go through a level-1 hit: drops decoded code in the range, which lies in one page.</summary>
    internal void CodeMayHaveChanged(byte* host, int size)
    {
        int first = (int)((nuint)host >> 6) & 63, last = (int)(((nuint)host + (nuint)size - 1) >> 6) & 63;
        ulong written = (2UL << last) - (1UL << first);
        if ((Volatile.Read(ref *CodeBitsOf(host)) & written) != 0)
            _blocks.CodeWritten(host, (nuint)size);
    }

    /// <summary>
    /// Whether an address is canonical for the widest linear addresses that this guest's CPUID has, whatever CR4.LA57 says: the check of MSRs, descriptor-table
    /// registers, the bases of LDTR and TR, and INVPCID.
    /// SPEC: SDM volume 1, "Canonical Addressing", "5-Level Paging and 5-Level EPT" white paper.
    /// </summary>
    internal bool IsCanonicalForMsr(ulong linear)
    {
        int unused = _identity.Features.La57 ? 64 - 57 : 64 - 48;
        return (ulong)((long)(linear << unused) >> unused) == linear;
    }

    internal bool CheckLinear(CpuState* c, ulong linear, int size)
    {
        if (!CpuMode.Is64(c))
        {
            // The address has been formed by segmentation, or it is a base in a 64-bit table used from compatibility mode.
            if (linear >> 32 == 0 || ((c->Efer & Efer.LMA) != 0 && CpuMode.IsCanonical(c, linear)))
                return true;
        }
        else if (CpuMode.IsCanonical(c, linear) && CpuMode.IsCanonical(c, linear + (ulong)size - 1))
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        c->PendingAddress = linear;
        c->PendingNonCanonical = 1;
        return false;
    }

    /// <summary>Translates one page for an access; MMIO gives a null host pointer.</summary>
    internal bool Translate(CpuState* c, ulong linear, AccessKind access, out Translation t)
    {
        Tlb.Misses++;
        TlbLevel2.Entry* e = Tlb.Level2.Find(linear >> 12, Tlb.SpaceId, Tlb.GlobalId);
        if (e != null && Permits(c, e->Flags, access) && Cached(e->Flags, access) && (Sanitizer is null || UseLevel2(c, e, linear, access)))
        {
            t = new Translation { Host = e->Host, Gpa = e->Gpa, Flags = e->Flags, Global = e->Tag == Tlb.GlobalId };
            FillLevel1(c, linear, access, t);
            return true;
        }
        switch (WalkAndFill(c, linear, access, out t))
        {
            case TranslateResult.Ok:
                FillLevel1(c, linear, access, t);
                return true;
            case TranslateResult.Mmio:
                t.Host = null;
                return true;
            default:
                return false;
        }
    }

    /// <summary>Whether a level-2 entry can serve the access without a walk: nested permission, and both D bits for a write.</summary>
    private static bool Cached(PageFlags flags, AccessKind access)
    {
        const PageFlags write = PageFlags.Dirty | PageFlags.NestedDirty | PageFlags.NestedWrite;
        if ((access & AccessKind.Execute) != 0)
            return (flags & PageFlags.NestedExecute) != 0;
        return (access & AccessKind.Write) != 0 ? (flags & write) == write : (flags & PageFlags.NestedRead) != 0;
    }

    private void FillLevel1(CpuState* c, ulong linear, AccessKind access, in Translation t)
    {
        if (Observer is not null && ((access & AccessKind.Write) != 0 || Cached(t.Flags, AccessKind.Write)))
            Observer.MayWrite(t.Host);
        // Checked: level 1 stays empty, so that every access comes by.
        if (Sanitizer is not null)
            return;
        ulong page = linear & ~0xfffUL;
        if ((access & AccessKind.Execute) != 0)
        {
            if (!t.Global && c->CodeContext != c->TlbContext)
            {
                Tlb.ExecutesLocalCode();
                c->CodeContext = c->TlbContext;
            }
            TlbEntry* f = Tlb.Fetch + Tlb.FetchIndex(linear);
            f->TagRead = page | c->CodeContext;
            f->Addend = (long)t.Host - (long)page;
            Tlb.MarkExecuted(linear);
            return;
        }
        PrivilegeClass privilege = CpuMode.PrivilegeOf(c, access);
        if (privilege == PrivilegeClass.UserAligned || Breakpoints.HasData(c, page))
            return;
        ulong tag = page | Tlb.Context(privilege);
        // RFLAGS.AC is set, or the access would not be permitted.
        if (privilege == PrivilegeClass.Supervisor && (t.Flags & PageFlags.User) != 0 && (c->Cr4 & Cr4.SMAP) != 0)
            Tlb.Lend(tag);
        TlbEntry* e = Tlb.Displace(tag);
        e->Addend = (long)t.Host - (long)page;
        e->CodeBits = CodeBitsOf(t.Host);
        e->TagRead = (t.Flags & PageFlags.NestedRead) != 0 ? tag : Tlb.Invalid;
        if ((t.Flags & PageFlags.Key) != 0 && (c->Cr4 & Cr4.PKE) != 0)
            Tlb.NoteKeyed(linear, KeyOf(t.Flags));
        AccessKind write = AccessKind.Write | (access & (AccessKind.User | AccessKind.Implicit));
        e->TagWrite = Cached(t.Flags, write) && Permits(c, t.Flags, write) ? tag : Tlb.Invalid;
    }

    /// <summary>Host address of the instruction byte at <paramref name="linear"/>, or null with an exception or exit pending.</summary>
    internal byte* TranslateExecute(CpuState* c, ulong linear)
    {
        TlbEntry* f = Tlb.Fetch + Tlb.FetchIndex(linear);
        if (f->TagRead == ((linear & ~0xfffUL) | c->CodeContext))
            return (byte*)(linear + (ulong)f->Addend);
        if (!CheckLinear(c, linear, 1) || !Translate(c, linear, AccessKind.Execute | CpuMode.ExplicitAccess(c), out Translation t))
            return null;
        if (t.Host != null)
            return t.Host + (linear & 0xfff);
        c->Exit->Gpa = t.Gpa | (linear & 0xfff);
        c->Exit->Gva = linear;
        Outcome.Leave(c, ExitReason.EmulationFailure);
        return null;
    }

    internal ulong CachedCr3;

    /// <summary>Four PAE page-directory pointers.</summary>
    internal struct Pdptrs { public ulong P0, P1, P2, P3; }

    /// <summary>Loads and checks the PAE pointers; false: #GP(0) or an exit is pending.</summary>
    internal bool LoadPdptrs(CpuState* c, ulong cr3)
    {
        switch (ReadPdptrs(c, cr3, out Pdptrs pdptrs))
        {
            case TranslateResult.Ok:
                SetPdptrs(c, pdptrs);
                return true;
            case TranslateResult.Fault:
                Outcome.Raise(c, Vector.GP, 0);
                return false;
            default:
                return false;
        }
    }

    internal TranslateResult ReadPdptrs(CpuState* c, ulong cr3, out Pdptrs pdptrs)
    {
        pdptrs = default;
        ulong gpa = cr3 & 0xffff_ffe0;
        TranslateResult r = NestedTranslate(c, gpa, AccessKind.Read | AccessKind.GuestPageWalk, gpa, out byte* host, out _);
        if (r != TranslateResult.Ok)
            return r == TranslateResult.Mmio ? TranslateResult.Fault : r;
        ulong table = (ulong)host + (gpa & 0xfff);
        if (!UserCopy.TryRead8(table, out pdptrs.P0) || !UserCopy.TryRead8(table + 8, out pdptrs.P1) || !UserCopy.TryRead8(table + 16, out pdptrs.P2)
            || !UserCopy.TryRead8(table + 24, out pdptrs.P3))
        {
            Outcome.LeaveForMemory(c, table, AccessKind.Read);
            return TranslateResult.Exit;
        }
        return Valid(pdptrs.P0) && Valid(pdptrs.P1) && Valid(pdptrs.P2) && Valid(pdptrs.P3) ? TranslateResult.Ok : TranslateResult.Fault;
    }

    private bool Valid(ulong pdpte) => (pdpte & Pte.P) == 0 || (pdpte & (0x1e6 | ~((1UL << _identity.Features.PhysicalAddressBits) - 1))) == 0;

    internal static void SetPdptrs(CpuState* c, in Pdptrs pdptrs)
    {
        c->Pdptr[0] = pdptrs.P0;
        c->Pdptr[1] = pdptrs.P1;
        c->Pdptr[2] = pdptrs.P2;
        c->Pdptr[3] = pdptrs.P3;
    }
}

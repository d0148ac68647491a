// SAFETY: reads fields of the state of the processor that asks, on its own thread.
namespace Ring3.Cpu;

/// <summary>
/// The checked mode's memory beside the TLB: when and under what each entry was made, and a second, independent record of what the guest has flushed.
/// In checked mode level 1 and the jump cache stay empty, so every access and every block comes through the lookups that ask here.
/// </summary>
internal sealed class TlbSanitizer(TlbReference reference)
{
    private struct Shadow
    {
        public ulong Filled, Settled, Root, Local;
        public uint Asid, Pcid;
        public bool Global;
    }

    private struct Floor
    {
        public ulong Key, Sequence;
        public GuestFlush By;
    }

    private const int Asids = 16, Pcids = 4096, Pages = 4096;

    private readonly Shadow[] _level2 = new Shadow[TlbLevel2.Capacity], _nested = new Shadow[NestedTlb.Entries],
        _structures = new Shadow[TlbLevel2.StructureEntries];
    private readonly Floor[] _pcids = new Floor[Asids / 4 * Pcids], _spaces = new Floor[Asids], _globals = new Floor[Asids], _asids = new Floor[Asids],
        _pages = new Floor[Pages];
    private Floor _structuresFloor;
    /// <summary>Counts the guest's flushes.</summary>
    private ulong _local = 1;
    // The walk under way: sequence and local count at its beginning, or those of the cached parts it uses if they are older.
    private ulong _walkSequence, _walkLocal, _nestedSequence, _leafFilled;

    public TlbReference Reference => reference;
    public ulong Checks;

    // ---- Fills ----

    public void BeginWalk()
    {
        _walkSequence = reference.Sequence;
        _walkLocal = _local;
    }

    public void BeginNestedWalk() => _nestedSequence = reference.Sequence;

    public unsafe void NestedFilled(CpuState* c, ulong gpa)
    {
        _leafFilled = _nestedSequence;
        _nested[NestedTlb.IndexOf(gpa >> 12)] = new Shadow { Filled = _nestedSequence, Root = c->NestedRoot, Local = _local, Asid = c->Asid };
    }

    public unsafe void Level2Filled(CpuState* c, int index, bool global, uint pcid) =>
        _level2[index] = new Shadow { Filled = _leafFilled, Root = c->NestedRoot, Local = _walkLocal, Asid = c->Asid, Pcid = pcid, Global = global };

    public unsafe void StructureFilled(CpuState* c, int index, uint pcid) =>
        _structures[index] = new Shadow { Filled = _walkSequence, Root = c->NestedRoot, Local = _walkLocal, Asid = c->Asid, Pcid = pcid };

    // ---- Uses ----

    public unsafe bool AllowsLevel2(CpuState* c, int index, in TlbUse use)
    {
        ref Shadow s = ref _level2[index];
        return AllowsGuest(s, use.Linear) && Allows(c, ref s, use);
    }

    public unsafe bool AllowsNested(CpuState* c, in TlbUse use)
    {
        ref Shadow s = ref _nested[NestedTlb.IndexOf(use.Gpa >> 12)];
        if (s.Local < FloorOf(_asids, s.Asid).Sequence)
            return Fail(use with { Root = s.Root, Filled = s.Filled }, $"guest-physical entry older than a flush of its ASID by {FloorOf(_asids, s.Asid).By}");
        _leafFilled = s.Filled;
        return Allows(c, ref s, use);
    }

    /// <summary>A cached table entry names no host memory; it must only be younger than the flushes that cover it, and of this root.</summary>
    public unsafe bool AllowsStructure(CpuState* c, int index, ulong linear)
    {
        ref Shadow s = ref _structures[index];
        var use = new TlbUse { Root = s.Root, Linear = linear, Filled = s.Filled };
        if (s.Root != c->NestedRoot)
            return Fail(use,
                $"(b) paging-structure cache entry of root 0x{s.Root:x} used under root 0x{c->NestedRoot:x}: loading a root has to flush its ASID");
        if (s.Local < _structuresFloor.Sequence)
            return Fail(use, $"paging-structure cache entry older than {_structuresFloor.By}");
        if (!AllowsGuest(s, ulong.MaxValue))
            return false;
        _walkLocal = Math.Min(_walkLocal, s.Local);
        return true;
    }

    private unsafe bool Allows(CpuState* c, ref Shadow s, TlbUse use)
    {
        Checks++;
        (use.Root, use.Filled) = (s.Root, s.Filled);
        if (s.Root != c->NestedRoot)
            return Fail(use, $"(b) entry of root 0x{s.Root:x} used under root 0x{c->NestedRoot:x}: loading a root has to flush its ASID");
        ulong settled = reference.Settled;
        if (s.Settled != settled)
        {
            if (reference.Judge(use) is { } what)
                return Fail(use, what);
            s.Settled = settled;
        }
        if (NestedShadowWalk.Agrees(c, use, reference, out string? difference))
            return true;
        // A change may have been declared over since the first question. Its record, made before anything of an obsolete root is taken apart, tells more than
        // the tables.
        if (reference.Judge(use) is { } late)
            return Fail(use, late);
        // Between a change and the return of its waiting flush the entry may be stale. With the owner's lock free nothing is owed.
        if (difference!.StartsWith("(a)", StringComparison.Ordinal))
            return Fail(use, difference);
        if (!reference.TryQuiesce())
            return true;
        bool agrees = NestedShadowWalk.Agrees(c, use, reference, out difference);
        reference.Resume();
        return agrees || Fail(use, $"{difference}, and no flush is owed");
    }

    private bool AllowsGuest(in Shadow s, ulong linear)
    {
        Floor f = s.Global ? FloorOf(_globals, s.Asid) : FloorOf(_spaces, s.Asid);
        if (!s.Global && PcidFloor(s.Asid, s.Pcid) is var p && p.Sequence > f.Sequence)
            f = p;
        if (FloorOf(_asids, s.Asid) is var a && a.Sequence > f.Sequence)
            f = a;
        if (_pages[linear >> 12 & (Pages - 1)] is var page && page.Key == linear >> 12 && page.Sequence > f.Sequence)
            f = page;
        return s.Local >= f.Sequence
            || Fail(new TlbUse { Root = s.Root, Linear = linear, Filled = s.Filled },
            $"entry of PCID {s.Pcid}{(s.Global ? " (global)" : "")} older than the flush by {f.By} that covers it");
    }

    private bool Fail(in TlbUse use, string what)
    {
        string when = reference.Explain(use);
        string address = use.Linear == ulong.MaxValue ? "" : $" linear 0x{use.Linear:x}";
        reference.Violated($"TLB sanitizer: {what}. Entry:{address} gpa 0x{use.Gpa:x} host 0x{use.Host:x} {use.Access} "
            + $"root 0x{use.Root:x}, filled at change {use.Filled} of {reference.Sequence}. {when}");
        return false;
    }

    // ---- What the guest and the owner have flushed ----

    public void FlushedPcid(GuestFlush by, uint asid, uint pcid) => PcidFloor(asid, pcid) = Next(by);

    public void FlushedSpaces(GuestFlush by, uint asid, bool global)
    {
        FloorOf(_spaces, asid) = Next(by);
        if (global)
            FloorOf(_globals, asid) = Next(by);
    }

    public void FlushedPage(GuestFlush by, ulong linear)
    {
        _structuresFloor = Next(by);
        Floor f = Next(by);
        f.Key = linear >> 12;
        _pages[f.Key & (Pages - 1)] = f;
    }

    public void FlushedAsid(GuestFlush by, uint asid) => FloorOf(_asids, asid) = Next(by);

    private Floor Next(GuestFlush by) => new() { Sequence = ++_local, By = by };

    private static ref Floor FloorOf(Floor[] floors, uint asid) => ref floors[asid & (Asids - 1)];

    private ref Floor PcidFloor(uint asid, uint pcid) => ref _pcids[(asid & (Asids / 4 - 1)) * Pcids + (pcid & (Pcids - 1))];
}

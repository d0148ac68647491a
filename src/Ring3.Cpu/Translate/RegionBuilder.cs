using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Makes a region from a hot block: collects traces of the page's blocks, decides where flags are kept, emits host code. One per processor; scratch memory
/// only.
/// </summary>
/// <remarks>
/// SAFETY: blocks are read inside the epoch; guest bytes are copied by UserCopy into a buffer of a block's largest size. Locals are assigned before they are
/// read, as everywhere without stackalloc, so clearing them first is left out.
/// </remarks>
[SkipLocalsInit]
internal sealed unsafe partial class RegionBuilder(BlockCache blocks, Identity identity)
{
    private const int MaxInstructions = 256, MaxTraces = 16, MaxRounds = 8, MaxRepeated = 64, MaxSites = 4096;

    private readonly RegionAssembler _a = new();
    private readonly InstructionInfoFactory _info = new();
    private readonly GuestBytes _bytes = new(identity.Model);
    private readonly List<Trace> _traces = [];
    private readonly Stack<Trace> _unused = new();
    private readonly List<Site> _sites = [];
    /// <summary>Positions of the 8-byte values in the code that become addresses of sites, by number, and of the region itself.</summary>
    private readonly List<(int At, int Site)> _siteReferences = [];
    private readonly List<int> _regionReferences = [];
    /// <summary>Positions of code that sites name.</summary>
    private readonly List<(int Site, int Position)> _resumes = [];
    /// <summary>Jumps to code out of line, emitted behind everything.</summary>
    private readonly List<(int Jump, int Site)> _stubs = [];
    private readonly List<nint> _sources = [];
    private byte* _page;
    /// <summary>Decode mode of the region's blocks; bytes of an address and of a word on the stack.</summary>
    private uint _mode;
    private int _word;
    private readonly RuleCache _rules64 = new(true), _rules32 = new(false);
    private bool _external, _observed;
    /// <summary>The last instruction that ended a trace because it cannot be in one.</summary>
    private Instruction _refused;

    /// <summary>Translates the hot block, which is at a guest address, and what belongs to it. False: it cannot be translated.</summary>
    public bool Build(Block* seed, ulong address)
    {
        _address = address;
        _a.Clear();
        foreach (Trace t in _traces)
        {
            _heads[t.Offset] = 0;
            _unused.Push(t);
        }
        _traces.Clear();
        _sites.Clear();
        _siteReferences.Clear();
        _regionReferences.Clear();
        _resumes.Clear();
        _stubs.Clear();
        _packingStubs.Clear();
        _handlerStubs.Clear();
        ForgetNarrow();
        _codeChecks.Clear();
        _otherReturns.Clear();
        _fullFrames.Clear();
        _missedCalls.Clear();
        _expected = default;
        _inShadow = false;
        _marks.Clear();
        _external = blocks.ExternalWriters;
        _observed = blocks.RegionObserver is not null;
        _page = Block.PageOf(seed->Host);
        _mode = seed->Mode;
        _segmented = !BlockMode.IsFlat(_mode);
        _word = Is64 ? 8 : IsWordMode ? 2 : 4;
        if (!Collect(seed))
        {
            blocks.RegionObserver?.Invoke($"not translated at {(nuint)seed->Host & 0xfff:x3}: {_refused}");
            return false;
        }
        Analyse();
        _a.BeginRegion();
        try
        {
            foreach (Trace t in _traces)
            {
                if (t.Body < 0)
                    EmitFrom(Leader(t));
                if (t.Body < 0)
                    EmitFrom(t);
            }
            EmitOtherReturns();
            EmitCodeChecks();
            EmitStubs();
            EmitPackingStubs();
            EmitHandlerStubs();
        }
        catch (EncoderException e)
        {
            blocks.RegionObserver?.Invoke($"not translated: {e.Message}");
            // A displacement that does not reach from the page's begin, say: such code stays the interpreter's.
            return false;
        }
        blocks.RegionObserver?.Invoke(Dump());
        return _sites.Count <= MaxSites;
    }

    private bool NotesEveryX87 => identity.Model.NotesEveryX87;

    /// <summary>A test looks on, which wants to know what RDTSC gives.</summary>
    public bool IsObserved { get; init; }

    private ulong _address;

    private bool Is64 => _mode == BlockMode.Code64;

    private void AddSource(Block* b)
    {
        if (_sources.Contains((nint)b))
            return;
        _sources.Add((nint)b);
        Instructions += b->Instructions;
    }

    // ---- Traces ----

    private bool Collect(Block* seed)
    {
        int left = MaxInstructions;
        _sources.Clear();
        Instructions = 0;
        AddHead(seed);
        for (int i = 0; i < _traces.Count; i++)
        {
            Trace t = _traces[i];
            if (!Fill(t, ref left) || t.Instructions.Count == 0)
            {
                if (i == 0)
                    return false;
                _unused.Push(t);
                _traces.RemoveAt(i);
                _heads[t.Offset] = 0;
                for (int n = i--; n < _traces.Count; n++)
                    _heads[_traces[n].Offset]--;
            }
        }
        Connect();
        return true;
    }

    /// <summary>Which traces branches and ends lead to.</summary>
    private void Connect()
    {
        for (int i = 0; i < _traces.Count; i++)
            (_traces[i].Region, _traces[i].Index) = (_traces, i);
        foreach (Trace t in _traces)
        {
            t.Fall = HeadAt(t.FallOffset);
            t.Return = HeadAt(t.ReturnOffset);
            foreach (ref GuestInstruction g in CollectionsMarshal.AsSpan(t.Instructions))
            {
                if (g.Lowering is not (Lowering.Branch or Lowering.Jump or Lowering.Call) || HeadAt(g.LeavesFor) is not { } target)
                    continue;
                g.Target = (short)target.Index;
                // Edges without polls lead to later traces.
                if (target.Index > t.Index)
                    target.Descends |= t.Descends || target.Offset <= g.Offset;
            }
            if (t.Fall is { } fall && fall.Index > t.Index)
                fall.Descends |= t.Descends;
        }
    }

    private void AddHead(Block* b)
    {
        // A block in two pages is a region's only one: others may be entered where another page follows theirs.
        bool alone = _traces.Count != 0 && (b == null || b->HostNext != null || _traces[0].Head->HostNext != null);
        if (b == null || alone || _traces.Count == MaxTraces || Block.PageOf(b->Host) != _page
            || HeadAt((long)((nuint)b->Host & 0xfff)) is not null)
            return;
        Trace t = _unused.TryPop(out Trace? used) ? used : new Trace();
        t.Begin(b);
        _traces.Add(t);
        _heads[t.Offset] = (byte)_traces.Count;
    }

    /// <summary>By offset of the page: the number of the trace that begins there, counted from 1, or 0.</summary>
    private readonly byte[] _heads = new byte[4096];

    /// <summary>The trace that begins at an offset of the page, or null.</summary>
    private Trace? HeadAt(long offset) => (ulong)offset < 4096 && _heads[offset] is var n and not 0 ? _traces[n - 1] : null;

    private bool Fill(Trace t, ref int left)
    {
        Block* b = t.Head;
        while (true)
        {
            int start = t.Instructions.Count;
            Units units = t.Units;
            if (left < b->Instructions || !Decode(t, b))
            {
                // What came before stays; execution goes on at this block.
                t.Instructions.RemoveRange(start, t.Instructions.Count - start);
                t.Units = units;
                t.FallOffset = (int)((nuint)b->Host & 0xfff);
                return start != 0;
            }
            left -= b->Instructions;
            AddSource(b);
            ref readonly GuestInstruction last = ref CollectionsMarshal.AsSpan(t.Instructions)[^1];
            int fall = -1;
            switch (last.Lowering)
            {
                case Lowering.Branch:
                    fall = last.Next;
                    AddHead(last.LeavesFor == t.Offset && Repeat(t, ref left) ? BlockAt(fall) : Linked(&b->Taken, (int)last.LeavesFor));
                    break;
                case Lowering.Jump when last.LeavesFor == t.Offset:
                    Repeat(t, ref left);
                    t.FallOffset = -1;
                    return true;
                case Lowering.Jump or Lowering.Call or Lowering.CallIndirect:
                    if (last.Lowering != Lowering.CallIndirect)
                        AddHead(Linked(&b->Taken, (int)last.Code.NearBranchTarget));
                    if (last.Lowering != Lowering.Jump)
                        AddHead(BlockAt(t.ReturnOffset = last.Next));
                    t.FallOffset = -1;
                    return true;
                case Lowering.Return or Lowering.JumpIndirect or Lowering.Transition:
                    t.FallOffset = -1;
                    return true;
                case Lowering.HandlerEnds:
                    t.FallOffset = last.Next;
                    return true;
                default:
                    fall = last.Next;
                    break;
            }
            t.FallOffset = fall;
            Block* next = Linked(&b->Fall, fall);
            // Behind STI the interpreter executes one instruction singly.
            if (next == null && last.Code.Code == Code.Sti)
                next = BlockAt(fall, BlockMode.Single);
            if (next == null || next->HostNext != null || HeadAt(fall) is not null)
                return true;
            b = next;
        }
    }

    /// <summary>
    /// The trace is a loop: repeats its instructions, so that polls and checks of memory are made once for several rounds. False: it is too long, or has
    /// something in it that takes longer.
    /// </summary>
    private static bool Repeat(Trace t, ref int left)
    {
        List<GuestInstruction> all = t.Instructions;
        int body = all.Count, rounds = Math.Min(Math.Min(MaxRounds, MaxRepeated / body), 1 + left / body);
        if (rounds < 2)
            return false;
        foreach (ref readonly GuestInstruction g in CollectionsMarshal.AsSpan(all))
            if (g.Inverted || EndsWindows(g.Lowering))
                return false;
        CollectionsMarshal.SetCount(all, body * rounds);
        Span<GuestInstruction> copies = CollectionsMarshal.AsSpan(all);
        for (int round = 1; round < rounds; round++)
        {
            copies.Slice(body * (round - 1), body).CopyTo(copies[(body * round)..]);
            // The last round's branch stays as it is.
            ref GuestInstruction branch = ref copies[body * round - 1];
            if (branch.Lowering == Lowering.Jump)
                branch.Lowering = Lowering.Nothing;
            else
                branch.Inverted = true;
        }
        left -= body * (rounds - 1);
        return true;
    }

    /// <summary>The decoded block at an offset of the page, or null.</summary>
    private Block* BlockAt(int offset, uint flags = 0) => (uint)offset < 4096 ? blocks.Find(_page + offset, _mode | flags, null) : null;

    /// <summary>As <see cref="BlockAt"/>, which has to look for it, where the interpreter has not left a link to it.</summary>
    private Block* Linked(Block** link, int offset)
    {
        Block* b = (Block*)Volatile.Read(ref *(nint*)link);
        return b != null && b->Host == _page + offset && b->Mode == _mode && b->HostNext == null ? b : BlockAt(offset);
    }

    private bool Decode(Trace t, Block* b)
    {
        if (!_bytes.Take(b))
            return false;
        int first = t.Instructions.Count, count = b->Instructions;
        CollectionsMarshal.SetCount(t.Instructions, first + count);
        Op* op = Block.FirstOp(b);
        foreach (ref GuestInstruction g in CollectionsMarshal.AsSpan(t.Instructions)[first..])
        {
            g.Begin(b, op);
            _bytes.Decode(out g.Code);
            // The bytes are not what the ops were made from, or an encoding that raises #UD.
            if (g.Code.Code == Code.INVALID || g.Code.IP - ((nuint)b->Host & 0xfff) != op->Offset || !Describe(ref g))
            {
                _refused = g.Code;
                return false;
            }
            t.Units |= g.Units;
            op++;
        }
        return true;
    }

    /// <summary>What the pointers of the x87 unit hold besides an offset is written out for 64-bit code alone.</summary>
    private bool IsRefused(in Instruction i) => InstructionRules.IsRefused(i, Is64 || _segmented) || !Is64 && NotesEveryX87 && VectorRules.IsNoted(i.Code);

    /// <summary>False: the block is left to the interpreter.</summary>
    private bool Describe(ref GuestInstruction g)
    {
        ref readonly CodeFacts facts = ref CodeFacts.Of(g.Code, _info);
        bool memory = g.Memory = InstructionRules.HasMemory(g.Code);
        RuleCache rules = Is64 ? _rules64 : _segmented ? RulesOfSegments : _rules32;
        if (!rules.TryGet(g.Code, memory, out g.Lowering))
        {
            if (IsRefused(g.Code))
                return false;
            bool ends = HandlerTable.EndsBlock(g.Code.Code);
            g.Lowering = _segmented ? InstructionRules.ClassifySegmented(g.Code, ends, IsWordMode) : InstructionRules.Classify(g.Code, ends, Is64);
            rules.Note(g.Code, memory, g.Lowering);
        }
        g.ReadsFlags = facts.ReadsStatus;
        g.WritesFlags = facts.WritesStatus;
        g.KeepsFlags = facts.KeepsStatus;
        if (facts.IsShift)
            (g.ReadsFlags, g.WritesFlags, g.KeepsFlags) = InstructionRules.StatusOfShift(g.Code);
        if (g.Lowering == Lowering.Vector)
            g.Units = VectorRules.Needs(g.Code, memory);
        switch (g.Lowering)
        {
            case Lowering.Nothing or Lowering.Branch or Lowering.Jump:
                break;
            case Lowering.Plain or Lowering.Vector:
                g.SiteBefore = memory;
                g.SiteAfter = memory && facts.Stores(g.Code);
                break;
            case Lowering.Push or Lowering.PushMemory:
                g.SiteBefore = g.SiteAfter = true;
                break;
            case Lowering.BitString:
                g.SiteBefore = true;
                g.SiteAfter = facts.Stores(g.Code);
                break;
            default:
                g.SiteBefore = true;
                g.SiteAfter = g.Lowering == Lowering.System && (g.Code.Code is Code.Pushfq or Code.Pushfd || memory && g.Code.Code == Code.Mov_rm16_Sreg);
                break;
        }
        g.Writes = facts.Writes(g.Code);
        return true;
    }

    // ---- Sites ----

    private int AddSite(in Site site, int resume = -1)
    {
        _sites.Add(site);
        if (resume >= 0)
            _resumes.Add((_sites.Count - 1, resume));
        return _sites.Count - 1;
    }

    /// <summary>Loads a site's address, and calls back.</summary>
    private void CallSite(int site)
    {
        LoadSite(site);
        _a.JumpThroughState(_sites[site].Kind == SiteKind.Miss ? StateLayout.MissRoutine : StateLayout.SlowRoutine);
    }

    private void LoadSite(int site)
    {
        _a.Immediate64(HostRegisters.Entry, 0);
        _siteReferences.Add((_a.Position - 8, site));
    }

    /// <summary>Each loads what its site's address is beyond the first one's; the rest is the same for all.</summary>
    private void EmitStubs()
    {
        int slow = _a.Position;
        CallSiteBeyondFirst(StateLayout.SlowRoutine);
        int miss = _a.Position;
        CallSiteBeyondFirst(StateLayout.MissRoutine);
        for (int i = 0; i < _stubs.Count; i++)
        {
            (int jump, int site) = _stubs[i];
            _a.Bind(jump);
            while (i + 1 < _stubs.Count && _stubs[i + 1].Site == site)
                _a.Bind(_stubs[++i].Jump);
            _a.Immediate(HostRegisters.Entry, (ulong)(site * sizeof(Site)));
            _a.Bind(_a.Jump(), _sites[site].Kind == SiteKind.Miss ? miss : slow);
        }
    }

    private void CallSiteBeyondFirst(int routine)
    {
        _a.AddFirstSite(HostRegisters.Entry);
        _a.JumpThroughState(routine);
    }

    // ---- Publication ----

    /// <summary>Room that <see cref="Place"/> needs.</summary>
    public int CodeBytes => _a.Position;
    public int DataBytes => sizeof(Region) + _sites.Count * sizeof(Site) + (_traces.Count + _sources.Count) * sizeof(nint)
        + _sources.Count * sizeof(RegionUse) + 64;

    /// <summary>Copies the region into the arena, which has room. Decode lock. The blocks do not point to it yet.</summary>
    public Region* Place(RegionArena arena)
    {
        Region* region = (Region*)arena.Allocate(sizeof(Region));
        Site* sites = (Site*)arena.Allocate(_sites.Count * sizeof(Site));
        region->Blocks = (Block**)arena.Allocate(_traces.Count * sizeof(nint));
        region->BlockCount = _traces.Count;
        region->Code = arena.Code.Next;
        region->CodeBytes = _a.Position;
        region->Instructions = Instructions;
        region->Address = _address;
        for (int i = 0; i < _traces.Count; i++)
            region->Blocks[i] = _traces[i].Head;
        region->Sources = (Block**)arena.Allocate(_sources.Count * sizeof(nint));
        foreach (nint b in _sources)
            region->Sources[region->SourceCount++] = (Block*)b;
        CollectionsMarshal.AsSpan(_sites).CopyTo(new Span<Site>(sites, _sites.Count));
        for (int i = 0; i < _sites.Count; i++)
        {
            sites[i].Region = region;
            sites[i].Target = RegionRoutines.Slow;
        }
        foreach ((int site, int position) in _resumes)
            sites[site].Resume = region->Code + position;
        byte* code = arena.Code.NextWritable;
        arena.Code.Add(_a.Bytes);
        region->StaleInCode = (int*)code;
        *(Site**)(code + RegionAssembler.FirstSite) = sites;
        foreach ((int at, int site) in _siteReferences)
            *(nint*)(code + at) = (nint)(sites + site);
        foreach (int at in _regionReferences)
            *(nint*)(code + at) = (nint)region;
        region->Next = arena.First;
        arena.First = region;
        return region;
    }

    /// <summary>The blocks whose bytes the region was made from.</summary>
    public List<nint> Sources => _sources;

    /// <summary>Guest instructions in the region, those of a block counted once.</summary>
    public int Instructions { get; private set; }

    /// <summary>Where a head is entered.</summary>
    public int EntryOf(int trace) => _traces[trace].Entry;
}

using System.Runtime.InteropServices;
using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Makes a region from a hot block: collects traces of the page's blocks, decides where flags are kept, emits host code. One per processor; scratch memory
/// only.
/// </summary>
/// <remarks>SAFETY: blocks are read inside the epoch; guest bytes are copied by UserCopy into a buffer of a block's largest size.</remarks>
internal sealed unsafe partial class RegionBuilder(LogicalProcessor p)
{
    private const int MaxInstructions = 256, MaxTraces = 16, MaxRounds = 8, MaxRepeated = 64, MaxSites = 4096, BlockBytes = Block.MaxInstructions * 15 + 16;

    private readonly RegionAssembler _a = new();
    private readonly InstructionInfoFactory _info = new();
    private readonly byte[] _bytes = new byte[BlockBytes];
    private readonly List<Trace> _traces = [];
    private readonly Dictionary<nint, Trace> _heads = [];
    private readonly List<Site> _sites = [];
    /// <summary>Positions of the 8-byte values in the code that become addresses of sites, by number, and of the region itself.</summary>
    private readonly List<(int At, int Site)> _siteReferences = [];
    private readonly List<int> _regionReferences = [];
    /// <summary>Positions of code that sites name.</summary>
    private readonly List<(int Site, int Position)> _resumes = [];
    /// <summary>Jumps to code out of line, emitted behind everything.</summary>
    private readonly List<(int Jump, int Site)> _stubs = [];
    private readonly HashSet<nint> _sources = [];
    private byte* _page;
    private bool _external;
    /// <summary>The last instruction that ended a trace because it cannot be in one.</summary>
    private Instruction _refused;

    /// <summary>Translates the hot block and what belongs to it. False: it cannot be translated.</summary>
    public bool Build(Block* seed, bool externalWriters)
    {
        _a.Clear();
        _traces.Clear();
        _heads.Clear();
        _sites.Clear();
        _siteReferences.Clear();
        _regionReferences.Clear();
        _resumes.Clear();
        _stubs.Clear();
        _handlerStubs.Clear();
        _inShadow = false;
        _marks.Clear();
        _external = externalWriters;
        _page = Block.PageOf(seed->Host);
        if (!Collect(seed))
        {
            p.Machine.Blocks.RegionObserver?.Invoke($"not translated at {(nuint)seed->Host & 0xfff:x3}: {_refused}");
            return false;
        }
        Analyse();
        _sources.Clear();
        foreach (Trace t in _traces)
            foreach (GuestInstruction g in t.Instructions)
                _sources.Add((nint)g.Block);
        try
        {
            foreach (Trace t in _traces)
                EmitTrace(t);
            foreach (Trace t in _traces)
                EmitEntry(t);
            EmitStubs();
            EmitHandlerStubs();
        }
        catch (EncoderException e)
        {
            p.Machine.Blocks.RegionObserver?.Invoke($"not translated: {e.Message}");
            // A displacement that does not reach from the page's begin, say: such code stays the interpreter's.
            return false;
        }
        p.Machine.Blocks.RegionObserver?.Invoke(Dump());
        return _sites.Count <= MaxSites;
    }

    // ---- Traces ----

    private bool Collect(Block* seed)
    {
        int left = MaxInstructions;
        AddHead(seed);
        for (int i = 0; i < _traces.Count; i++)
        {
            Trace t = _traces[i];
            if (!Fill(t, ref left) || t.Instructions.Count == 0)
            {
                if (i == 0)
                    return false;
                _heads.Remove((nint)t.Head);
                _traces.RemoveAt(i--);
            }
        }
        Connect();
        return true;
    }

    /// <summary>Which traces branches and ends lead to.</summary>
    private void Connect()
    {
        for (int i = 0; i < _traces.Count; i++)
            _traces[i].Index = i;
        foreach (Trace t in _traces)
        {
            t.Fall = HeadAt(t.FallOffset);
            foreach (ref GuestInstruction g in CollectionsMarshal.AsSpan(t.Instructions))
                if (g.Lowering is Lowering.Branch or Lowering.Jump or Lowering.Call)
                    g.Target = HeadAt(g.LeavesFor);
        }
    }

    private void AddHead(Block* b)
    {
        if (b == null || _traces.Count == MaxTraces || b->HostNext != null || Block.PageOf(b->Host) != _page || _heads.ContainsKey((nint)b))
            return;
        Trace t = new(b);
        _traces.Add(t);
        _heads.Add((nint)b, t);
    }

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
            GuestInstruction last = t.Instructions[^1];
            int fall = -1;
            switch (last.Lowering)
            {
                case Lowering.Branch:
                    if (last.LeavesFor == HeadOffset(t) && Repeat(t, ref left))
                        AddHead(BlockAt(last.Next));
                    else
                        AddHead(BlockAt((int)last.LeavesFor));
                    fall = last.Next;
                    break;
                case Lowering.Jump when last.LeavesFor == HeadOffset(t):
                    Repeat(t, ref left);
                    t.FallOffset = -1;
                    return true;
                case Lowering.Jump or Lowering.Call:
                    AddHead(BlockAt((int)last.Code.NearBranchTarget));
                    t.FallOffset = -1;
                    return true;
                case Lowering.Return or Lowering.JumpIndirect or Lowering.CallIndirect:
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
            Block* next = BlockAt(fall);
            // Behind STI the interpreter executes one instruction singly.
            if (next == null && last.Code.Code == Code.Sti)
                next = BlockAt(fall, BlockMode.Single);
            if (next == null || next->HostNext != null || _heads.ContainsKey((nint)next))
                return true;
            b = next;
        }
    }

    private static int HeadOffset(Trace t) => (int)((nuint)t.Head->Host & 0xfff);

    /// <summary>
    /// The trace is a loop: repeats its instructions, so that polls and checks of memory are made once for several rounds. False: it is too long, or has
    /// something in it that takes longer.
    /// </summary>
    private static bool Repeat(Trace t, ref int left)
    {
        List<GuestInstruction> all = t.Instructions;
        int body = all.Count, rounds = Math.Min(Math.Min(MaxRounds, MaxRepeated / body), 1 + left / body);
        if (rounds < 2 || all.Exists(static g => g.Inverted || EndsWindows(g.Lowering)))
            return false;
        for (int round = 1; round < rounds; round++)
        {
            int last = all.Count - 1;
            all.AddRange(all.GetRange(last + 1 - body, body));
            ref GuestInstruction branch = ref CollectionsMarshal.AsSpan(all)[last];
            if (branch.Lowering == Lowering.Jump)
                branch.Lowering = Lowering.Nothing;
            else
                branch.Inverted = true;
        }
        left -= body * (rounds - 1);
        return true;
    }

    /// <summary>The decoded block at an offset of the page, or null.</summary>
    private Block* BlockAt(int offset, uint flags = 0) => (uint)offset < 4096 ? p.Machine.Blocks.Find(_page + offset, BlockMode.Code64 | flags, null) : null;

    private bool Decode(Trace t, Block* b)
    {
        fixed (byte* bytes = _bytes)
            if (!UserCopy.TryRead((ulong)b->Host, bytes, b->Bytes))
                return false;
        Decoder decoder = Decoder.Create(64, new ByteArrayCodeReader(_bytes, 0, b->Bytes), BlockDecoder.Options(p.Model));
        decoder.IP = (nuint)b->Host & 0xfff;
        Op* op = Block.FirstOp(b);
        for (int i = 0; i < b->Instructions; i++, op++)
        {
            GuestInstruction g = new() { Block = b, Op = op };
            decoder.Decode(out g.Code);
            // The bytes are not what the ops were made from, or an encoding that raises #UD.
            if (g.Code.Code == Code.INVALID || g.Code.IP - ((nuint)b->Host & 0xfff) != op->Offset || InstructionRules.IsRefused(g.Code))
            {
                _refused = g.Code;
                return false;
            }
            Describe(ref g);
            if (g.Lowering == Lowering.Vector)
                g.Units = VectorRules.Needs(g.Code);
            t.Units |= g.Units;
            t.Instructions.Add(g);
        }
        return true;
    }

    private void Describe(ref GuestInstruction g)
    {
        ref readonly CodeFacts facts = ref CodeFacts.Of(g.Code, _info);
        g.Lowering = InstructionRules.Classify(g.Code, HandlerTable.EndsBlock(g.Code.Code));
        g.ReadsFlags = InstructionRules.ReadsStatus(g.Code);
        g.WritesFlags = InstructionRules.WritesStatus(g.Code);
        g.KeepsFlags = g.WritesFlags && InstructionRules.KeepsStatus(g.Code);
        bool memory = InstructionRules.HasMemory(g.Code);
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
                g.SiteAfter = g.Code.Code == Code.Pushfq;
                break;
        }
        g.Writes = facts.Writes(g.Code);
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
        _a.Add(Instruction.Create(Code.Jmp_rm64, RegionAssembler.State(StateLayout.SlowRoutine)));
    }

    private void LoadSite(int site)
    {
        _a.Immediate64(HostRegisters.Entry, 0);
        _siteReferences.Add((_a.Position - 8, site));
    }

    private void EmitStubs()
    {
        for (int i = 0; i < _stubs.Count; i++)
        {
            (int jump, int site) = _stubs[i];
            _a.Bind(jump);
            while (i + 1 < _stubs.Count && _stubs[i + 1].Site == site)
                _a.Bind(_stubs[++i].Jump);
            CallSite(site);
        }
    }

    // ---- Publication ----

    /// <summary>Room that <see cref="Place"/> needs.</summary>
    public int CodeBytes => _a.Position;
    public int DataBytes => sizeof(Region) + _sites.Count * sizeof(Site) + (_traces.Count + _sources.Count) * sizeof(nint) + 64;

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
        region->Address = p.State->BlockRip;
        for (int i = 0; i < _traces.Count; i++)
            region->Blocks[i] = _traces[i].Head;
        region->Sources = (Block**)arena.Allocate(_sources.Count * sizeof(nint));
        foreach (nint b in _sources)
            region->Sources[region->SourceCount++] = (Block*)b;
        for (int i = 0; i < _sites.Count; i++)
        {
            sites[i] = _sites[i];
            sites[i].Region = region;
            sites[i].Target = RegionRoutines.Slow;
        }
        foreach ((int site, int position) in _resumes)
            sites[site].Resume = region->Code + position;
        byte* code = arena.Code.NextWritable;
        arena.Code.Add(_a.Bytes);
        foreach ((int at, int site) in _siteReferences)
            *(nint*)(code + at) = (nint)(sites + site);
        foreach (int at in _regionReferences)
            *(nint*)(code + at) = (nint)region;
        region->Next = arena.First;
        arena.First = region;
        return region;
    }

    /// <summary>The blocks whose bytes the region was made from.</summary>
    public IReadOnlyCollection<nint> Sources => _sources;

    /// <summary>Guest instructions in the region.</summary>
    public int Instructions
    {
        get
        {
            int count = 0;
            foreach (nint b in _sources)
                count += ((Block*)b)->Instructions;
            return count;
        }
    }

    /// <summary>Where a head is entered.</summary>
    public int EntryOf(int trace) => _traces[trace].Entry;
}

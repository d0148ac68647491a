using System.Diagnostics;
using System.Runtime.InteropServices;
using Iced.Intel;

namespace Ring3.Cpu;

// Traces, their entries and edges.
// SAFETY: a trace's head is a block that the arena keeps as long as the region.
internal sealed unsafe partial class RegionBuilder
{
    private const byte Below = 2, NotBelow = 3, NotEqual = 5, NotAbove = 6, Above = 7, Equal = 4;

    /// <summary>A trace and those that follow it without a jump, whose entries come behind.</summary>
    private void EmitFrom(Trace first)
    {
        EmitEntry(first);
        EmitTrace(first);
        _followers.Clear();
        while (Expected() is { } next)
        {
            EmitTrace(next);
            _followers.Add(next);
        }
        foreach (Trace t in _followers)
        {
            EmitEntry(t);
            _a.Bind(_a.Jump(), t.Body);
        }
    }

    private readonly List<Trace> _followers = [];

    /// <summary>The trace that the given one can follow, and so on.</summary>
    private Trace Leader(Trace last)
    {
        for (int n = 0; n < MaxTraces && BeforeReturn(last) is { } before && before != last; n++)
            last = before;
        return last;
    }

    private Trace? BeforeReturn(Trace to)
    {
        foreach (Trace t in _traces)
            if (t.Return == to && t.Body < 0)
                return t;
        return null;
    }

    private void EmitTrace(Trace t)
    {
        t.Body = _a.Position;
        foreach (int jump in t.Pending)
            _a.Bind(jump);
        _hostFlags = _unpacked = false;
        _flags = s_state;
        EmitUnits(t);
        _a.AddToState(StateLayout.Retired, t.Instructions.Count);
        _wide = PlanWindows(t);
        EmitInstructions(t, 0, false);
        if (_wide)
            EmitNarrow(t);
    }

    /// <summary>The checks before a trace that is entered from outside the region. The trace follows.</summary>
    private void EmitEntry(Trace t)
    {
        t.Entry = _a.Position;
        _hostFlags = _unpacked = false;
        _flags = s_state;
        int offset = (int)((nuint)t.Head->Host & 0xfff);
        Site site = new() { Kind = SiteKind.Poll, PageOffset = offset, Block = t.Head };
        if (_external)
        {
            LoadRegion();
            int verify = AddSite(site with { Kind = SiteKind.Verify }, t.Entry);
            _a.Load(HostRegisters.Spare, StateLayout.EntryStamp);
            _a.Add(Instruction.Create(Code.Cmp_rm64_r64, new MemoryOperand(HostRegisters.Entry, s_verifiedOffset, 1), HostRegisters.Spare));
            _stubs.Add((_a.Jump(Below), verify));
        }
        Poll(AddSite(site));
        Debug.Assert(_external || _a.Position - t.Entry == Region.EntryBytes);
    }

    private static readonly int s_verifiedOffset = VerifiedOffset();

    private static int VerifiedOffset()
    {
        Region r;
        return (int)((byte*)&r.VerifiedAt - (byte*)&r);
    }

    private void LoadRegion()
    {
        _a.Immediate64(HostRegisters.Entry, 0);
        _regionReferences.Add(_a.Position - 8);
    }

    /// <summary>Leaves to the site when an exit is requested, it is time to look at the clock, or the region is stale.</summary>
    private void Poll(int site)
    {
        _a.CompareHereWithZero(0);
        _stubs.Add((_a.Jump(NotEqual), site));
        _a.CompareStateWithZero(StateLayout.ExitRequest, true);
        _stubs.Add((_a.Jump(NotEqual), site));
        _a.Load(HostRegisters.Spare, StateLayout.Retired);
        _a.WithState(HostOperation.Compare, HostRegisters.Spare, StateLayout.TimerLook);
        _stubs.Add((_a.Jump(NotBelow), site));
        _resumes.Add((site, _a.Position));
    }

    /// <summary>
    /// Goes to an offset of the page (which may lie outside it) when <paramref name="done"/> instructions of the trace have retired. Nothing is emitted
    /// behind it. There is a poll on the way if it goes back or calls. It is a call when <paramref name="back"/> says to what offset of the page the callee is
    /// to return.
    /// </summary>
    private void EmitEdge(Trace t, long offset, Trace? head, int done, int back = NoCall)
    {
        int undone = t.Instructions.Count - done;
        EndShadow();
        bool polls = head is not null && (back != NoCall || IsBackward(t, head));
        if (head is null || head.NeedsFlags || polls)
            PackNow();
        if (head is not null && polls)
        {
            Site site = new() { Kind = SiteKind.Poll, PageOffset = (int)offset, Block = head.Head, Uncount = (ushort)undone };
            WithFlags(ref site);
            Poll(AddSite(site));
        }
        if (head is null || head.NeedsFlags)
            StoreFlags();
        if (undone != 0)
            _a.AddToState(StateLayout.Retired, -undone);
        if (head is not null)
        {
            bool noted = NoteReturn(back);
            int jump = noted ? _a.Call() : _a.Jump();
            // Callbacks keep the units of a trace as they are.
            bool live = (t.Units & head.Units) == head.Units;
            if (head.Body >= 0)
                _a.Bind(jump, live ? head.Live : head.Body);
            else
                (live ? head.PendingLive : head.Pending).Add(jump);
            if (noted)
                EmitContinuation(back, t.Return);
        }
        else if ((ulong)offset < 4096)
        {
            LinkTo((int)offset, back == NoCall && !t.Descends && offset > At(t, done - 1).Offset, back, t.Return);
        }
        else if (_segmented)
        {
            LoadOutside(offset, _cutsTarget);
            EmitNarrowJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 });
        }
        else
        {
            JumpTo((int)offset, back, t.Return);
        }
    }

    private void JumpTo(int offset, int back, Trace? after)
    {
        _a.Load(HostRegisters.Address, StateLayout.CodeBase);
        _a.Lea(HostRegisters.Address, HostRegisters.Address, offset, _word);
        EmitJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 }, back, after);
    }

    /// <summary>Goes to an offset of the page by a link, once it has been made; with <paramref name="onward"/> it leads behind the target's checks.</summary>
    private void LinkTo(int offset, bool onward, int back = NoCall, Trace? after = null)
    {
        if (offset > 4096 - BlockDecoder.MaxInstructionLength && !_segmented)
        {
            // What begins there may lie in two pages, and depend on both.
            JumpTo(offset, back, after);
            return;
        }
        bool noted = NoteReturn(back);
        LoadSite(AddSite(new Site { Kind = SiteKind.Link, PageOffset = offset, Onward = onward && !_external }));
        if (!noted)
        {
            _a.JumpThrough(HostRegisters.Entry);
            return;
        }
        _a.Add(Instruction.Create(Code.Call_rm64, HostAssembler.Memory(HostRegisters.Entry)));
        EmitContinuation(back, after);
    }

    /// <summary>
    /// Goes to the linear address in <see cref="HostRegisters.Address"/>, by a call as in <see cref="EmitEdge"/>. The flags are in the state.
    /// </summary>
    private void EmitJump(in Site site, int back = NoCall, Trace? after = null)
    {
        const Register Target = HostRegisters.Address, Index = HostRegisters.Spare, Other = HostRegisters.Entry;
        EndShadow();
        bool noted = NoteReturn(back);
        // ProcessorMemory.JumpIndex.
        _a.Multiply32(Index, Target, unchecked((int)ProcessorMemory.JumpFactor));
        _a.WithState(HostOperation.Xor, Index, StateLayout.JumpSalt);
        _a.And32(Index, (ProcessorMemory.JumpEntries - 1) << ProcessorMemory.JumpShift);
        int miss = AddSite(site);
        _a.WithTable(HostOperation.Compare, Target, Index, StateLayout.Jumps);
        int other = _a.Jump(NotEqual);
        _a.Load(Other, StateLayout.JumpContext);
        _a.WithTable(HostOperation.Compare, Other, Index, StateLayout.Jumps + 8);
        int elsewhere = _a.Jump(NotEqual);
        _a.And64(Target, -4096);
        _a.Store(StateLayout.CodeBase, Target);
        if (!noted)
        {
            _stubs.Add((other, miss));
            _stubs.Add((elsewhere, miss));
            _a.JumpThroughTable(Index, StateLayout.Jumps + 16);
            return;
        }
        _a.Add(Instruction.Create(Code.Call_rm64, new MemoryOperand(HostRegisters.Base, Index, 1, StateLayout.Jumps + 16, 8)));
        _missedCalls.Add((other, elsewhere, miss, _a.Position));
        EmitContinuation(back, after);
    }

    /// <summary>What is being emitted.</summary>
    private Trace? _trace;
    private int _instruction;

    private void EmitInstruction(Trace t, int i)
    {
        ref readonly GuestInstruction g = ref CollectionsMarshal.AsSpan(t.Instructions)[i];
        Mark(t, i);
        (_trace, _instruction) = (t, i);
        bool inShadow = _inShadow;
        if (g.Lowering is not (Lowering.Plain or Lowering.Vector or Lowering.Branch or Lowering.Jump or Lowering.Nothing))
            PackNow();
        if (g.Lowering is not (Lowering.Plain or Lowering.Vector or Lowering.Branch or Lowering.Nothing))
            _atHand = null;
        EmitLowered(t, i, g);
        if (inShadow)
            EndShadow();
    }

    private static ref readonly GuestInstruction At(Trace t, int i) => ref CollectionsMarshal.AsSpan(t.Instructions)[i];

    private void EmitLowered(Trace t, int i, in GuestInstruction g)
    {
        if (_segmented && EmitSegmented(t, i, g))
            return;
        switch (g.Lowering)
        {
            case Lowering.Nothing:
                break;
            case Lowering.Plain:
                EmitPlain(t, i, g);
                break;
            case Lowering.Vector:
                EmitVector(t, i, g);
                break;
            case Lowering.Push:
                EmitPush(t, i, g);
                break;
            case Lowering.Pop:
                EmitPop(t, i, g);
                break;
            case Lowering.Leave:
                EmitLeave(t, i);
                break;
            case Lowering.Call:
                EmitCall(t, i, g);
                break;
            case Lowering.CallIndirect:
                EmitCallIndirect(t, i, g);
                break;
            case Lowering.Return:
                EmitReturn(t, i, g);
                break;
            case Lowering.JumpIndirect:
                EmitJumpIndirect(t, i, g);
                break;
            case Lowering.Jump:
                EmitEdge(t, (long)g.Code.NearBranchTarget, t.TargetOf(g), i + 1);
                break;
            case Lowering.Branch:
                EmitBranch(t, i, g);
                break;
            case Lowering.Divide:
                EmitDivide(t, i, g);
                break;
            case Lowering.BitString:
                EmitBitString(t, i, g);
                break;
            case Lowering.PushMemory:
                EmitPushMemory(t, i, g);
                break;
            case Lowering.String:
                EmitString(t, i, g);
                break;
            case Lowering.Compare:
                EmitCompare(t, i, g);
                break;
            case Lowering.System:
                EmitSystem(t, i, g);
                break;
            case Lowering.Transition:
                EmitTransition(t, i, g);
                break;
            default:
                EmitHandler(t, i);
                break;
        }
    }

    private void EmitBranch(Trace t, int i, in GuestInstruction g)
    {
        NeedHostFlags(HostRegisters.Spare);
        byte condition = (byte)(g.Code.ConditionCode - ConditionCode.o);
        int skip = _a.Jump((byte)(g.Inverted ? condition : condition ^ 1));
        (bool host, bool unpacked, Recipe flags) = (_hostFlags, _unpacked, _flags);
        EmitEdge(t, g.LeavesFor, t.TargetOf(g), i + 1);
        _a.Bind(skip);
        (_hostFlags, _unpacked, _flags) = (host, unpacked, flags);
    }

    /// <summary>Calls the op's handler; the flags are in the interpreter's words then, and the trace goes on.</summary>
    private void EmitHandler(Trace t, int i)
    {
        PackNow();
        int site = AddSite(SiteAt(SiteKind.Call, t, i));
        CallSite(site);
        _hostFlags = false;
        _flags = s_state;
        if (EndsWindows(t.Instructions[i].Lowering))
            _resumes.Add((site, _a.Position));
        else
            Resume(site, i + 1, t);
    }

    /// <summary>A site at an instruction that has not retired.</summary>
    private Site SiteAt(SiteKind kind, Trace t, int i)
    {
        Site site = default;
        Describe(ref site, kind, t, i);
        return site;
    }

    /// <summary>As <see cref="SiteAt"/>, added where it stays, with its number. Valid until the next one is added.</summary>
    private ref Site NewSite(SiteKind kind, Trace t, int i, out int number)
    {
        number = _sites.Count;
        CollectionsMarshal.SetCount(_sites, number + 1);
        ref Site site = ref CollectionsMarshal.AsSpan(_sites)[number];
        site = default;
        Describe(ref site, kind, t, i);
        return ref site;
    }

    private void Describe(ref Site site, SiteKind kind, Trace t, int i)
    {
        ref readonly GuestInstruction g = ref At(t, i);
        site.Kind = kind;
        site.Block = g.Block;
        site.Op = g.Op;
        site.PageOffset = g.Offset;
        site.Uncount = (ushort)(t.Instructions.Count - i);
        WithFlags(ref site);
    }

    private void WithFlags(ref Site site)
    {
        Debug.Assert(!_unpacked || site.Kind == SiteKind.Overwritten);
        site.Flags = _flags.Kind;
        site.FlagLog2Size = _flags.Log2Size;
        (site.FlagA, site.FlagB, site.FlagImmediate) = (_flags.A, _flags.B, _flags.Immediate);
    }
}

using System.Diagnostics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Translated code: when it is made, how it is entered, and what it calls back for.</summary>
/// <remarks>
/// Translated code runs as unmanaged code between <see cref="RegionRoutines.Enter"/> and the call back that leaves. Managed exceptions never cross it: <see
/// cref="Slow"/> catches what a handler's access throws.
/// SAFETY: sites and blocks belong to the epoch in which the code was entered; when a call back has changed the epoch it leaves.
/// </remarks>
internal sealed unsafe partial class Translator
{
    private readonly LogicalProcessor _p;
    private readonly CodeFetch _fetch;
    private RegionBuilder? _builder;
    private LoopExit _left;
    /// <summary>The instruction at RIP is one that translated code could not do: the interpreter executes its block, translated or not.</summary>
    internal bool InterpretOnce;
    private ulong _translatedJumpGeneration;
    /// <summary>
    /// INVARIANT: only grows, so that no key of translated jumps is one that it was before their targets changed, whatever the owner writes into the state.
    /// </summary>
    private ulong _jumpKey;
    private const ulong JumpKeyStep = 0x1000;
    internal readonly TranslationCounters Counters = new();

    public Translator(LogicalProcessor p, CodeFetch fetch)
    {
        _p = p;
        _fetch = fetch;
        _p.State->Self = GCHandle.ToIntPtr(GCHandle.Alloc(this, GCHandleType.Weak));
        _p.State->SlowCallback = (nint)(delegate* unmanaged<CpuState*, Site*, byte*, nint>)&Slow;
        _p.State->HostMxcsr = MxcsrUnit.Default;
        if (_p.Machine.Blocks.TranslationThreshold != int.MaxValue)
            LoadRoutines();
    }

    /// <summary>Where translated code finds what it calls. Making it takes time and memory, which processors that only interpret do without.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void LoadRoutines()
    {
        _p.State->FlagRoutine = FlagRoutines.Load;
        _p.State->SlowRoutine = RegionRoutines.Slow;
        _p.State->MissRoutine = TlbRoutines.Miss;
        _p.State->TakeBackRoutine = TlbRoutines.TakeBack;
    }

    public void Free() => GCHandle.FromIntPtr(_p.State->Self).Free();

    /// <summary>A block's count has run out. True: it has a translation now, and the interpreter is to give way.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal bool IsHot(CpuState* c, Block* b)
    {
        if (InterpretOnce)
        {
            InterpretOnce = false;
            b->Heat = 0;
            return false;
        }
        if (b->Code != 0)
        {
            b->Heat = 0;
            return CanTranslate(c);
        }
        if (b->HostNext != null && !BlockMode.IsFlat(b->Mode) || !_p.Machine.Blocks.Translates || !CanTranslate(c))
        {
            b->Heat = int.MaxValue;
            return false;
        }
        _builder ??= new RegionBuilder(_p.Machine.Blocks, _p.Identity) { IsObserved = _p.Observer is not null };
        b->Heat = BlockCache.Retry;
        long start = Stopwatch.GetTimestamp();
        bool built = _builder.Build(b, LinearOf(c, c->BlockRip)) && _p.Machine.Blocks.PublishRegion(_builder, _fetch.JumpEpoch);
        Counters.BuildTicks += Stopwatch.GetTimestamp() - start;
        Counters.BuiltInstructions += built ? _builder.Instructions : 0;
        return built && b->Code != 0;
    }

    /// <summary>Cuts an address to the mode's width.</summary>
    private static ulong Wrap(CpuState* c, ulong address) => c->BlockMode == BlockMode.Code64 ? address : (uint)address;

    private static ulong RipOf(CpuState* c, Site* s) => Wrap(c, c->CodeBase + (ulong)s->PageOffset);

    internal bool CanTranslate(CpuState* c) => _p.Paging.Sanitizer is null && CanRun(c, CpuMode.CodeMode(c), c->BlockRip);

    /// <summary>Relative branches and the next page cannot leave the canonical addresses from here: 2 GiB and some away from both ends of the hole.</summary>
    private static bool IsFarFromEdge(ulong rip) => rip < 0x7fff_7fff_0000 || rip >= 0xffff_8000_8001_0000;

    /// <summary>Executes from a translated block at RIP until something is for the run loop.</summary>
    internal LoopExit RunTranslated(CpuState* c, Block* b)
    {
        _fetch.Link = null;
        c->CodeBase = PageOf(c, c->Rip);
        c->CcKind = (uint)FlagKind.Words;
        if (_translatedJumpGeneration != (ulong)_fetch.JumpGeneration + ((ulong)_fetch.JumpEpoch << 32))
        {
            _translatedJumpGeneration = (ulong)_fetch.JumpGeneration + ((ulong)_fetch.JumpEpoch << 32);
            _jumpKey += JumpKeyStep;
        }
        c->JumpKey = _jumpKey;
        ulong before = c->InstructionsRetired;
        if (c->SlowRoutine == 0)
            LoadRoutines();
        // Another processor may have dropped it meanwhile.
        nint code = Volatile.Read(ref b->Code);
        if (code == 0)
            return LoopExit.Lookup;
        // Whoever came here by a jump finds the way alone the next time.
        RememberJump(c, code);
        RegionRoutines.Enter((byte*)_p.Paging.Level1, code);
        c->Units = 0;
        Counters.Entries++;
        Counters.Translated += c->InstructionsRetired - before;
        return _left;
    }

    /// <summary>Calls from translated code, whose registers are in the state. Returns where to go on, or 0 to leave with <see cref="_left"/>.</summary>
    [UnmanagedCallersOnly]
    private static nint Slow(CpuState* c, Site* s, byte* address)
    {
        Translator t = Unsafe.As<Translator>(GCHandle.FromIntPtr(c->Self).Target!);
        try
        {
            nint code = t.AtSite(c, s, address);
            if (code == 0)
                t.Counters.Leaves[(int)s->Kind]++;
            else
                t.TrackContext(c);
            return code;
        }
        catch (NullReferenceException) when (t._p.Guard.Record->Pending != 0)
        {
            t._p.Guard.Failed(c);
            if (c->KeptBy == c->CurrentOp)
                c->Gpr[4] = c->KeptRsp;
            return t.FaultAt(c, s);
        }
    }

    private nint AtSite(CpuState* c, Site* s, byte* address)
    {
        Counters.Sites[(int)s->Kind]++;
        switch (s->Kind)
        {
            case SiteKind.Miss:
                ulong linear = s->Form switch
                {
                    AccessForm.Operand or AccessForm.LateOperand => OperandLinear(c, s, 0),
                    AccessForm.BitString => OperandLinear(c, s, BitStringOffset(c, s)),
                    AccessForm.Push => StackLinear(c, c->Gpr[4] - s->Size),
                    AccessForm.Pop => StackLinear(c, c->Gpr[4]),
                    AccessForm.StringSource => Wrap(c, c->Gpr[6]),
                    AccessForm.StringTarget => Wrap(c, c->Gpr[7]),
                    _ => StackLinear(c, c->Gpr[5]),
                };
                // A misaligned operand faults before its page is looked at.
                bool aligned = s->Alignment == 0 || (linear & (s->Alignment - 1u)) == 0;
                bool raised = false;
                if (aligned && TryFill(c, linear, s->Size, s->Write, out raised) && CanGoOn())
                    return s->Resume;
                if (s->Form >= AccessForm.StringSource)
                    return CallHandler(c, s);
                if (s->Popped != 0 && aligned && Split(c, s, linear) is var split && split != 0)
                    return split;
                // Several instructions that are checked together would not all fault.
                return raised && s->Form is AccessForm.Operand or AccessForm.BitString ? FaultAt(c, s) : LeaveBefore(c, s);
            case SiteKind.Overwritten when s->Size == 0:
                // Some of a page, by a string instruction, which goes on in its handler.
                _p.Paging.CodeMayHaveChanged(address, 4096);
                return s->Resume;
            case SiteKind.Overwritten:
                if (address != c->SplitBytes)
                    _p.Paging.CodeMayHaveChanged(address + s->WindowOffset, s->Size);
                else if (!StoreSplit(c, s))
                    return LeaveBeforeSplit(c, s);
                if (s->Region->Stale == 0)
                    return s->Resume;
                SyncFlags(c, s);
                c->InterruptShadow = 0;
                c->InstructionsRetired -= s->Uncount;
                if (s->PageOffset != RegionBuilder.AtRip)
                    c->Rip = RipOf(c, s);
                return Leave(LoopExit.Lookup);
            case SiteKind.Call:
                return CallHandler(c, s);
            case SiteKind.Leave:
                return LeaveBefore(c, s);
            case SiteKind.Poll:
                // Mostly it is time to look at the clock, and nothing else.
                bool goesOn = *(ulong*)&c->ExitRequest == 0 && (c->InstructionsRetired < c->TimerLook || !DeadlineTimer.HasCome(c));
                if (s->Region->Stale == 0 && goesOn)
                {
                    s->Region->Samples++;
                    return s->Resume;
                }
                SyncFlags(c, s);
                c->InstructionsRetired -= s->Uncount;
                c->Rip = RipOf(c, s);
                if (s->Region->Stale == 0)
                    return Leave(LoopExit.Poll);
                return goesOn && CanGoOn() ? GoToRenewed(c) : Leave(LoopExit.Stale);
            case SiteKind.Link:
                c->Rip = RipOf(c, s);
                return LinkTo(c, s);
            case SiteKind.Jump:
                c->Rip = (ulong)address;
                return JumpTo(c, s);
            case SiteKind.Units:
                return MakeLive(c, (Units)s->Size) ? s->Resume : LeaveBefore(c, s);
            default:
                c->Rip = RipOf(c, s);
                if (_p.Machine.Blocks.Verify(s->Region))
                    return s->Resume;
                SyncFlags(c, s);
                return Leave(LoopExit.Stale);
        }
    }

    private nint Leave(LoopExit how)
    {
        _left = how;
        return 0;
    }

    /// <summary>Leaves at the site's instruction, for the interpreter.</summary>
    private nint LeaveBefore(CpuState* c, Site* s)
    {
        if (Counters.Left is { } left && s->Op != null)
            left[s->Op->Code]++;
        SyncFlags(c, s);
        c->Gpr[4] += (ulong)s->StackMoves;
        c->InstructionsRetired -= s->Uncount;
        c->Rip = RipOf(c, s);
        InterpretOnce = true;
        return Leave(LoopExit.Lookup);
    }

    /// <summary>The instruction did not retire: an exception or an exit is pending.</summary>
    private nint FaultAt(CpuState* c, Site* s)
    {
        SyncFlags(c, s);
        c->InstructionsRetired -= s->Uncount;
        c->Rip = RipOf(c, s);
        if (c->PendingNonCanonical != 0 && c->ExitPending == 0 && s->Op->Seg == SegmentIndex.SS)
            c->PendingVector = Arch.Vector.SS;
        c->PendingNonCanonical = 0;
        // Behind an exit the instruction starts again, in the shadow of STI.
        return c->ExitPending == 0 ? Deliver(c) : Leave(LoopExit.Fault);
    }

    /// <summary>Delivers the pending exception, as the run loop does, and goes on in its handler if that is translated.</summary>
    private nint Deliver(CpuState* c)
    {
        c->InterruptShadow = 0;
        c->Units = 0;
        _p.Access.Replay.Retire();
        if (!_p.Events.DeliverPending(c))
            return Leave(LoopExit.RetiredExit);
        if (EventUnit.NeedsAttention(c) || !CanGoOn())
            return Leave(LoopExit.Poll);
        return GoTo(c);
    }

    private nint CallHandler(CpuState* c, Site* s)
    {
        SyncFlags(c, s);
        Op* op = s->Op;
        if (Counters.Handlers is { } handlers)
            handlers[op->Code]++;
        c->BlockRip = Wrap(c, c->CodeBase + ((nuint)s->Block->Host & 0xfff));
        c->CurrentOp = op;
        switch (op->Handler(_p, c, op))
        {
            case OpResult.Next:
                if (s->Region->Stale == 0 && CanGoOn() && (c->Units == 0 || AreUnitsValid(c)))
                    return s->Resume;
                c->InstructionsRetired -= s->Uncount - 1u;
                c->Rip = Addressing.NextRip(c, op);
                return Leave(LoopExit.Lookup);
            case OpResult.EndBlock or OpResult.Jump or OpResult.Taken or OpResult.Fall:
                c->InstructionsRetired -= s->Uncount - 1u;
                c->Units = 0;
                if (EventUnit.NeedsAttention(c) || !CanGoOn())
                    return Leave(LoopExit.Poll);
                return GoTo(c);
            case OpResult.RetiredExit:
                c->InstructionsRetired -= s->Uncount - 1u;
                return Leave(LoopExit.RetiredExit);
            default:
                return FaultAt(c, s);
        }
    }

    /// <summary>Nothing has happened that makes code pointers of this stay invalid.</summary>
    private bool CanGoOn() => _fetch.IsCurrent && _fetch.IsOfThisEpoch;

    /// <summary>Goes on at RIP in translated code if the jump cache knows some.</summary>
    private nint GoTo(CpuState* c)
    {
        nint code = CodeAt(c);
        return code != 0 ? GoTo(c, code) : Cross(c);
    }

    private static nint GoTo(CpuState* c, nint code)
    {
        c->CodeBase = PageOf(c, c->Rip);
        return code;
    }

    /// <summary>
    /// The flags are in the interpreter's words. Where RIP's block lies in two pages, which is one instruction, the interpreter executes it here, and
    /// translated code goes on behind it.
    /// </summary>
    private nint Cross(CpuState* c)
    {
        Block* b = _fetch.Cached(c, CpuMode.CodeMode(c));
        if (b == null || b->HostNext == null || *(ulong*)&c->ExitRequest != 0 || c->InstructionsRetired >= c->TimerLook)
            return Leave(LoopExit.Lookup);
        c->BlockRip = c->Rip;
        c->Units = 0;
        // Ends the loop behind the block.
        c->Attention = 1;
        LoopExit how = _p.Interpreter.LoopGuarded(c, b);
        c->Attention = 0;
        if (how != LoopExit.Poll || EventUnit.NeedsAttention(c) || !CanGoOn())
            return Leave(how);
        nint code = CodeAt(c);
        return code != 0 ? GoTo(c, code) : Leave(LoopExit.Lookup);
    }

    /// <summary>Something still leads to a region that is stale: goes on in what has taken its place, and leads there from now on.</summary>
    private nint GoToRenewed(CpuState* c)
    {
        nint code = CodeAt(c);
        if (code == 0)
            return Leave(LoopExit.Stale);
        RememberJump(c, code);
        return code;
    }

    /// <summary>In the keys of translated jumps: what the target's code is, if not 64-bit code.</summary>
    private const ulong FlatJumps = 1UL << 63, SegmentedJumps = 1UL << 62, WordJumps = 1UL << 61;

    /// <summary>Before translated code goes on: it looks for jumps in the context that holds now.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private void TrackContext(CpuState* c)
    {
        c->JumpContext = c->CodeContext | c->JumpKey;
        c->JumpSalt = ProcessorMemory.JumpSalt(c->CodeContext);
        c->JumpSegment = 0;
        if (c->BlockMode != BlockMode.Code64)
            TrackSegments(c);
    }

    /// <summary>The code for RIP, for jumps that find it themselves.</summary>
    private void RememberJump(CpuState* c, nint code)
    {
        TrackContext(c);
        TranslatedJump* j = ProcessorMemory.JumpsOf(c) + ProcessorMemory.JumpIndex(c->Rip, c->JumpSalt);
        (j->Linear, j->Context, j->Code) = (c->Rip | c->JumpSegment, c->JumpContext, code);
    }

    /// <summary>The translated block at RIP in the current context, or null. No page is walked and nothing is decoded.</summary>
    private Block* TranslatedAt(CpuState* c)
    {
        uint mode = CpuMode.CodeMode(c);
        if (!CanRun(c, mode, c->Rip))
            return null;
        ulong linear = LinearOf(c, c->Rip);
        JumpEntry* e = _fetch.Jumps + CodeFetch.JumpIndex(linear);
        bool miss = CodeFetch.JumpMiss(e, linear, CodeFetch.JumpKey(c, mode));
        Block* b = miss ? _fetch.Known(c, mode) : (Block*)(e->Packed & CodeFetch.BlockAddress);
        return b != null && b->Code != 0 ? b : null;
    }

    /// <summary>The code of <see cref="TranslatedAt"/>, or 0. Read once: another processor may take it back at any time, and the code stays readable.</summary>
    private nint CodeAt(CpuState* c)
    {
        Block* b = TranslatedAt(c);
        return b != null ? Volatile.Read(ref b->Code) : 0;
    }

    private nint LinkTo(CpuState* c, Site* s)
    {
        Block* b = TranslatedAt(c);
        if (b == null || s->Region->Stale != 0)
        {
            SyncFlags(c, s);
            return b == null ? Cross(c) : Leave(LoopExit.Lookup);
        }
        // The entry's address may be taken back at once; the code stays readable, and says so.
        nint code = Volatile.Read(ref b->Code);
        // What lies in two pages is what it is at this address alone.
        if (b->HostNext == null)
            _p.Machine.Blocks.Link(s, b);
        return code != 0 ? code : LeaveSynced(c, s);
    }

    private nint LeaveSynced(CpuState* c, Site* s)
    {
        SyncFlags(c, s);
        return Leave(LoopExit.Lookup);
    }

    private nint JumpTo(CpuState* c, Site* s)
    {
        ulong rip = c->Rip;
        // A branch that leaves the segment has not been taken; what has run beyond its end faults where it is.
        if (s->Op != null && (c->BlockMode == BlockMode.Code64 ? !CpuMode.IsCanonical(c, rip) : rip > c->Cs.Limit))
        {
            Addressing.SetStackPointer(c, c->Gpr[4] - s->Popped, Addressing.StackMask(c));
            return LeaveBefore(c, s);
        }
        nint code = CodeAt(c);
        if (code == 0)
        {
            SyncFlags(c, s);
            return Cross(c);
        }
        RememberJump(c, code);
        c->CodeBase = PageOf(c, rip);
        return code;
    }

    private static ulong BitStringOffset(CpuState* c, Site* s)
    {
        ulong index = *(ulong*)((byte*)c + s->Op->Reg1);
        long bits = s->Size switch { 2 => (short)index, 4 => (int)index, _ => (long)index };
        return (ulong)((bits >> 3) & -s->Size);
    }

    private ulong OperandLinear(CpuState* c, Site* s, ulong beyond)
    {
        c->BlockRip = Wrap(c, c->CodeBase + ((nuint)s->Block->Host & 0xfff));
        Op* op = s->Op;
        ulong offset = (Addressing.EffectiveAddress(c, op) + beyond) & Addressing.AddressMask(op->AddressSize);
        bool flat = c->BlockMode == BlockMode.Code64 && op->Seg < SegmentIndex.FS;
        return flat ? offset : Wrap(c, offset + CpuState.SegmentAt(c, op->Seg)->Base);
    }

    /// <summary>
    /// Brings a translation into level 1 when the access can succeed without a fault or an exit. False when it is there already: then the memory itself has
    /// failed.
    /// </summary>
    /// <param name="raised">A fault of the guest's is pending.</param>
    private bool TryFill(CpuState* c, ulong linear, int size, bool write, out bool raised)
    {
        raised = false;
        if ((linear & 0xfff) + (ulong)size > 0x1000 || !CpuMode.IsCanonical(c, linear) || CpuMode.AlignmentChecked(c))
            return false;
        TlbEntry* e = _p.Paging.Level1 + Tlb.Index(linear);
        ulong tag = linear & ~0xfffUL | c->TlbContext;
        if (tag == (write ? e->TagWrite : e->TagRead))
            return false;
        bool ok = _p.Paging.Translate(c, linear, (write ? AccessKind.Write : AccessKind.Read) | CpuMode.ExplicitAccess(c), out _);
        if (!ok)
        {
            raised = c->ExitPending == 0;
            // The interpreter meets an exit again, and reports it.
            c->ExitPending = 0;
            c->PendingNonCanonical = 0;
            c->Exit->Reason = ExitReason.None;
        }
        return ok && tag == (write ? e->TagWrite : e->TagRead);
    }

    // ---- Flags ----

    /// <summary>The six flags at a site.</summary>
    private static ulong StatusAt(CpuState* c, Site* s)
    {
        if (s->Flags != FlagKind.Words)
        {
            ulong a = s->FlagA < 16 && s->Flags != FlagKind.Packed ? c->Gpr[s->FlagA] : c->CcA;
            ulong b = s->FlagB < 16 ? c->Gpr[s->FlagB] : s->FlagB == RegionBuilder.InState ? c->CcB : s->FlagImmediate;
            return FlagRecipe.Status(s->Flags, s->FlagLog2Size, a, b);
        }
        FlagKind kind = (FlagKind)(c->CcKind & 15);
        return kind == FlagKind.Words ? Flags.GetStatus(c) : FlagRecipe.Status(kind, (int)(c->CcKind >> 4), c->CcA, c->CcB);
    }

    /// <summary>Brings the interpreter's words up to date. CcKind says so afterwards.</summary>
    private static void SyncFlags(CpuState* c, Site* s)
    {
        if (s->Flags == FlagKind.Words && c->CcKind == (uint)FlagKind.Words)
            return;
        Flags.SetStatus(c, StatusAt(c, s));
        c->CcKind = (uint)FlagKind.Words;
    }
}

using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Entry, events at instruction boundaries, and exits.</summary>
/// <remarks>SAFETY: <c>State</c> and <c>Exit</c> are made with the processor and freed with it; the owner's thread alone is inside.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>
    /// Runs the guest until something is the owner's business. Owner thread. CpuState.Inject is delivered first; windows, the interrupt shadow and <see
    /// cref="CpuState.ExitRequest"/> are honoured.
    /// The owner clears ExitRequest before it enters again.
    /// </summary>
    public ExitReason Enter() => Observer is null ? EnterOnce() : Observer.Enter(this);

    /// <summary>One stay in the guest, whoever observes it.</summary>
    internal ExitReason EnterOnce()
    {
        CpuState* c = State;
        Exit->Reason = ExitReason.None;
        Exit->IdtVectoring.Valid = 0;
        c->ExitPending = 0;
        c->PendingNonCanonical = 0;
        Paging.UpdateContext(c);
        Breakpoints.UpdateStep(c);
        Fetch.EnterEpoch();
        // PAIRS-WITH: Machine.StopOthers (the word, a process-wide barrier, then the epoch).
        if (Machine.IsBusTaken)
            AwaitBus();
        Access.Replay.Begin();
        Interpreter.Pauses = 0;
        c->TimerLook = ulong.MaxValue;
        ExitReason reason = RunGuarded(c);
        Fetch.LeaveEpoch();
        AtBus = 0;
        VectorUnit.Park(c);
        return reason;
    }

    private ExitReason Run(CpuState* c)
    {
        if (Events.HasUnfinishedTask && !Events.ResumeTask(c))
            return Exit->Reason;
        if (c->HostStepDone != 0 && c->HostSingleStep != 0)
        {
            c->HostStepDone = 0;
            HostStepped(c);
            return Exit->Reason;
        }
        while (c->FinishInstruction != 0)
        {
            if (!Access.Replay.InProgress)
                return Exit->Reason = ExitReason.Request;
            if (!Step(c))
                return Exit->Reason;
        }
        // An instruction whose MMIO access is done retires before any event: executed again after a handler, it would touch the device twice.
        while (c->Inject.Valid != 0 && Access.Replay.InProgress)
            if (!Step(c))
                return Exit->Reason;
        if (c->Inject.Valid != 0 && (!Events.DeliverInjected(c) || HostStepped(c)))
            return Exit->Reason;
        bool stale = false;
        if (c->TimerDeadline != 0)
            c->TimerLook = FirstTimerLook;
        for (; ; )
        {
            if (Volatile.Read(ref c->ExitRequest) != 0)
                return Exit->Reason = ExitReason.Request;
            if (c->InstructionsRetired >= c->TimerLook && DeadlineTimer.HasCome(c))
                return Exit->Reason = ExitReason.Timer;
            if (EventUnit.NeedsAttention(c) || Access.Replay.InProgress)
            {
                if (!Step(c))
                    return Exit->Reason;
                continue;
            }
            // The loop reads it together with ExitRequest: a store to one of the two would delay that.
            if (c->Attention != 0)
                c->Attention = 0;
            Block* b = stale ? Fetch.FindBlock(c, CpuMode.CodeMode(c)) : Fetch.Lookup(c, CpuMode.CodeMode(c));
            if (b == null)
            {
                if (!Faulted(c))
                    return Exit->Reason;
                continue;
            }
            if (Fetch.Link != null)
                Fetch.Connect(c, b);
            c->BlockRip = c->Rip;
            LoopExit how;
            if (b->Code != 0 && !Translator.InterpretOnce && Translator.CanTranslate(c))
            {
                how = Translator.RunTranslated(c, b);
            }
            else
            {
                how = Interpreter.LoopGuarded(c, b);
                Translator.InterpretOnce = false;
            }
            stale = how == LoopExit.Stale;
            if (how == LoopExit.RetiredExit || (how == LoopExit.Fault && !Faulted(c)))
                return Exit->Reason;
        }
    }

    /// <summary>An instruction did not retire. False: leave the guest.</summary>
    private bool Faulted(CpuState* c)
    {
        Fetch.Link = null;
        if (c->ExitPending != 0)
            return false;
        Access.Replay.Retire();
        return Events.DeliverPending(c) && !HostStepped(c);
    }

    /// <summary>A host-requested step ends at the first instruction of a handler too: an endless chain of exceptions must not keep the owner out.</summary>
    private bool HostStepped(CpuState* c)
    {
        if (c->HostSingleStep == 0)
            return false;
        Exit->Reason = ExitReason.SingleStep;
        Exit->Payload = DebugTraps.Take(State);
        return true;
    }

    /// <summary>Events that wait for an instruction boundary, or else exactly one instruction. False: leave the guest.</summary>
    private bool Step(CpuState* c)
    {
        if (!Access.Replay.InProgress)
        {
            int breakpoints = c->StepMode == 0 ? 0 : Breakpoints.CodeAt(c, c->BlockMode == BlockMode.Code64 ? c->Rip : (uint)(c->Cs.Base + c->Rip));
            switch (Events.FirstEvent(AwaitedEvents(c) | (breakpoints != 0 ? BoundaryEvents.CodeBreakpoint : 0)))
            {
                case BoundaryEvents.TaskTrap or BoundaryEvents.DebugTrap:
                    return RaiseDebug(c, DebugTraps.Take(c));
                case BoundaryEvents.Nmi:
                    Exit->Reason = ExitReason.NmiWindow;
                    return false;
                case BoundaryEvents.Interrupt:
                    Exit->Reason = ExitReason.InterruptWindow;
                    return false;
                case BoundaryEvents.CodeBreakpoint:
                    // With traps that MOV SS has kept back it is one #DB.
                    return RaiseDebug(c, DebugTraps.Take(c) | (uint)breakpoints);
            }
            if (VirtualInterrupts.IsDue(c))
            {
                Outcome.Raise(c, Vector.GP, 0);
                return Faulted(c);
            }
        }
        byte shadow = c->InterruptShadow;
        ushort heldTraps = c->PendingDebug;
        ulong kept = c->Rflags & (Rflags.TF | Rflags.RF);
        uint mode = CpuMode.CodeMode(c) | BlockMode.Single;
        Fetch.Link = null;
        Block* b = Fetch.Lookup(c, mode);
        if (b == null)
            return Faulted(c);
        c->InterruptShadow = 0;
        c->Rflags &= ~Rflags.RF;
        c->TrapDecided = 0;
        c->Attention = 1;
        c->BlockRip = c->Rip;
        LoopExit how = Interpreter.LoopGuarded(c, b);
        c->Attention = 0;
        Fetch.Link = null;
        if (how == LoopExit.Fault)
        {
            c->Rflags |= kept & Rflags.RF;
            // What a first operand met happens again when the instruction does.
            c->PendingDebug = heldTraps;
            if (c->ExitPending != 0)
                c->InterruptShadow = shadow;
            return Faulted(c);
        }
        if (how == LoopExit.Stale && c->Rip == c->BlockRip)
        {
            // Invalidated before it started: refresh the jump cache and come back.
            c->InterruptShadow = shadow;
            c->Rflags |= kept & Rflags.RF;
            return Fetch.FindBlock(c, mode) != null || Faulted(c);
        }
        Access.Replay.Retire();
        if (c->TrapDecided == 0)
            DebugTraps.NoteStep(c, kept);
        if (how == LoopExit.RetiredExit)
        {
            // A task switch can have committed the new task and still have something to load.
            c->HostStepDone = Exit->Reason is ExitReason.Io or ExitReason.Hlt or ExitReason.Pause or ExitReason.BusLock ? c->HostSingleStep : (byte)0;
            return false;
        }
        return !HostStepped(c);
    }

    /// <summary>Events for which the owner waits: it gets a window exit when their turn has come.</summary>
    private static BoundaryEvents AwaitedEvents(CpuState* c) =>
        (c->RequestNmiWindow != 0 ? BoundaryEvents.Nmi : 0) | (c->RequestInterruptWindow != 0 ? BoundaryEvents.Interrupt : 0);

    /// <summary>Delivers #DB with the given DR6 bits. False: leave the guest.</summary>
    private bool RaiseDebug(CpuState* c, ulong bits)
    {
        Outcome.Raise(c, Vector.DB);
        c->PendingAddress = bits;
        return Events.DeliverPending(c) && !HostStepped(c);
    }

    /// <summary>Retires the instruction of the last exit: RIP moves behind it, the shadow ends, a single-step trap is noted.</summary>
    public void SkipInstruction() => Outcome.Retire(State, Exit->InstructionLength);

    /// <summary>
    /// Retires the store of the last <see cref="ExitReason.Mmio"/> exit, whose InstructionLength says that nothing else is left of it; the owner makes the
    /// access.
    /// </summary>
    public void SkipStore()
    {
        Access.Replay.Retire();
        SkipInstruction();
    }

    /// <summary>An instruction that replaces the whole state (RSM) has been carried out by the owner.</summary>
    public void InstructionCompleted()
    {
        Access.Replay.Retire();
        State->InstructionsRetired++;
        State->HostStepDone = State->HostSingleStep;
    }

    /// <summary>The owner moves RIP away from an instruction in progress: what it has done to devices is done, the rest of it never happens.</summary>
    public void AbandonInstruction()
    {
        Access.Replay.Retire();
        Events.ForgetTask();
    }

    /// <summary>The debug traps that wait for delivery, for an owner that reports them itself; none wait after it.</summary>
    public ulong TakePendingDebug() => DebugTraps.Take(State);

    private ExitReason RunGuarded(CpuState* c)
    {
        FaultRecord* faults = Guard.Record = FaultGuard.RecordOfThread(Guard.Record);
        faults->Inside = 1;
        ExitReason reason;
        // Not a finally: it would be a call on each exit.
        try
        {
            reason = Run(c);
        }
        catch (NullReferenceException) when (faults->Pending != 0)
        {
            // Between instructions, or fetching one: RIP is exact.
            Guard.Failed(c);
            reason = Exit->Reason;
        }
        catch
        {
            faults->Inside = 0;
            throw;
        }
        faults->Inside = 0;
        return reason;
    }
}

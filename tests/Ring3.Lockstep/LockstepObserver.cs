using Iced.Intel;
using Ring3.Cpu;
using Machine = Ring3.Cpu.Machine;

namespace Ring3.Lockstep;

/// <summary>
/// Executes every stay in the guest twice from the same state and memory: by a processor that translates, whose owner sees the result, and by one that
/// interprets, which has decoded code and translations of its own. Both must
/// come to the same state, memory and exit. Between the two, memory is put back; the clock and random numbers of the second are those of the first.
/// </summary>
/// <remarks>
/// One processor in the machine: another's stores, and a device's, would come between. Translations are flushed before each stay, because the second
/// processor hears of no flush.
/// SAFETY: copies states between two processors of which one at a time is inside the guest, and keeps what belongs to each; pages are put back while no
/// guest code runs.
/// </remarks>
internal sealed unsafe class LockstepObserver : ExecutionObserver
{
    /// <summary>Ticks of the host's clock that a stay lasts at most: some hundred thousand instructions.</summary>
    private const ulong StayTicks = 300_000;

    /// <summary>More instructions than a block has: the interpreter goes the last ones singly.</summary>
    private const ulong Margin = 300;

    private readonly LogicalProcessor _leader, _follower;
    private readonly CpuState* _start;
    private readonly PageJournal _journal = new();
    private readonly List<ulong> _inputs = [];
    private readonly List<Difference> _differences = [];
    /// <summary>While a stay is repeated: what it read the first time.</summary>
    private List<ulong> _given = [];
    private readonly byte[] _code = new byte[15];
    private int _nextInput, _nextGiven;
    private ulong _undefined, _storedUndefined, _margin = Margin;
    private bool _following, _repeating, _watching;

    public LockstepObserver(LogicalProcessor leader)
    {
        _leader = leader;
        Machine machine = new(leader.Machine.Model) { TranslationThreshold = int.MaxValue, ExternalWriters = true };
        _follower = machine.CreateProcessor();
        _follower.Observer = this;
        _start = (CpuState*)Host.HostMemory.Map((nuint)sizeof(CpuState));
    }

    public ulong Stays { get; private set; }
    public ulong Instructions { get; private set; }
    public ulong PagesCompared { get; private set; }

    /// <summary>Stays after which the engines disagreed about flags, undefined ones only.</summary>
    public ulong UndefinedDifferences { get; private set; }

    /// <summary>Told of the first difference; does not return.</summary>
    public required Action<string> Report { get; init; }

    public override void MayWrite(byte* page) => _journal.Note(page);

    public override ulong Input(LogicalProcessor p, ulong value)
    {
        if (!_following)
        {
            if (_repeating)
                value = _given[_nextGiven++];
            _inputs.Add(value);
        }
        else if (_nextInput < _inputs.Count)
            value = _inputs[_nextInput++];
        else
            Differ("reads the clock or a random number once more");
        return value;
    }

    public override ExitReason Enter(LogicalProcessor p)
    {
        CpuState* c = p.State;
        if (p.IsInstructionInProgress)
        {
            // An access to a device lies in the middle of the instruction; its rest is not repeated.
            byte kept = c->FinishInstruction;
            c->FinishInstruction = 1;
            ExitReason rest = p.EnterOnce();
            c->FinishInstruction = kept;
            if (rest != ExitReason.Request || p.IsInstructionInProgress || kept != 0)
                return rest;
        }
        ulong deadline = c->TimerDeadline;
        for (; ; )
        {
            ulong now = Host.HostClock.Tsc(), until = now + StayTicks;
            bool own = deadline == 0 || deadline > until;
            c->TimerDeadline = own ? until : deadline;
            ExitReason reason = Stay();
            c->TimerDeadline = deadline;
            if (reason != ExitReason.Timer || !own)
                return reason;
            // A stay that follows has nothing to inject and no event of the owner's to wait for that this one had not.
        }
    }

    /// <summary>One stay of the leader, checked.</summary>
    private ExitReason Stay()
    {
        ExitReason reason = Both();
        Stays++;
        Instructions += _leader.State->InstructionsRetired - _start->InstructionsRetired;
        if (_differences.Count != 0)
            Report(Narrow(reason));
        return reason;
    }

    private ExitReason Both()
    {
        _journal.Clear();
        _differences.Clear();
        _inputs.Clear();
        _leader.FlushAll();
        *_start = *_leader.State;
        ExitReason reason = _leader.EnterOnce();
        Follow();
        return reason;
    }

    /// <summary>Takes memory back to where the leader began, executes as much with the follower, and compares.</summary>
    private void Follow()
    {
        CpuState* l = _leader.State, f = _follower.State;
        _journal.BeginSecond();
        _follower.CpuidFeatures = _leader.CpuidFeatures;
        // A loop of vector instructions looks at the clock every thousand rounds only, and may go beyond.
        for (_margin = Margin; ; _margin *= 16)
        {
            Repeat();
            if (f->InstructionsRetired <= l->InstructionsRetired || _margin > l->InstructionsRetired - _start->InstructionsRetired)
                break;
            _journal.Rewind();
            _differences.Clear();
        }
        StateComparer.Compare(l, f, _differences);
        CompareMemory();
        if (_differences.Count != 0 && _differences.TrueForAll(d => (d.Bits & ~Flags.Status) == 0))
            ForgiveUndefinedFlags();
    }

    /// <summary>The follower's part, from memory as it was at the start.</summary>
    private void Repeat()
    {
        Load(_follower, _start);
        _following = true;
        _nextInput = 0;
        FollowTo(_leader.Exit->Reason is ExitReason.Request or ExitReason.Timer);
        _following = false;
    }

    private void Differ(string text) => _differences.Add(new Difference(text, ulong.MaxValue));

    /// <summary>
    /// Repeats the follower's part singly, and finds which status flags the last instructions have left undefined, and which were when flags were
    /// stored: the engines need not agree about them.
    /// </summary>
    private void ForgiveUndefinedFlags()
    {
        List<Difference> differences = [.. _differences];
        _differences.Clear();
        _journal.Rewind();
        _undefined = _storedUndefined = 0;
        _watching = true;
        Repeat();
        _watching = false;
        _journal.KeepFirst();
        _differences.Clear();
        if (differences.TrueForAll(d => (d.Bits & ~(_storedUndefined | (d.Text.StartsWith("rflags", StringComparison.Ordinal) ? _undefined : 0))) == 0))
            UndefinedDifferences++;
        else
            _differences.AddRange(differences);
    }

    /// <summary>The instruction at RIP has executed, or raised an event, which stores the flags that were.</summary>
    private ExitReason EnterWatched()
    {
        CpuState* f = _follower.State;
        Read(f->Rip, _code);
        Instruction i = Decoder.Create(64, _code, f->Rip).Decode();
        ulong before = f->InstructionsRetired;
        ExitReason reason = _follower.EnterOnce();
        if (f->InstructionsRetired == before && f->BetweenIterations == 0
            || i.Mnemonic is Mnemonic.Pushfq or Mnemonic.Pushf or Mnemonic.Syscall or Mnemonic.Int or Mnemonic.Int3)
            _storedUndefined |= _undefined;
        if (f->InstructionsRetired != before)
            _undefined = _undefined & ~Bits(i.RflagsModified) | Bits(i.RflagsUndefined)
                | (i.Mnemonic is Mnemonic.Iretq or Mnemonic.Sysretq or Mnemonic.Popfq ? _storedUndefined : 0);
        return reason;
    }

    private static ulong Bits(RflagsBits bits) =>
        ((bits & RflagsBits.CF) != 0 ? Arch.Rflags.CF : 0) | ((bits & RflagsBits.PF) != 0 ? Arch.Rflags.PF : 0) | ((bits & RflagsBits.AF) != 0 ? Arch.Rflags.AF
            : 0)
        | ((bits & RflagsBits.ZF) != 0 ? Arch.Rflags.ZF : 0) | ((bits & RflagsBits.SF) != 0 ? Arch.Rflags.SF : 0)
            | ((bits & RflagsBits.OF) != 0 ? Arch.Rflags.OF : 0);

    /// <summary>Gives a processor a state, but for what is the processor's own.</summary>
    private static void Load(LogicalProcessor p, CpuState* from)
    {
        CpuState* c = p.State;
        CpuState own = *c;
        *c = *from;
        (c->Self, c->SlowCallback, c->SlowRoutine, c->HostMxcsr, c->JumpKey) = (own.Self, own.SlowCallback, own.SlowRoutine, own.HostMxcsr, own.JumpKey);
        c->Exit = own.Exit;
        (c->CodeBase, c->EntryStamp) = (0, own.EntryStamp);
        c->CurrentOp = c->KeptBy = null;
        c->ExitRequest = 0;
        c->TimerDeadline = 0;
        p.AbandonInstruction();
        p.RecomputeMode();
        // RecomputeMode takes it for a new state.
        c->HostStepDone = from->HostStepDone;
        p.FlushAll();
    }

    /// <param name="anywhere">The leader has stopped at a boundary of its own choice.</param>
    private void FollowTo(bool anywhere)
    {
        CpuState* l = _leader.State, f = _follower.State;
        ulong target = l->InstructionsRetired;
        byte step = f->HostSingleStep;
        ExitReason reason = ExitReason.None;
        if (!_watching && target > f->InstructionsRetired + _margin)
        {
            _follower.FirstTimerLook = target - _margin;
            f->TimerDeadline = 1;
            do
                reason = _follower.EnterOnce();
            while (reason == ExitReason.Timer && f->InstructionsRetired < target - _margin && _differences.Count == 0);
            f->TimerDeadline = 0;
        }
        f->HostSingleStep = 1;
        int lingering = 0;
        while (reason is ExitReason.None or ExitReason.Timer or ExitReason.SingleStep && _differences.Count == 0)
        {
            if (f->InstructionsRetired > target)
                break;
            if (f->InstructionsRetired == target)
            {
                if (anywhere && f->Rip == l->Rip && (l->BetweenIterations == 0 || f->Gpr[1] == l->Gpr[1]))
                    break;
                // Events, and iterations of a repeated instruction, count for none.
                if (l->BetweenIterations == 0 && ++lingering > 10_000)
                    break;
            }
            reason = _watching ? EnterWatched() : _follower.EnterOnce();
        }
        f->HostSingleStep = step;
        _follower.AbandonInstruction();
        if (!anywhere)
            StateComparer.CompareExits(_leader.Exit, _follower.Exit, _differences);
        else if (reason is not (ExitReason.None or ExitReason.Timer or ExitReason.SingleStep))
            Differ($"exit: translated none, interpreted {reason}");
        if (_nextInput != _inputs.Count)
            Differ($"clock and random numbers read: translated {_inputs.Count}, interpreted {_nextInput}");
    }

    /// <summary>Pages hold what the follower has made of them, the copies what the leader has, or before it nobody. The leader's stays.</summary>
    private void CompareMemory()
    {
        PagesCompared += (ulong)_journal.Count;
        for (int i = 0; i < _journal.Count; i++)
        {
            ulong* interpreted = (ulong*)_journal[i], translated = (ulong*)_journal.AfterFirst(i);
            if (new Span<ulong>(interpreted, 512).SequenceEqual(new Span<ulong>(translated, 512)))
                continue;
            for (int n = 0; n < 512; n++)
                if (interpreted[n] != translated[n])
                    _differences.Add(new Difference($"memory at {(ulong)(interpreted + n):x}: translated {translated[n]:x}, interpreted {interpreted[n]:x}",
                        translated[n] ^ interpreted[n]));
        }
    }

    /// <summary>
    /// Repeats a stay whose results differ, in pieces as short as translated code allows, until one of them differs, and says all about that one.
    /// </summary>
    private string Narrow(ExitReason reason)
    {
        StringWriter text = new();
        CpuState* l = _leader.State;
        ulong target = l->InstructionsRetired;
        text.WriteLine($"stay {Stays}, {target - _start->InstructionsRetired} instructions from {_start->Rip:x}, left with {reason}:");
        Write(text, _differences);
        _journal.Rewind();
        Load(_leader, _start);
        _given = [.. _inputs];
        _repeating = true;
        _differences.Clear();
        for (int pieces = 1; l->InstructionsRetired < target && _differences.Count == 0; pieces++)
        {
            l->TimerDeadline = 1;
            _leader.FirstTimerLook = l->InstructionsRetired + 1;
            if (Both() != ExitReason.Timer)
                break;
            if (_differences.Count == 0)
                continue;
            text.WriteLine($"piece {pieces}, {l->InstructionsRetired - _start->InstructionsRetired} instructions from {_start->Rip:x}:");
            Write(text, _differences);
            break;
        }
        if (_differences.Count == 0)
            text.WriteLine("in pieces it does not differ");
        WriteStart(text);
        _journal.Rewind();
        WriteTrace(text);
        WriteRegion(text);
        return text.ToString();
    }

    private static void Write(StringWriter text, List<Difference> differences)
    {
        foreach (Difference d in differences.Take(40))
            text.WriteLine("  " + d.Text);
    }

    private void WriteStart(StringWriter text)
    {
        text.WriteLine($"it begins with rflags {Flags.Get(_start):x}, mxcsr {_start->Mxcsr:x}");
        for (int i = 0; i < 16; i++)
            text.Write($"  {StateComparer.Name(i)} {_start->Gpr[i]:x}{(i % 4 == 3 ? "\n" : "")}");
    }

    /// <summary>What the interpreter executes from the start, instruction by instruction.</summary>
    private void WriteTrace(StringWriter text)
    {
        text.WriteLine("the interpreter executes");
        Load(_follower, _start);
        CpuState* f = _follower.State;
        NasmFormatter formatter = new();
        StringOutput output = new();
        byte[] bytes = new byte[15];
        f->HostSingleStep = 1;
        _following = true;
        _nextInput = 0;
        for (int i = 0; i < 300 && f->InstructionsRetired < _leader.State->InstructionsRetired; i++)
        {
            Read(f->Rip, bytes);
            Decoder decoder = Decoder.Create(64, bytes, f->Rip);
            formatter.Format(decoder.Decode(), output);
            text.WriteLine($"  {f->Rip:x}  {output.ToStringAndReset()}");
            if (_follower.EnterOnce() != ExitReason.SingleStep)
                break;
        }
    }

    /// <summary>Bytes of guest memory; what cannot be read is 0.</summary>
    private void Read(ulong linear, byte[] bytes)
    {
        for (int i = 0; i < bytes.Length; i++)
            bytes[i] = HostOf(linear + (ulong)i) is var host && host != null ? *host : (byte)0;
    }

    private byte* HostOf(ulong linear)
    {
        byte* page = _follower.TranslateGva(linear, out ulong gpa, out _, out _) ? _follower.Paging.PeekNested(_follower.State, gpa) : null;
        return page == null ? null : page + (gpa & 0xfff);
    }

    /// <summary>The region that the leader makes of the block where it began.</summary>
    private void WriteRegion(StringWriter text)
    {
        byte* host = HostOf(_start->Rip);
        Block* block = host == null ? null : _leader.Machine.Blocks.Find(host, CpuMode.CodeMode(_leader.State), null);
        if (block == null)
            return;
        RegionBuilder builder = new(_leader.Machine.Blocks, _leader.Identity) { IsObserved = true };
        text.WriteLine(builder.Build(block, _start->Rip) ? builder.Dump() : "its block is not translated");
    }
}

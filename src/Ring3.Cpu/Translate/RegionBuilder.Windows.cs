using System.Diagnostics;
using System.Runtime.InteropServices;
using Iced.Intel;

namespace Ring3.Cpu;

// Windows: accesses of a trace whose addresses differ by constants are checked once, by the first of them.
// SAFETY: the check covers every byte of the window, in one page, with the strongest permission that any of its accesses needs; nothing that calls back lies
// between it and them, because whoever calls back goes on in the narrow copy of the trace, which checks each access.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Windows that are open at the same time: each has two slots on the host's stack (<see cref="RegionRoutines"/>).</summary>
    private const int MaxWindows = ProcessorMemory.Slots / 2;

    private const int MaxWindowBytes = 256;
    private const long MaxOffset = 1 << 24;

    /// <summary>What an address is made of besides a constant: values that registers had, by number.</summary>
    private readonly record struct WindowKey(int Base, int Index, int Scale, Register Segment);

    private sealed class Window
    {
        public WindowKey Key;
        public int Slot, Number;
        /// <summary>The last instruction that uses it.</summary>
        public int Last;
        /// <summary>The bytes, as constants to be added to what the key stands for.</summary>
        public long Min, End;
        /// <summary>Multiple at which the byte <see cref="Aligned"/> must be when executed; 0: any.</summary>
        public int Alignment;
        public long Aligned;
        public bool Writes;
        public int Accesses;
        /// <summary>Emission: its check has been emitted.</summary>
        public bool IsOpen;
    }

    /// <summary>Of the trace at hand, the first <see cref="_windowCount"/>; the others are used again.</summary>
    private readonly List<Window> _windows = [];
    private int _windowCount;
    private readonly Window?[] _openWindows = new Window?[MaxWindows];
    private readonly (int Root, long Offset)[] _values = new (int, long)[16];
    private int _nextRoot;

    /// <summary>The copy of the trace with windows is being emitted.</summary>
    private bool _wide;
    /// <summary>The window whose host address is in <see cref="HostRegisters.Address"/>.</summary>
    private Window? _atHand;
    /// <summary>Jumps of the wide copy, and sites that go on, to instructions of the narrow one.</summary>
    private readonly List<(int Jump, int Instruction, bool Unpacked)> _narrowJumps = [];
    private readonly List<(int Site, int Instruction)> _narrowResumes = [];
    /// <summary>By instruction of the narrow copy: whether these lead to it, and where the flags are then by the wide one's account.</summary>
    private readonly (bool IsStart, Recipe Flags)[] _narrowStarts = new (bool, Recipe)[MaxInstructions];
    /// <summary>The first of them, and how many jumps and sites the narrow copy has come to, which are in the order of instructions.</summary>
    private int _narrowFirst = int.MaxValue, _narrowJumpsDone, _narrowResumesDone;

    /// <summary>
    /// By instruction, and for what follows the last one: the place in the wide copy, or -1, where no window is open that is used from there on. The narrow
    /// copy ends at it, and calls back come back to it.
    /// </summary>
    private readonly (int Position, bool HostFlags, Recipe Flags)[] _joins = new (int, bool, Recipe)[MaxInstructions + 1];

    // ---- Which accesses belong together ----

    /// <summary>Finds the windows of a trace. False: there are none.</summary>
    private bool PlanWindows(Trace t)
    {
        _windowCount = 0;
        Array.Clear(_openWindows);
        for (int n = 0; n < 16; n++)
            _values[n] = (n, 0);
        _nextRoot = 16;
        Span<GuestInstruction> all = CollectionsMarshal.AsSpan(t.Instructions);
        for (int i = 0; i < all.Length; i++)
        {
            ref GuestInstruction g = ref all[i];
            g.Window = -1;
            if (EndsWindows(g.Lowering))
                Array.Clear(_openWindows);
            else if (KeyOf(g, out WindowKey key, out long offset))
                Join(i, ref g, key, offset);
            Track(g);
        }
        int last = -1;
        Span<Window> windows = CollectionsMarshal.AsSpan(_windows)[.._windowCount];
        for (int i = 0; i < all.Length; i++)
        {
            ref GuestInstruction g = ref all[i];
            g.InWindow = i <= last;
            if (g.Window < 0)
                continue;
            Window w = windows[g.Window];
            if (w.Accesses == 1)
                g.Window = -1;
            else
                last = Math.Max(last, w.Last);
        }
        foreach (Window w in windows)
            Align(w);
        return last >= 0;
    }

    /// <summary>Handlers may change what addresses lead to.</summary>
    private static bool EndsWindows(Lowering lowering) => (1 << (int)lowering & KeepWindows) == 0;

    private const int KeepWindows = 1 << (int)Lowering.Plain | 1 << (int)Lowering.Vector | 1 << (int)Lowering.Push | 1 << (int)Lowering.Pop
        | 1 << (int)Lowering.Leave | 1 << (int)Lowering.Branch | 1 << (int)Lowering.Jump | 1 << (int)Lowering.Nothing;

    private bool KeyOf(in GuestInstruction g, out WindowKey key, out long offset)
    {
        (key, offset) = (default, 0);
        if (!g.SiteBefore || _segmented)
            return false;
        ref readonly Instruction i = ref g.Code;
        if (g.Lowering is not (Lowering.Plain or Lowering.Vector) || i.HasLockPrefix
            || i.Mnemonic is Mnemonic.Xchg or Mnemonic.Cmpxchg8b or Mnemonic.Cmpxchg16b)
            return false;
        if (g.Lowering == Lowering.Vector && NotesEveryX87 && VectorRules.IsNoted(i.Code))
            return false;
        Register segment = i.MemorySegment is Register.FS or Register.GS ? i.MemorySegment : Register.None;
        if (i.MemoryBase == Register.RIP)
        {
            key = new WindowKey(-2, -1, 1, segment);
            offset = (long)i.MemoryDisplacement64;
            return true;
        }
        if (i.MemoryBase == Register.None || i.MemoryBase.GetSize() != _word
            || i.MemoryIndex != Register.None && (!i.MemoryIndex.IsGPR() || i.MemoryIndex.GetSize() != _word))
            return false;
        (int b, offset) = _values[Guest(i.MemoryBase)];
        int x = -1, scale = 1;
        if (i.MemoryIndex != Register.None)
        {
            (x, long index) = _values[Guest(i.MemoryIndex)];
            scale = i.MemoryIndexScale;
            offset += index * scale;
        }
        offset += (int)i.MemoryDisplacement64;
        key = new WindowKey(b, x, scale, segment);
        return Math.Abs(offset) < 16 * MaxOffset + int.MaxValue;
    }

    private void Join(int i, ref GuestInstruction g, in WindowKey key, long offset)
    {
        int size = g.Code.MemorySize.GetSize();
        int alignment = g.Lowering == Lowering.Vector && VectorRules.MustBeAligned(g.Code) ? size : 0;
        g.WindowOffset = offset;
        int slot = -1, oldest = 0;
        for (int n = 0; n < MaxWindows; n++)
        {
            if (_openWindows[n] is not { } w)
            {
                slot = n;
                continue;
            }
            if (w.Key == key)
            {
                long min = Math.Min(w.Min, offset), end = Math.Max(w.End, offset + size);
                bool fits = alignment == 0 || w.Alignment == 0 || w.Alignment == alignment && (offset - w.Aligned) % alignment == 0;
                if (end - min <= MaxWindowBytes && fits)
                {
                    if (alignment != 0)
                        (w.Alignment, w.Aligned) = (alignment, offset);
                    (w.Min, w.End) = (min, end);
                    w.Writes |= g.SiteAfter;
                    w.Accesses++;
                    w.Last = i;
                    g.Window = w.Number;
                    return;
                }
                slot = n;
                break;
            }
            if (_openWindows[oldest] is { } o && o.Number > w.Number)
                oldest = n;
        }
        if (slot < 0)
            slot = oldest;
        if (_windowCount == _windows.Count)
            _windows.Add(new Window());
        Window made = _windows[_windowCount];
        (made.Key, made.Slot, made.Number) = (key, slot, _windowCount++);
        (made.Min, made.End, made.Alignment, made.Aligned) = (offset, offset + size, alignment, offset);
        (made.Writes, made.Accesses, made.IsOpen) = (g.SiteAfter, 1, false);
        _openWindows[slot] = made;
        g.Window = made.Number;
    }

    /// <summary>Makes room so that <see cref="Window.Min"/> is what has to be aligned, and the end too.</summary>
    private static void Align(Window w)
    {
        if (w.Alignment == 0)
            return;
        w.Min -= Modulo(w.Min - w.Aligned, w.Alignment);
        w.End += Modulo(w.Min - w.End, w.Alignment);
    }

    private static long Modulo(long x, int n) => (x % n + n) % n;

    /// <summary>What is known of the registers behind an instruction.</summary>
    private void Track(in GuestInstruction g)
    {
        ref readonly Instruction i = ref g.Code;
        const int Rbp = 5;
        switch (g.Lowering)
        {
            case Lowering.Push:
                Move(Rsp, Rsp, -_word);
                return;
            case Lowering.Pop:
                Move(Rsp, Rsp, _word);
                Forget(Guest(i.Op0Register));
                return;
            case Lowering.Leave:
                Move(Rsp, Rbp, _word);
                Forget(Rbp);
                return;
            case Lowering.Plain:
                // Additions go round at the width of addresses, as these do. Where that is 32 bits, the codes are the ones before those of 64.
                switch (Is64 ? i.Code : i.Code + 1)
                {
                    case Code.Add_rm64_imm8 or Code.Add_rm64_imm32 or Code.Add_RAX_imm32 when !g.SiteBefore:
                        Move(Guest(i.Op0Register), Guest(i.Op0Register), (int)i.GetImmediate(1));
                        return;
                    case Code.Sub_rm64_imm8 or Code.Sub_rm64_imm32 or Code.Sub_RAX_imm32 when !g.SiteBefore:
                        Move(Guest(i.Op0Register), Guest(i.Op0Register), -(int)i.GetImmediate(1));
                        return;
                    case Code.Inc_rm64 when !g.SiteBefore:
                        Move(Guest(i.Op0Register), Guest(i.Op0Register), 1);
                        return;
                    case Code.Dec_rm64 when !g.SiteBefore:
                        Move(Guest(i.Op0Register), Guest(i.Op0Register), -1);
                        return;
                    case Code.Mov_r64_rm64 or Code.Mov_rm64_r64 when !g.SiteBefore:
                        Move(Guest(i.Op0Register), Guest(i.Op1Register), 0);
                        return;
                    case Code.Lea_r64_m when i.MemoryIndex == Register.None && i.MemoryBase.IsGPR() && i.MemoryBase.GetSize() == _word:
                        Move(Guest(i.Op0Register), Guest(i.MemoryBase), (int)i.MemoryDisplacement64);
                        return;
                }
                break;
        }
        for (int left = EndsWindows(g.Lowering) ? ushort.MaxValue : g.Writes; left != 0; left &= left - 1)
            Forget(int.TrailingZeroCount(left));
    }

    private void Move(int to, int from, long by)
    {
        (int root, long offset) = _values[from];
        if (Math.Abs(offset + by) < MaxOffset)
            _values[to] = (root, offset + by);
        else
            Forget(to);
    }

    private void Forget(int register) => _values[register] = (_nextRoot++, 0);

    // ---- Emission ----

    /// <summary>
    /// The instructions from <paramref name="first"/> on, and the edge behind them. In the narrow copy, up to where it goes on in the wide one, which is what
    /// it returns.
    /// </summary>
    private int EmitInstructions(Trace t, int first, bool narrow)
    {
        int count = t.Instructions.Count;
        _atHand = null;
        for (int i = first; i < count; i++)
        {
            if (_wide)
                NoteJoin(i, At(t, i).InWindow);
            else if (narrow && i != first && Joins(i))
                return i;
            if (narrow && _narrowStarts[i].IsStart)
            {
                PackNow();
                Debug.Assert(_narrowStarts[i].Flags == _flags);
                _hostFlags = false;
                StartNarrow(i);
            }
            if (RunAt(t, i) is > 1 and var run)
            {
                Mark(t, i);
                _atHand = null;
                PackNow();
                EmitRun(t, i, run);
                for (; run > 1; run--)
                    _joins[++i].Position = -1;
                continue;
            }
            EmitInstruction(t, i);
        }
        if (t.FallOffset < 0)
            return count;
        if (_wide)
            NoteJoin(count, false);
        else if (narrow && Joins(count))
            return count;
        EmitEdge(t, t.FallOffset, t.Fall, count);
        return count;
    }

    private void NoteJoin(int i, bool inWindow)
    {
        if (inWindow || _inShadow)
            _joins[i].Position = -1;
        else
            _joins[i] = (_a.Position, _hostFlags, _flags);
    }

    /// <summary>The narrow copy goes on in the wide one, where the flags are expected where they are.</summary>
    private bool Joins(int i)
    {
        ref readonly (int Position, bool HostFlags, Recipe Flags) join = ref _joins[i];
        if (join.Position < 0 || _flags != join.Flags)
            return false;
        if (join.HostFlags && !_hostFlags)
        {
            // No place has them, so they are not wanted.
            if (_flags == default)
                return false;
            NeedHostFlags(HostRegisters.Spare);
        }
        // In the wide copy they may not be packed: then they are in the host's on both sides.
        PackNow();
        _a.Bind(_a.Jump(), join.Position);
        return true;
    }

    /// <summary>Behind the wide copy: the narrow one, from each instruction that something leads to.</summary>
    private void EmitNarrow(Trace t)
    {
        _wide = false;
        _unpacked = false;
        foreach (ref (int Jump, int Instruction, bool Unpacked) from in CollectionsMarshal.AsSpan(_narrowJumps))
        {
            if (!from.Unpacked)
                continue;
            _a.Bind(from.Jump);
            Pack();
            from.Jump = _a.Jump();
        }
        (_narrowJumpsDone, _narrowResumesDone) = (0, 0);
        for (int i = _narrowFirst; i < t.Instructions.Count; i++)
        {
            if (!_narrowStarts[i].IsStart)
                continue;
            _flags = _narrowStarts[i].Flags;
            _hostFlags = _unpacked = false;
            // Where it ends, it may begin.
            i = EmitInstructions(t, i, true) - 1;
        }
        Debug.Assert(_narrowJumpsDone == _narrowJumps.Count && _narrowResumesDone == _narrowResumes.Count);
        ForgetNarrow();
    }

    private void ForgetNarrow()
    {
        foreach ((_, int instruction, _) in _narrowJumps)
            _narrowStarts[instruction].IsStart = false;
        foreach ((_, int instruction) in _narrowResumes)
            _narrowStarts[instruction].IsStart = false;
        _narrowFirst = int.MaxValue;
        _narrowJumps.Clear();
        _narrowResumes.Clear();
    }

    private void StartNarrow(int i)
    {
        for (; _narrowJumpsDone < _narrowJumps.Count && _narrowJumps[_narrowJumpsDone].Instruction == i; _narrowJumpsDone++)
            _a.Bind(_narrowJumps[_narrowJumpsDone].Jump);
        for (; _narrowResumesDone < _narrowResumes.Count && _narrowResumes[_narrowResumesDone].Instruction == i; _narrowResumesDone++)
            _resumes.Add((_narrowResumes[_narrowResumesDone].Site, _a.Position));
    }

    private void StartsNarrow(int i)
    {
        _narrowStarts[i] = (true, _flags);
        _narrowFirst = Math.Min(_narrowFirst, i);
    }

    /// <summary>
    /// The window of the instruction's access if that is checked by it. The host's address of its first byte is in <see cref="HostRegisters.Address"/> then.
    /// </summary>
    private Window? WindowOf(in GuestInstruction g) => _wide && !_inShadow && g.Window >= 0 ? _windows[g.Window] : null;

    /// <summary>Brings the window's host address into <see cref="HostRegisters.Address"/>; the first access makes the check, which costs the flags.</summary>
    private void EnterWindow(int i, in GuestInstruction g, Window w)
    {
        if (!w.IsOpen)
        {
            OpenWindow(i, g, w);
        }
        else if (_atHand != w)
        {
            _a.LoadSlot(HostRegisters.Address, 2 * w.Slot);
        }
        _atHand = w;
    }

    private void OpenWindow(int i, in GuestInstruction g, Window w)
    {
        const Register Address = HostRegisters.Address, Spare = HostRegisters.Spare;
        w.IsOpen = true;
        Instruction code = g.Code;
        code.MemoryDisplacement64 = (ulong)((long)code.MemoryDisplacement64 + w.Min - g.WindowOffset);
        EmitAddress(code, Address, true);
        BeginCheck((int)(w.End - w.Min), w.Writes, w.Alignment);
        ToNarrow(_a.Jump(NotEqual), i);
        if (w.Writes)
        {
            _a.WithEntry(HostOperation.Move, Spare, CodeBitsOffset);
            _a.CompareWithZero(Spare, 0, true);
            ToNarrow(_a.Jump(NotEqual), i);
            _a.StoreSlot(2 * w.Slot + 1, Spare);
        }
        _a.WithEntry(HostOperation.Add, Address, AddendOffset);
        _a.StoreSlot(2 * w.Slot, Address);
        _hostFlags = false;
    }

    /// <summary>The instruction accesses its place in the window. A fault continues at the narrow copy's instruction.</summary>
    private void AddInWindow(int i, in GuestInstruction g, Window w, ref Instruction code)
    {
        long displacement = g.WindowOffset - w.Min;
        code.MemoryDisplacement64 = (ulong)displacement;
        code.MemoryDisplSize = displacement == 0 ? 0 : displacement < 128 ? 1 : 8;
        ToNarrow(_a.Nop(), i);
        _a.Add(code);
    }

    private void ToNarrow(int jump, int i)
    {
        _narrowJumps.Add((jump, i, _unpacked));
        StartsNarrow(i);
    }

    /// <summary>Whether windows may be open in front of an instruction of the wide copy that are used there or behind.</summary>
    private bool IsNarrow(int instruction, Trace t) =>
        _wide && !_inShadow && instruction < t.Instructions.Count && At(t, instruction).InWindow;

    /// <summary>Where a call back at a site goes on that says so: where windows may be open, in the narrow copy.</summary>
    private void Resume(int site, int instruction, Trace t)
    {
        if (IsNarrow(instruction, t))
        {
            _narrowResumes.Add((site, instruction));
            StartsNarrow(instruction);
        }
        else
        {
            _resumes.Add((site, _a.Position));
        }
    }

    /// <summary>Behind a store into a window, whose page held no code when the window was opened: as <see cref="EmitCodeCheck"/>.</summary>
    private void EmitWindowCodeCheck(Trace t, int i, Window w, int size)
    {
        _a.LoadSlot(HostRegisters.Spare, 2 * w.Slot + 1);
        int jump;
        if (_unpacked)
        {
            // The only test that changes no flag is RCX's.
            _a.Move(HostRegisters.Entry, Register.RCX);
            _a.LoadFrom(Register.RCX, HostRegisters.Spare);
            jump = _a.JumpUnlessCountIsZero();
            _a.Move(Register.RCX, HostRegisters.Entry);
        }
        else
        {
            _a.CompareWithZero(HostRegisters.Spare, 0, true);
            jump = _a.Jump(NotEqual);
            _hostFlags = false;
        }
        ref Site site = ref NewSite(SiteKind.Overwritten, t, i, out int number);
        (site.Size, site.PageOffset, site.WindowOffset) = ((byte)size, At(t, i).Next, (short)(At(t, i).WindowOffset - w.Min));
        site.Uncount--;
        if (!_unpacked)
        {
            _stubs.Add((jump, number));
            Resume(number, i + 1, t);
            return;
        }
        bool narrow = IsNarrow(i + 1, t);
        _packingStubs.Add((jump, number, narrow ? -1 : _a.Position));
        if (narrow)
            Resume(number, i + 1, t);
    }

    /// <summary>
    /// Stores into windows that have come to hold code, behind which the flags are to be packed, and the guest's RCX is in another register; and where the
    /// wide copy goes on with the host's flags, or -1.
    /// </summary>
    private readonly List<(int Jump, int Site, int Back)> _packingStubs = [];

    private void EmitPackingStubs()
    {
        foreach ((int jump, int site, int back) in _packingStubs)
        {
            _a.Bind(jump);
            _a.Move(Register.RCX, HostRegisters.Entry);
            Pack();
            CallSite(site);
            if (back < 0)
                continue;
            _resumes.Add((site, _a.Position));
            Unpack(HostRegisters.Spare);
            _a.Bind(_a.Jump(), back);
        }
    }
}

using System.Runtime.InteropServices;
using Iced.Intel;

namespace Ring3.Cpu;

// Instructions that stay themselves, with other registers.
// SAFETY: re-encodes decoded instructions with other registers; no guest pointer is followed while building.
internal sealed unsafe partial class RegionBuilder
{
    private readonly record struct Passing(Register Scratch, int Guest, bool Load, bool Store);

    private readonly List<Passing> _passing = [];

    private void EmitPlain(Trace t, int i, in GuestInstruction g)
    {
        Instruction code = g.Code;
        bool memory = g.Memory;
        bool store = g.SiteAfter, needsFlags = g.ReadsFlags || g.KeepsFlags && g.FlagsNeeded;
        // The check of an access costs the flags: an operand that is only read is loaded before they are brought back.
        bool loadFirst = memory && (needsFlags || g.ValueFirst) && !store;
        Window? window = memory ? WindowOf(g) : null;
        if (window is not null && !(g.ValueFirst ? Assign(ref code, true, false, true) : Assign(ref code, true, true, false)))
            (window, code) = (null, g.Code);
        if (window is null && !Assign(ref code, memory, store, loadFirst))
        {
            EmitHandler(t, i);
            return;
        }
        if (LosesUnpacked(g, memory, window))
            PackNow();
        if (window is not null)
        {
            EnterWindow(i, g, window);
            if (needsFlags)
                NeedHostFlags(HostRegisters.Spare);
            if (g.ValueFirst)
            {
                AddByValue(i, g, window, -1, ref code);
            }
            else
            {
                LoadPassing();
                AddInWindow(i, g, window, ref code);
            }
        }
        else if (!memory)
        {
            if (needsFlags || code.Mnemonic == Mnemonic.Lea || _passing.Count > 2)
                _atHand = null;
            if (needsFlags)
                NeedHostFlags(HostRegisters.Address);
            if (code.Mnemonic == Mnemonic.Lea)
            {
                EmitLea(g.Code, code.Op0Register);
            }
            else
            {
                UseStateOperand(g, ref code);
                LoadPassing();
                if (IsShift(g))
                    _a.Store(StateLayout.CcA, code.Op0Register.GetFullRegister());
                _a.Add(code);
            }
        }
        else
        {
            _atHand = null;
            EmitAccess(t, i, ref code, store, needsFlags);
        }
        KeepValues(g, code);
        StorePassing();
        if (g.WritesFlags)
            Produced(g, !store || window is not null);
        if (store && window is not null)
            EmitWindowCodeCheck(t, i, window, g.Code.MemorySize.GetSize());
        else if (store)
            EmitCodeCheck(t, i, code.MemorySize.GetSize(), g.Next);
        else if (memory && window is null && !g.WritesFlags && !loadFirst)
            _hostFlags = false;
    }

    /// <summary>
    /// The access costs the flags: its check does, or the instruction itself, in front of a store of its result that may fault.
    /// </summary>
    private static bool LosesUnpacked(in GuestInstruction g, bool memory, Window? window) =>
        memory && (window is not { IsOpen: true } || g.ValueFirst && g.SiteAfter);

    private static void OperandInRegister(ref Instruction code, Register value)
    {
        for (int n = 0; n < code.OpCount; n++)
        {
            if (code.GetOpKind(n) != Iced.Intel.OpKind.Memory)
                continue;
            code.SetOpKind(n, Iced.Intel.OpKind.Register);
            code.SetOpRegister(n, value);
        }
        code.MemoryBase = Register.None;
    }

    private static bool IsShift(in GuestInstruction g) =>
        g.Plan == FlagPlan.Recipe && g.Recipe.Kind is FlagKind.ShiftLeft or FlagKind.ShiftRight or FlagKind.ShiftRightSigned;

    /// <summary>What the recipe cannot find in guest registers, into the state. Changes no flag.</summary>
    private void KeepValues(in GuestInstruction g, in Instruction code)
    {
        if (g.Plan != FlagPlan.Recipe)
            return;
        if (g.Recipe.A == InState && !IsShift(g))
            _a.Store(StateLayout.CcA, code.Op0Register.GetFullRegister());
        if (g.Recipe.B == InState)
            _a.Store(StateLayout.CcB, code.Op1Register.GetFullRegister());
    }

    /// <summary>
    /// The instruction with its operand in the spare register, where the recipe of its flags finds it: loaded before, and stored behind it when it is
    /// modified. The accesses are in the window, or at the checked address with faults that continue at the site.
    /// </summary>
    private void AddByValue(int i, in GuestInstruction g, Window? window, int site, ref Instruction code)
    {
        int size = code.MemorySize.GetSize();
        Register value = HostRegisters.Sized(HostRegisters.Spare, size);
        if (window is not null)
        {
            Instruction load = LoadOf(size);
            AddInWindow(i, g, window, ref load);
        }
        else
        {
            _a.Add(LoadOf(size));
        }
        LoadPassing();
        OperandInRegister(ref code, value);
        _a.Add(code);
        if (!g.SiteAfter)
            return;
        Code move = size switch { 1 => Code.Mov_rm8_r8, 2 => Code.Mov_rm16_r16, 4 => Code.Mov_rm32_r32, _ => Code.Mov_rm64_r64 };
        Instruction store = Instruction.Create(move, new MemoryOperand(HostRegisters.Address), value);
        if (window is not null)
        {
            AddInWindow(i, g, window, ref store);
        }
        else
        {
            FaultsTo(site);
            _a.Add(store);
        }
    }

    private void EmitAccess(Trace t, int i, ref Instruction code, bool store, bool needsFlags)
    {
        int size = code.MemorySize.GetSize();
        int site = MissSite(t, i, AccessForm.Operand, size, store, Alignment(code));
        EmitAddress(At(t, i).Code, HostRegisters.Address, true);
        if (code.HasLockPrefix || code.Mnemonic is Mnemonic.Xchg or Mnemonic.Cmpxchg8b)
            EmitSplitCheck(t, i, size);
        bool maySplit = !store || code.Mnemonic == Mnemonic.Mov;
        if (At(t, i).ValueFirst)
        {
            BeginCheck(size, store);
            EndCheck(site);
            if (maySplit)
                MaySplit(site);
            AddByValue(i, At(t, i), null, site, ref code);
            return;
        }
        if (needsFlags && store)
        {
            BeginCheck(size, store, Alignment(code));
            EndCheck(site);
            if (maySplit)
                MaySplit(site);
            _hostFlags = false;
            NeedHostFlags(HostRegisters.Spare);
            LoadPassing();
            FaultsTo(site);
            _a.Add(code);
            return;
        }
        if (needsFlags)
        {
            EmitCheck(size, store, site);
            if (maySplit)
                MaySplit(site);
            EmitLoad(size);
            _hostFlags = false;
            NeedHostFlags(HostRegisters.Address);
            LoadPassing();
            OperandInRegister(ref code, HostRegisters.Sized(HostRegisters.Spare, size));
            _a.Add(code);
            return;
        }
        BeginCheck(size, store, Alignment(code));
        LoadPassing();
        EndCheck(site);
        if (maySplit)
            MaySplit(site);
        _a.Add(code);
    }

    private static int Alignment(in Instruction code) => code.Mnemonic == Mnemonic.Cmpxchg16b ? 16 : 0;

    /// <summary>The checked operand into the spare register. Changes no flag.</summary>
    private void EmitLoad(int size) => _a.Add(LoadOf(size));

    private static Instruction LoadOf(int size)
    {
        Code load = size switch { 1 => Code.Movzx_r32_rm8, 2 => Code.Movzx_r32_rm16, 4 => Code.Mov_r32_rm32, _ => Code.Mov_r64_rm64 };
        return Instruction.Create(load, HostRegisters.Sized(HostRegisters.Spare, size == 8 ? 8 : 4), new MemoryOperand(HostRegisters.Address));
    }

    /// <summary>
    /// The next instruction accesses memory that was checked some instructions ago: a fault continues at the site's stub
    /// (<see cref="Ring3.Host.ThunkKind.Run"/>).
    /// </summary>
    private void FaultsTo(int site) => _stubs.Add((_a.Nop(), site));

    /// <summary>Locked accesses that cross a cache line are the interpreter's.</summary>
    private void EmitSplitCheck(Trace t, int i, int size)
    {
        if (size == 1)
            return;
        Register spare = HostRegisters.Sized(HostRegisters.Spare, 4);
        _a.Add(Instruction.Create(Code.Mov_r32_rm32, spare, HostRegisters.Sized(HostRegisters.Address, 4)));
        _a.Add(Instruction.Create(Code.And_rm32_imm8, spare, 63));
        _a.Add(Instruction.Create(Code.Cmp_rm32_imm8, spare, 64 - size));
        _stubs.Add((_a.Jump(Above), AddSite(SiteAt(SiteKind.Leave, t, i))));
    }

    private void EmitLea(in Instruction i, Register destination)
    {
        Register full = destination.GetFullRegister();
        // A base without a home would be loaded over an index.
        bool direct = i.MemoryBase == Register.None || !i.MemoryBase.IsGPR() || HostRegisters.HomeOf(Guest(i.MemoryBase)) != Register.None;
        Register to = direct && destination.GetSize() >= 4 ? full : HostRegisters.Address;
        EmitAddress(i, to, false, cut: destination.GetSize() == 4);
        switch (destination.GetSize())
        {
            case 8 or 4:
                if (to != full)
                    _a.Move(full, to);
                break;
            default:
                LoadPassing();
                _a.Add(Instruction.Create(Code.Mov_r16_rm16, HostRegisters.Sized(full, 2), HostRegisters.Sized(HostRegisters.Address, 2)));
                break;
        }
    }

    private void LoadPassing()
    {
        foreach (ref readonly Passing p in CollectionsMarshal.AsSpan(_passing))
            if (p.Load)
                _a.Load(p.Scratch, StateLayout.Gpr(p.Guest));
    }

    private void StorePassing()
    {
        foreach (ref readonly Passing p in CollectionsMarshal.AsSpan(_passing))
            if (p.Store)
                _a.Store(StateLayout.Gpr(p.Guest), p.Scratch);
    }

    /// <summary>
    /// Gives every register operand its host register, and the memory operand its address register. False: there are too few scratch registers.
    /// </summary>
    private bool Assign(ref Instruction code, bool memory, bool store, bool loadFirst)
    {
        ref readonly CodeFacts facts = ref CodeFacts.Of(code, _info);
        // RMW and loads: the entry register is needed until the access.
        ReadOnlySpan<Register> scratch = (memory, store, loadFirst) switch
        {
            (false, _, _) => [HostRegisters.Spare, HostRegisters.Entry, HostRegisters.Address],
            (true, true, _) => [HostRegisters.Spare],
            (true, false, true) => [HostRegisters.Entry, HostRegisters.Address],
            _ => [HostRegisters.Spare],
        };
        _passing.Clear();
        int taken = 0;
        int operands = code.OpCount;
        for (int n = 0; n < operands; n++)
        {
            if (code.GetOpKind(n) != Iced.Intel.OpKind.Register)
                continue;
            Register r = code.GetOpRegister(n);
            int guest = HostRegisters.NumberOf(r);
            if (guest < 0 || IsHigh(r))
                continue;
            Register home = HostRegisters.HomeOf(guest);
            if (home == Register.None)
            {
                bool writes = (facts.OperandWrites >> n & 1) != 0, reads = (facts.OperandReads >> n & 1) != 0 || r.GetSize() < 4;
                int known = _passing.Count - 1;
                while (known >= 0 && _passing[known].Guest != guest)
                    known--;
                if (known >= 0)
                {
                    Passing p = _passing[known];
                    home = p.Scratch;
                    _passing[known] = p with { Load = p.Load || reads, Store = p.Store || writes };
                }
                else
                {
                    if (taken == scratch.Length)
                        return false;
                    home = scratch[taken++];
                    _passing.Add(new Passing(home, guest, reads, writes));
                }
            }
            code.SetOpRegister(n, HostRegisters.Sized(home, r.GetSize()));
        }
        if (memory)
            AtCheckedAddress(ref code);
        return true;
    }

    /// <summary>The instruction's memory operand is the one whose address has been checked.</summary>
    private static void AtCheckedAddress(ref Instruction code)
    {
        code.MemoryBase = HostRegisters.Address;
        code.MemoryIndex = Register.None;
        code.MemoryIndexScale = 1;
        code.MemoryDisplacement64 = 0;
        code.MemoryDisplSize = 0;
        code.SegmentPrefix = Register.None;
    }
}

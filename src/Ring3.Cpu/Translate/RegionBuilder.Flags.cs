using System.Runtime.InteropServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

// Where the guest's status flags are between their producer and whoever can see them.
// SAFETY: looks blocks up within the epoch in which the region is built; writes only to the assembler.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>A recipe whose values are guest registers, values kept in the state (<see cref="InState"/>) or an immediate (<see cref="NoGuest"/>).</summary>
    internal readonly record struct Recipe(FlagKind Kind, byte Log2Size, byte A, byte B, ulong Immediate);

    /// <summary>In place of a register: the immediate; what the producer has left in <see cref="CpuState.CcA"/> or CcB.</summary>
    public const byte NoGuest = 255, InState = 254;

    /// <summary>The host's flags are the guest's.</summary>
    private bool _hostFlags;
    /// <summary>The place that sites name: Words is the state's CcKind.</summary>
    private Recipe _flags;
    /// <summary>
    /// The place is <see cref="CpuState.CcA"/>, packed, but the flags are only in the host's so far. Whoever costs these, or lets sites name the place, packs
    /// them first.
    /// </summary>
    private bool _unpacked;
    private static readonly Recipe s_state = new(FlagKind.Words, 0, NoGuest, NoGuest, 0), s_packed = new(FlagKind.Packed, 0, NoGuest, NoGuest, 0);

    private void Analyse()
    {
        // What can be seen of the flags at each head. Edges backward need them in any case, so each depends on later traces only.
        for (int i = _traces.Count - 1; i >= 0; i--)
            _traces[i].NeedsFlags = NeedBackwards(_traces[i]);
        foreach (Trace t in _traces)
        {
            Span<GuestInstruction> all = CollectionsMarshal.AsSpan(t.Instructions);
            for (int i = 0; i < all.Length; i++)
            {
                ref GuestInstruction g = ref all[i];
                if (!g.WritesFlags || g.Lowering is not (Lowering.Plain or Lowering.Vector or Lowering.Divide or Lowering.BitString))
                    continue;
                PlanFlags(t, i, ref g);
            }
        }
    }

    private static bool NeedBackwards(Trace t)
    {
        bool need = FallNeeds(t), survives = need;
        Span<GuestInstruction> all = CollectionsMarshal.AsSpan(t.Instructions);
        for (int i = all.Length - 1; i >= 0; i--)
        {
            ref GuestInstruction g = ref all[i];
            g.FlagsNeeded = need || g.SiteAfter;
            g.FlagsSurvive = survives || g.SiteAfter;
            bool edge = EdgeAtNeeds(t, g);
            need = g.Lowering == Lowering.Jump ? edge : NeedBefore(g);
            // As long as nothing touches the host's flags, a reader has them.
            survives = g.SiteBefore || edge || survives && !g.WritesFlags;
        }
        return need;
    }

    private static bool NeedBefore(in GuestInstruction g) => g.ReadsFlags || g.SiteBefore || (!g.WritesFlags || g.KeepsFlags) && g.FlagsNeeded;

    /// <summary>An edge that is taken at the instruction, and whether it polls on its way or needs the flags at its end.</summary>
    private static bool EdgeAtNeeds(Trace t, in GuestInstruction g)
    {
        if (g.Lowering is not (Lowering.Branch or Lowering.Jump))
            return false;
        return g.Target < 0 || t.Region[g.Target] is var head && (head.NeedsFlags || IsBackward(t, head));
    }

    private static bool IsBackward(Trace from, Trace to) => to.Index <= from.Index;

    private static bool FallNeeds(Trace t) => t.FallOffset >= 0 && (t.Fall is not { } head || head.NeedsFlags || IsBackward(t, head));

    private static void PlanFlags(Trace t, int i, ref GuestInstruction g)
    {
        g.Plan = FlagPlan.None;
        if (!g.FlagsSurvive)
            return;
        if (!HasRecipe(g, out Recipe r))
        {
            g.Plan = FlagPlan.Packed;
            return;
        }
        g.Plan = FlagPlan.Recipe;
        g.ValueFirst = g.Memory && (r.A == InState || r.B == InState);
        int lost = Lost(t, i, r);
        g.Recipe = r with { A = IsIn(lost, r.A) ? InState : r.A, B = IsIn(lost, r.B) ? InState : r.B };
    }

    private static bool IsIn(int registers, byte guest) => guest < 16 && (registers >> guest & 1) != 0;

    /// <summary>Which of the recipe's registers get other values while the flags can be seen, as a mask.</summary>
    private static int Lost(Trace t, int i, in Recipe r)
    {
        Span<GuestInstruction> all = CollectionsMarshal.AsSpan(t.Instructions);
        int used = (r.A < 16 ? 1 << r.A : 0) | (r.B < 16 ? 1 << r.B : 0), changed = 0, lost = 0;
        for (int j = i + 1; j < all.Length; j++)
        {
            ref GuestInstruction g = ref all[j];
            if (g.SiteBefore || EdgeAtNeeds(t, g) || g.ReadsFlags || g.KeepsFlags && g.FlagsNeeded)
                lost |= changed;
            if (g.WritesFlags && (!g.KeepsFlags || g.FlagsNeeded) || g.Lowering is Lowering.Handler or Lowering.HandlerEnds)
                return lost;
            changed |= g.Writes & used;
            // Calls and returns store the flags for where they go, behind the stack's change.
            if (g.SiteAfter || g.Lowering is Lowering.Call or Lowering.CallIndirect or Lowering.Return)
                lost |= changed;
        }
        return FallNeeds(t) ? lost | changed : lost;
    }

    /// <summary>How the flags follow from values after the instruction (before it, for shifts). Those that it finds in memory are kept in the state.</summary>
    private static bool HasRecipe(in GuestInstruction g, out Recipe recipe)
    {
        recipe = default;
        Instruction i = g.Code;
        FlagKind kind = KindOf(i.Mnemonic);
        if (kind == FlagKind.Words || g.KeepsFlags || i.Op0Kind == Iced.Intel.OpKind.Register && IsHigh(i.Op0Register))
            return false;
        bool memory = i.Op0Kind == Iced.Intel.OpKind.Memory;
        if (memory && g.SiteAfter && !IsModifiedInRegister(i))
            return false;
        byte size = (byte)int.Log2(memory ? i.MemorySize.GetSize() : i.Op0Register.GetSize()), a = memory ? InState : Guest(i.Op0Register);
        if (kind is FlagKind.Negate or FlagKind.Logic)
        {
            recipe = new Recipe(kind, size, a, NoGuest, 0);
            return true;
        }
        if (kind is FlagKind.ShiftLeft or FlagKind.ShiftRight or FlagKind.ShiftRightSigned)
        {
            if (memory || size < 2 || i.Op1Kind != Iced.Intel.OpKind.Immediate8)
                return false;
            recipe = new Recipe(kind, size, InState, NoGuest, i.GetImmediate(1) & (size == 3 ? 63u : 31u));
            return true;
        }
        byte b = NoGuest;
        ulong immediate = 0;
        if (i.Op1Kind == Iced.Intel.OpKind.Register)
        {
            if (IsHigh(i.Op1Register))
                return false;
            b = Guest(i.Op1Register);
        }
        else if (i.Op1Kind == Iced.Intel.OpKind.Memory)
        {
            b = InState;
        }
        else
        {
            immediate = i.GetImmediate(1);
        }
        if (a == b && kind is FlagKind.Add)
            return false;
        // Zero.
        recipe = a == b && kind is FlagKind.Subtract ? new Recipe(FlagKind.Logic, size, a, NoGuest, 0) : new Recipe(kind, size, a, b, immediate);
        return true;
    }

    private static FlagKind KindOf(Mnemonic mnemonic) => mnemonic switch
    {
        Mnemonic.Cmp => FlagKind.Compare,
        Mnemonic.Sub => FlagKind.Subtract,
        Mnemonic.Add => FlagKind.Add,
        Mnemonic.And or Mnemonic.Or or Mnemonic.Xor => FlagKind.Logic,
        Mnemonic.Test => FlagKind.Test,
        Mnemonic.Neg => FlagKind.Negate,
        Mnemonic.Shl or Mnemonic.Sal => FlagKind.ShiftLeft,
        Mnemonic.Shr => FlagKind.ShiftRight,
        Mnemonic.Sar => FlagKind.ShiftRightSigned,
        _ => FlagKind.Words,
    };

    /// <summary>A modified operand in memory may pass through a register: it is not locked, and the other operand needs no scratch register.</summary>
    private static bool IsModifiedInRegister(in Instruction i) =>
        !i.HasLockPrefix && (i.OpCount < 2 || i.Op1Kind != Iced.Intel.OpKind.Register || HostRegisters.HomeOf(Guest(i.Op1Register)) != Register.None);

    private static bool IsHigh(Register r) => r is >= Register.AH and <= Register.BH;

    private static byte Guest(Register r) => (byte)HostRegisters.NumberOf(r);

    // ---- Emission ----

    /// <summary>
    /// The instruction has left its flags in the host's. With <paramref name="later"/> they are not packed before something asks for that: nothing that costs
    /// them follows in this instruction.
    /// </summary>
    private void Produced(in GuestInstruction g, bool later = false)
    {
        _hostFlags = true;
        _unpacked = false;
        switch (g.Plan)
        {
            case FlagPlan.Recipe:
                _flags = g.Recipe;
                break;
            case FlagPlan.Packed:
                _unpacked = later && !_inShadow;
                if (!_unpacked)
                    Pack();
                _flags = s_packed;
                break;
            default:
                // Nothing names a place before the next producer.
                _flags = default;
                break;
        }
    }

    /// <summary>Makes the place that sites name true. Changes no flag; uses the spare register.</summary>
    private void PackNow()
    {
        if (_unpacked)
            Pack();
        _unpacked = false;
    }

    /// <summary>Host flags into CcA. Changes no flag.</summary>
    private void Pack()
    {
        _a.Move(HostRegisters.Spare, Register.RAX);
        _a.Add(Instruction.Create(Code.Lahf));
        _a.Add(Instruction.Create(Code.Seto_rm8, Register.AL));
        _a.Add(Instruction.Create(Code.Mov_rm16_r16, RegionAssembler.State(StateLayout.CcA), Register.AX));
        _a.Move(Register.RAX, HostRegisters.Spare);
    }

    /// <summary>Brings the guest's flags into the host's. Uses one scratch register.</summary>
    private void NeedHostFlags(Register scratch)
    {
        if (_hostFlags)
            return;
        switch (_flags.Kind)
        {
            case FlagKind.Words:
                _a.Add(Instruction.Create(Code.Call_rm64, RegionAssembler.State(StateLayout.FlagRoutine)));
                break;
            case FlagKind.Packed:
                Unpack(scratch);
                break;
            default:
                Recompute(scratch);
                break;
        }
        _hostFlags = true;
    }

    private void Unpack(Register scratch)
    {
        _a.Move(scratch, Register.RAX);
        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, Register.EAX, RegionAssembler.State(StateLayout.CcA)));
        _a.Add(Instruction.Create(Code.Add_rm8_imm8, Register.AL, 0x7f));
        _a.Add(Instruction.Create(Code.Sahf));
        _a.Move(Register.RAX, scratch);
    }

    private void Recompute(Register scratch)
    {
        int bytes = 1 << _flags.Log2Size;
        Register s = HostRegisters.Sized(scratch, bytes);
        int row = _flags.Log2Size;
        Code cmp = row switch { 0 => Code.Cmp_r8_rm8, 1 => Code.Cmp_r16_rm16, 2 => Code.Cmp_r32_rm32, _ => Code.Cmp_r64_rm64 };
        Code add = row switch { 0 => Code.Add_r8_rm8, 1 => Code.Add_r16_rm16, 2 => Code.Add_r32_rm32, _ => Code.Add_r64_rm64 };
        Code sub = row switch { 0 => Code.Sub_r8_rm8, 1 => Code.Sub_r16_rm16, 2 => Code.Sub_r32_rm32, _ => Code.Sub_r64_rm64 };
        Code neg = row switch { 0 => Code.Neg_rm8, 1 => Code.Neg_rm16, 2 => Code.Neg_rm32, _ => Code.Neg_rm64 };
        Code test = row switch { 0 => Code.Test_rm8_r8, 1 => Code.Test_rm16_r16, 2 => Code.Test_rm32_r32, _ => Code.Test_rm64_r64 };
        Register a = _flags.A == InState ? Register.None : HostRegisters.HomeOf(_flags.A);
        switch (_flags.Kind)
        {
            case FlagKind.Compare:
                WithB(cmp, InRegister(a, scratch, bytes));
                break;
            case FlagKind.Subtract:
                LoadA(scratch);
                WithB(add, s);
                WithB(cmp, s);
                break;
            case FlagKind.Add:
                LoadA(scratch);
                WithB(sub, s);
                WithB(add, s);
                break;
            case FlagKind.Negate:
                LoadA(scratch);
                _a.Add(Instruction.Create(neg, s));
                _a.Add(Instruction.Create(neg, s));
                break;
            case FlagKind.Logic:
                Register value = InRegister(a, scratch, bytes);
                _a.Add(Instruction.Create(test, value, value));
                break;
            case FlagKind.ShiftLeft:
                LoadA(scratch);
                _a.Add(Instruction.Create(bytes == 4 ? Code.Shl_rm32_imm8 : Code.Shl_rm64_imm8, s, (byte)_flags.Immediate));
                break;
            case FlagKind.ShiftRight:
                LoadA(scratch);
                _a.Add(Instruction.Create(bytes == 4 ? Code.Shr_rm32_imm8 : Code.Shr_rm64_imm8, s, (byte)_flags.Immediate));
                break;
            case FlagKind.ShiftRightSigned:
                LoadA(scratch);
                _a.Add(Instruction.Create(bytes == 4 ? Code.Sar_rm32_imm8 : Code.Sar_rm64_imm8, s, (byte)_flags.Immediate));
                break;
            default:
                Register x = InRegister(a, scratch, bytes);
                if (_flags.B == NoGuest)
                    _a.Add(TestImmediate(x, bytes, _flags.Immediate));
                else if (_flags.B != InState && HostRegisters.HomeOf(_flags.B) is var b && b != Register.None)
                    _a.Add(Instruction.Create(test, x, HostRegisters.Sized(b, bytes)));
                else
                    _a.Add(Instruction.Create(test, RegionAssembler.State(PlaceOfB), x));
                break;
        }
    }

    private static Instruction TestImmediate(Register x, int bytes, ulong immediate) => bytes switch
    {
        1 => Instruction.Create(Code.Test_rm8_imm8, x, (uint)(byte)immediate),
        2 => Instruction.Create(Code.Test_rm16_imm16, x, (uint)(ushort)immediate),
        4 => Instruction.Create(Code.Test_rm32_imm32, x, (uint)immediate),
        _ => Instruction.Create(Code.Test_rm64_imm32, x, (int)immediate),
    };

    private Register InRegister(Register home, Register scratch, int bytes)
    {
        if (home == Register.None)
        {
            LoadA(scratch);
            home = scratch;
        }
        return HostRegisters.Sized(home, bytes);
    }

    /// <summary>Where the second value is when it is in memory.</summary>
    private int PlaceOfB => _flags.B == InState ? StateLayout.CcB : StateLayout.Gpr(_flags.B);

    private void LoadA(Register scratch)
    {
        if (_flags.A == InState)
            _a.Load(scratch, StateLayout.CcA);
        else if (HostRegisters.HomeOf(_flags.A) is var home && home != Register.None)
            _a.Move(scratch, home);
        else
            _a.Load(scratch, StateLayout.Gpr(_flags.A));
    }

    /// <summary>An instruction of the form register, register or memory, with the recipe's second value.</summary>
    private void WithB(Code code, Register first)
    {
        int bytes = first.GetSize();
        if (_flags.B == NoGuest)
            _a.Add(WithImmediate(code, first, _flags.Immediate));
        else if (_flags.B != InState && HostRegisters.HomeOf(_flags.B) is var b && b != Register.None)
            _a.Add(Instruction.Create(code, first, HostRegisters.Sized(b, bytes)));
        else
            _a.Add(Instruction.Create(code, first, RegionAssembler.State(PlaceOfB)));
    }

    private static Instruction WithImmediate(Code code, Register first, ulong immediate) => code switch
    {
        Code.Cmp_r8_rm8 => Instruction.Create(Code.Cmp_rm8_imm8, first, (uint)(byte)immediate),
        Code.Add_r8_rm8 => Instruction.Create(Code.Add_rm8_imm8, first, (uint)(byte)immediate),
        Code.Sub_r8_rm8 => Instruction.Create(Code.Sub_rm8_imm8, first, (uint)(byte)immediate),
        Code.Cmp_r16_rm16 => Instruction.Create(Code.Cmp_rm16_imm16, first, (uint)(ushort)immediate),
        Code.Add_r16_rm16 => Instruction.Create(Code.Add_rm16_imm16, first, (uint)(ushort)immediate),
        Code.Sub_r16_rm16 => Instruction.Create(Code.Sub_rm16_imm16, first, (uint)(ushort)immediate),
        Code.Cmp_r32_rm32 => Instruction.Create(Code.Cmp_rm32_imm32, first, (uint)immediate),
        Code.Add_r32_rm32 => Instruction.Create(Code.Add_rm32_imm32, first, (uint)immediate),
        Code.Sub_r32_rm32 => Instruction.Create(Code.Sub_rm32_imm32, first, (uint)immediate),
        Code.Cmp_r64_rm64 => Instruction.Create(Code.Cmp_rm64_imm32, first, (int)immediate),
        Code.Add_r64_rm64 => Instruction.Create(Code.Add_rm64_imm32, first, (int)immediate),
        _ => Instruction.Create(Code.Sub_rm64_imm32, first, (int)immediate),
    };

    /// <summary>Writes where the flags are to the state, for an edge whose end looks there. Changes no flag.</summary>
    private void StoreFlags()
    {
        if (_flags.Kind == FlagKind.Words)
            return;
        if (_flags.Kind != FlagKind.Packed)
        {
            if (_flags.A != InState)
                StoreValue(StateLayout.CcA, _flags.A, 0);
            if (_flags.Kind is not (FlagKind.Logic or FlagKind.Negate) && _flags.B != InState)
                StoreValue(StateLayout.CcB, _flags.B, _flags.Immediate);
        }
        _a.StoreImmediate(StateLayout.CcKind, (uint)_flags.Kind | (uint)_flags.Log2Size << 4);
    }

    private void StoreValue(int at, byte guest, ulong immediate)
    {
        if (guest == NoGuest)
        {
            _a.Add(Instruction.Create(Code.Mov_rm64_imm32, RegionAssembler.State(at), (int)immediate));
            return;
        }
        Register home = HostRegisters.HomeOf(guest);
        if (home == Register.None)
            _a.Load(home = HostRegisters.Spare, StateLayout.Gpr(guest));
        _a.Store(at, home);
    }
}

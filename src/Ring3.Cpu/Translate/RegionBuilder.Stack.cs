using System.Runtime.InteropServices;
using Iced.Intel;

namespace Ring3.Cpu;

// Consecutive PUSH or POP, and the RET behind POP: one check for all of them.
// SAFETY: writes only to the assembler; the check covers every access of the run, and each access says where a fault continues.
internal sealed unsafe partial class RegionBuilder
{
    private const int MaxRun = 8;

    /// <summary>Instructions from <paramref name="i"/> on that are made together; less than 2: the instruction stands alone.</summary>
    private int RunAt(Trace t, int i)
    {
        ReadOnlySpan<GuestInstruction> all = CollectionsMarshal.AsSpan(t.Instructions);
        if (_inShadow || _segmented || all[i].Lowering is not (Lowering.Push or Lowering.Pop))
            return 0;
        int n = 0;
        while (n < MaxRun && i + n < all.Length && all[i + n].Lowering == all[i].Lowering && !NamesStack(all[i + n].Code))
            n++;
        if (n is > 0 and < MaxRun && all[i].Lowering == Lowering.Pop && i + n < all.Length && all[i + n].Lowering == Lowering.Return)
            n++;
        return n;
    }

    private static bool NamesStack(in Instruction i) => i.Op0Kind == Iced.Intel.OpKind.Register && i.Op0Register is Register.RSP or Register.ESP;

    private void EmitRun(Trace t, int i, int count)
    {
        if (At(t, i).Lowering == Lowering.Push)
            EmitPushes(t, i, count);
        else
            EmitPops(t, i, count);
    }

    /// <summary>
    /// The site of an access of the run: RSP is moved at its end only, so whoever leaves before instruction <paramref name="n"/> finds out here how far it
    /// has come. Only the first can miss.
    /// </summary>
    private int RunSite(Trace t, int i, int n, int count, AccessForm form)
    {
        Site site = SiteAt(SiteKind.Miss, t, i + n);
        (site.Form, site.Size, site.Write) = (form, (byte)(_word * count), form == AccessForm.Push);
        site.StackMoves = (short)(form == AccessForm.Push ? -_word * n : _word * n);
        if (n != 0)
            return AddSite(site, _a.Position);
        int number = AddSite(site);
        Resume(number, i, t);
        return number;
    }

    private void EmitPushes(Trace t, int i, int count)
    {
        int first = RunSite(t, i, 0, count, AccessForm.Push);
        _a.Lea(HostRegisters.Address, Stack, -_word * count, _word);
        BeginCheck(_word * count, true);
        _stubs.Add((_a.Jump(NotEqual), first));
        // Where there is code, an instruction of the run could be overwritten: one after the other is the interpreter's.
        _a.WithEntry(HostOperation.Move, HostRegisters.Spare, CodeBitsOffset);
        _a.CompareWithZero(HostRegisters.Spare, 0, true);
        _stubs.Add((_a.Jump(NotEqual), AddSite(SiteAt(SiteKind.Leave, t, i))));
        _a.WithEntry(HostOperation.Add, HostRegisters.Address, AddendOffset);
        for (int n = 0; n < count; n++)
        {
            ref readonly Instruction code = ref At(t, i + n).Code;
            if (n != 0)
                Mark(t, i + n);
            MemoryOperand at = HostAssembler.Memory(HostRegisters.Address, _word * (count - 1 - n));
            Register home = Register.None;
            if (code.Op0Kind == Iced.Intel.OpKind.Register)
            {
                home = HostRegisters.HomeOf(Guest(code.Op0Register));
                if (home == Register.None)
                    _a.Load(home = HostRegisters.Spare, StateLayout.Gpr(Guest(code.Op0Register)));
            }
            FaultsTo(n == 0 ? first : RunSite(t, i, n, count, AccessForm.Push));
            if (home != Register.None)
                _a.Add(Instruction.Create(Is64 ? Code.Mov_rm64_r64 : Code.Mov_rm32_r32, at, HostRegisters.Sized(home, _word)));
            else
                StoreWord(at, (int)code.GetImmediate(0));
        }
        _a.Lea(Stack, Stack, -_word * count, _word);
        _a.WithEntry(HostOperation.Move, HostRegisters.Spare, CodeBitsOffset);
        _a.CompareWithZero(HostRegisters.Spare, 0, true);
        _hostFlags = false;
        Site site = SiteAt(SiteKind.Overwritten, t, i + count - 1);
        site.Size = (byte)(_word * count);
        site.PageOffset = t.Instructions[i + count - 1].Next;
        site.Uncount--;
        int number = AddSite(site);
        _stubs.Add((_a.Jump(NotEqual), number));
        Resume(number, i + count, t);
    }

    private void EmitPops(Trace t, int i, int count)
    {
        int first = RunSite(t, i, 0, count, AccessForm.Pop);
        MoveAddress(HostRegisters.Address, Stack);
        EmitCheck(_word * count, false, first);
        _hostFlags = false;
        Code load = Is64 ? Code.Mov_r64_rm64 : Code.Mov_r32_rm32;
        for (int n = 0; n < count; n++)
        {
            ref readonly GuestInstruction g = ref At(t, i + n);
            if (n != 0)
            {
                Mark(t, i + n);
                FaultsTo(RunSite(t, i, n, count, AccessForm.Pop));
            }
            MemoryOperand at = HostAssembler.Memory(HostRegisters.Address, _word * n);
            if (g.Lowering == Lowering.Return)
            {
                _a.Add(Instruction.Create(load, HostRegisters.Sized(HostRegisters.Address, _word), at));
                int bytes = _word + Released(g.Code);
                _a.Lea(Stack, Stack, _word * n + bytes, _word);
                Site jump = SiteAt(SiteKind.Jump, t, i + n);
                jump.Popped = (ushort)bytes;
                StoreFlags();
                EmitReturn(jump);
                return;
            }
            int guest = Guest(g.Code.Op0Register);
            Register home = HostRegisters.HomeOf(guest);
            _a.Add(Instruction.Create(load, HostRegisters.Sized(home != Register.None ? home : HostRegisters.Spare, _word), at));
            if (home == Register.None)
                _a.Store(StateLayout.Gpr(guest), HostRegisters.Spare);
        }
        _a.Lea(Stack, Stack, _word * count, _word);
    }
}

using Iced.Intel;

namespace Ring3.Cpu;

// The stack and transfers.
// SAFETY: host code for the stack is only emitted here; the check in front of each access is what makes it sound.
internal sealed unsafe partial class RegionBuilder
{
    private const Register Stack = Register.R10;
    private const int Rsp = 4;

    private void EmitPush(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Push, _word, true);
        _a.Lea(HostRegisters.Address, Stack, -_word, _word);
        Instruction code = g.Code;
        if (code.Op0Kind == Iced.Intel.OpKind.Register)
        {
            Register home = HostRegisters.HomeOf(Guest(code.Op0Register));
            int guest = Guest(code.Op0Register);
            BeginCheck(_word, true);
            if (home == Register.None)
                _a.Load(HostRegisters.Spare, StateLayout.Gpr(guest));
            EndCheck(site);
            _a.StoreTo(HostRegisters.Address, home != Register.None ? home : HostRegisters.Spare, _word);
        }
        else
        {
            EmitCheck(_word, true, site);
            StoreWord(new MemoryOperand(HostRegisters.Address), (int)code.GetImmediate(0));
        }
        _a.Lea(Stack, Stack, -_word, _word);
        EmitCodeCheck(t, i, _word, g.Next);
    }

    private void StoreWord(in MemoryOperand at, int immediate) =>
        _a.Add(Instruction.Create(Is64 ? Code.Mov_rm64_imm32 : Code.Mov_rm32_imm32, at, immediate));

    /// <summary>to = the guest's address in a register.</summary>
    private void MoveAddress(Register to, Register from)
    {
        if (Is64)
            _a.Move(to, from);
        else
            _a.Move32(to, from);
    }

    private void EmitPop(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Pop, _word, false);
        MoveAddress(HostRegisters.Address, Stack);
        EmitCheck(_word, false, site);
        int guest = Guest(g.Code.Op0Register);
        Register home = HostRegisters.HomeOf(guest);
        Register to = guest == Rsp || home == Register.None ? HostRegisters.Spare : home;
        _a.LoadFrom(to, HostRegisters.Address, _word);
        _a.Lea(Stack, Stack, _word, _word);
        if (guest == Rsp)
            _a.Move(Stack, to);
        else if (home == Register.None)
            _a.Store(StateLayout.Gpr(guest), to);
        _hostFlags = false;
    }

    private void EmitLeave(Trace t, int i)
    {
        int site = MissSite(t, i, AccessForm.Leave, _word, false);
        MoveAddress(HostRegisters.Address, Register.RBP);
        EmitCheck(_word, false, site);
        _a.LoadFrom(HostRegisters.Spare, HostRegisters.Address, _word);
        _a.Lea(Stack, Register.RBP, _word, _word);
        _a.Move(Register.RBP, HostRegisters.Spare);
        _hostFlags = false;
    }

    private void EmitCall(Trace t, int i, in GuestInstruction g)
    {
        PushNext(t, i, g.Next, (int)g.Code.NearBranchTarget);
        EmitEdge(t, (long)g.Code.NearBranchTarget, t.TargetOf(g), i + 1, g.Next);
    }

    /// <summary>The return address onto the stack. The flags are where sites can name them.</summary>
    private void PushNext(Trace t, int i, int next, int target)
    {
        int site = MissSite(t, i, AccessForm.Push, _word, true);
        _a.Lea(HostRegisters.Address, Stack, -_word, _word);
        BeginCheck(_word, true);
        _a.Load(HostRegisters.Spare, StateLayout.CodeBase);
        _a.Lea(HostRegisters.Spare, HostRegisters.Spare, next, _word);
        EndCheck(site);
        _a.StoreTo(HostRegisters.Address, HostRegisters.Spare, _word);
        _a.Lea(Stack, Stack, -_word, _word);
        EmitCodeCheck(t, i, _word, target);
    }

    /// <summary>The target of an indirect transfer into <see cref="CpuState.Rip"/>, which is not used by translated code before the jump.</summary>
    private void LoadTarget(Trace t, int i, in Instruction code, bool keep)
    {
        if (code.Op0Kind == Iced.Intel.OpKind.Register)
        {
            int guest = Guest(code.Op0Register);
            if (HostRegisters.HomeOf(guest) is var home && home != Register.None)
                MoveAddress(HostRegisters.Address, home);
            else
                _a.Load(HostRegisters.Address, StateLayout.Gpr(guest));
        }
        else
        {
            int site = MissSite(t, i, AccessForm.Operand, _word, false);
            EmitAddress(code, HostRegisters.Address, true);
            EmitCheck(_word, false, site);
            _a.LoadFrom(HostRegisters.Address, HostRegisters.Address, _word);
            _hostFlags = false;
        }
        if (keep)
            _a.Store(StateLayout.Rip, HostRegisters.Address);
    }

    private void EmitCallIndirect(Trace t, int i, in GuestInstruction g)
    {
        LoadTarget(t, i, g.Code, true);
        if (Is64)
        {
            // What is not canonical with 48 bits is the interpreter's, before the push.
            _a.Move(HostRegisters.Spare, HostRegisters.Address);
            _a.Add(Instruction.Create(Code.Shl_rm64_imm8, HostRegisters.Spare, 16));
            _a.Add(Instruction.Create(Code.Sar_rm64_imm8, HostRegisters.Spare, 16));
            _a.OnRegisters(HostOperation.Compare, HostRegisters.Spare, HostRegisters.Address);
            _hostFlags = false;
            _stubs.Add((_a.Jump(NotEqual), AddSite(SiteAt(SiteKind.Leave, t, i))));
        }
        PushNext(t, i, g.Next, AtRip);
        StoreFlags();
        _a.Load(HostRegisters.Address, StateLayout.Rip);
        EmitJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 }, g.Next, t.Return);
    }

    private void EmitJumpIndirect(Trace t, int i, in GuestInstruction g)
    {
        LoadTarget(t, i, g.Code, false);
        Site site = SiteAt(SiteKind.Jump, t, i);
        StoreFlags();
        EmitJump(site);
    }

    /// <summary>Bytes of arguments that a return takes off the stack.</summary>
    private static int Released(in Instruction code) => code.Code is Code.Retnq_imm16 or Code.Retnd_imm16 ? code.Immediate16 : 0;

    private void EmitReturn(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Pop, _word, false);
        MoveAddress(HostRegisters.Address, Stack);
        EmitCheck(_word, false, site);
        _a.LoadFrom(HostRegisters.Address, HostRegisters.Address, _word);
        _hostFlags = false;
        int bytes = _word + Released(g.Code);
        _a.Lea(Stack, Stack, bytes, _word);
        Site jump = SiteAt(SiteKind.Jump, t, i);
        jump.Popped = (ushort)bytes;
        StoreFlags();
        EmitReturn(jump);
    }
}

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
        int site = MissSite(t, i, AccessForm.Push, 8, true);
        _a.Lea(HostRegisters.Address, Stack, -8);
        Instruction code = g.Code;
        if (code.Op0Kind == Iced.Intel.OpKind.Register)
        {
            Register home = HostRegisters.HomeOf(Guest(code.Op0Register));
            int guest = Guest(code.Op0Register);
            BeginCheck(8, true);
            if (home == Register.None)
                _a.Load(HostRegisters.Spare, StateLayout.Gpr(guest));
            EndCheck(site);
            _a.StoreTo(HostRegisters.Address, home != Register.None ? home : HostRegisters.Spare);
        }
        else
        {
            EmitCheck(8, true, site);
            _a.Add(Instruction.Create(Code.Mov_rm64_imm32, new MemoryOperand(HostRegisters.Address), (int)code.GetImmediate(0)));
        }
        _a.Lea(Stack, Stack, -8);
        EmitCodeCheck(t, i, 8, g.Next);
    }

    private void EmitPop(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Pop, 8, false);
        _a.Move(HostRegisters.Address, Stack);
        EmitCheck(8, false, site);
        int guest = Guest(g.Code.Op0Register);
        Register home = HostRegisters.HomeOf(guest);
        Register to = guest == Rsp || home == Register.None ? HostRegisters.Spare : home;
        _a.LoadFrom(to, HostRegisters.Address);
        _a.Lea(Stack, Stack, 8);
        if (guest == Rsp)
            _a.Move(Stack, to);
        else if (home == Register.None)
            _a.Store(StateLayout.Gpr(guest), to);
        _hostFlags = false;
    }

    private void EmitLeave(Trace t, int i)
    {
        int site = MissSite(t, i, AccessForm.Leave, 8, false);
        _a.Move(HostRegisters.Address, Register.RBP);
        EmitCheck(8, false, site);
        _a.LoadFrom(HostRegisters.Spare, HostRegisters.Address);
        _a.Lea(Stack, Register.RBP, 8);
        _a.Move(Register.RBP, HostRegisters.Spare);
        _hostFlags = false;
    }

    private void EmitCall(Trace t, int i, in GuestInstruction g)
    {
        PushNext(t, i, g.Next, (int)g.Code.NearBranchTarget);
        EmitEdge(t, (long)g.Code.NearBranchTarget, g.Target, i + 1);
    }

    /// <summary>The return address onto the stack. The flags are where sites can name them.</summary>
    private void PushNext(Trace t, int i, int next, int target)
    {
        int site = MissSite(t, i, AccessForm.Push, 8, true);
        _a.Lea(HostRegisters.Address, Stack, -8);
        BeginCheck(8, true);
        _a.Load(HostRegisters.Spare, StateLayout.CodeBase);
        _a.Lea(HostRegisters.Spare, HostRegisters.Spare, next);
        EndCheck(site);
        _a.StoreTo(HostRegisters.Address, HostRegisters.Spare);
        _a.Lea(Stack, Stack, -8);
        EmitCodeCheck(t, i, 8, target);
    }

    /// <summary>The target of an indirect transfer into <see cref="CpuState.Rip"/>, which is not used by translated code before the jump.</summary>
    private void LoadTarget(Trace t, int i, in Instruction code, bool keep)
    {
        if (code.Op0Kind == Iced.Intel.OpKind.Register)
        {
            int guest = Guest(code.Op0Register);
            if (HostRegisters.HomeOf(guest) is var home && home != Register.None)
                _a.Move(HostRegisters.Address, home);
            else
                _a.Load(HostRegisters.Address, StateLayout.Gpr(guest));
        }
        else
        {
            int site = MissSite(t, i, AccessForm.Operand, 8, false);
            EmitAddress(code, HostRegisters.Address, true);
            EmitCheck(8, false, site);
            _a.LoadFrom(HostRegisters.Address, HostRegisters.Address);
            _hostFlags = false;
        }
        if (keep)
            _a.Store(StateLayout.Rip, HostRegisters.Address);
    }

    private void EmitCallIndirect(Trace t, int i, in GuestInstruction g)
    {
        LoadTarget(t, i, g.Code, true);
        // What is not canonical with 48 bits is the interpreter's, before the push.
        _a.Move(HostRegisters.Spare, HostRegisters.Address);
        _a.Add(Instruction.Create(Code.Shl_rm64_imm8, HostRegisters.Spare, 16));
        _a.Add(Instruction.Create(Code.Sar_rm64_imm8, HostRegisters.Spare, 16));
        _a.OnRegisters(HostOperation.Compare, HostRegisters.Spare, HostRegisters.Address);
        _hostFlags = false;
        _stubs.Add((_a.Jump(NotEqual), AddSite(SiteAt(SiteKind.Leave, t, i))));
        PushNext(t, i, g.Next, AtRip);
        StoreFlags();
        _a.Load(HostRegisters.Address, StateLayout.Rip);
        EmitJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 });
    }

    private void EmitJumpIndirect(Trace t, int i, in GuestInstruction g)
    {
        LoadTarget(t, i, g.Code, false);
        Site site = SiteAt(SiteKind.Jump, t, i);
        StoreFlags();
        EmitJump(site);
    }

    private void EmitReturn(Trace t, int i, in GuestInstruction g)
    {
        int site = MissSite(t, i, AccessForm.Pop, 8, false);
        _a.Move(HostRegisters.Address, Stack);
        EmitCheck(8, false, site);
        _a.LoadFrom(HostRegisters.Address, HostRegisters.Address);
        _hostFlags = false;
        int bytes = 8 + (g.Code.Code == Code.Retnq_imm16 ? g.Code.Immediate16 : 0);
        _a.Lea(Stack, Stack, bytes);
        Site jump = SiteAt(SiteKind.Jump, t, i);
        jump.Popped = (ushort)bytes;
        StoreFlags();
        EmitJump(jump);
    }
}

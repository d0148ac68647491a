using Iced.Intel;

namespace Ring3.Cpu;

// Code whose segments count: 16-bit code, and 32-bit code in segments that are not flat. The page lies in the code segment as a whole, and the stack is as wide
// as the code (Translator.CanRun); operands are looked at one by one.
// SAFETY: writes only to the assembler. A linear address is made behind the check of its segment, and checked against level 1 as any other.
internal sealed unsafe partial class RegionBuilder
{
    private const byte Greater = 15;

    /// <summary>Offsets are not linear addresses.</summary>
    private bool _segmented;
    private readonly RuleCache _rulesOfSegments16 = new(false), _rulesOfSegments32 = new(false);
    /// <summary>The edge that is emitted is that of a branch with a target of 16 bits.</summary>
    private bool _cutsTarget;

    private RuleCache RulesOfSegments => IsWordMode ? _rulesOfSegments16 : _rulesOfSegments32;

    private bool IsWordMode => (_mode & BlockMode.SizeMask) == BlockMode.Code16;

    /// <summary>The instruction, where segments make a difference beyond the address of its operand. False: it is emitted as everywhere.</summary>
    private bool EmitSegmented(Trace t, int i, in GuestInstruction g)
    {
        switch (g.Lowering)
        {
            case Lowering.Push:
                EmitNarrowPush(t, i, g);
                return true;
            case Lowering.Pop:
                EmitNarrowPop(t, i, g);
                return true;
            case Lowering.Leave:
                EmitNarrowLeave(t, i, g);
                return true;
            case Lowering.PushMemory:
                EmitNarrowPushMemory(t, i, g);
                return true;
            case Lowering.Call:
                EmitNarrowCall(t, i, g);
                return true;
            case Lowering.CallIndirect:
                EmitNarrowCallIndirect(t, i, g);
                return true;
            case Lowering.Return:
                EmitNarrowReturn(t, i, g);
                return true;
            case Lowering.JumpIndirect:
                LoadNarrowTarget(t, i, g.Code);
                Site site = SiteAt(SiteKind.Jump, t, i);
                StoreFlags();
                EmitNarrowJump(site);
                return true;
            case Lowering.Jump:
                EmitNarrowEdge(t, i, g);
                return true;
            case Lowering.Branch:
                EmitNarrowBranch(t, i, g);
                return true;
            case Lowering.System when g.Code.Code == Code.Mov_rm16_Sreg:
                LoadSelector(g.Code.Op1Register, HostRegisters.Spare);
                _a.Add(Instruction.Create(Code.Mov_r16_rm16, HostRegisters.Sized(HostRegisters.HomeOf(Guest(g.Code.Op0Register)), 2), Spare2));
                return true;
            default:
                return false;
        }
    }

    private static Register Spare2 => HostRegisters.Sized(HostRegisters.Spare, 2);
    private static Register Address2 => HostRegisters.Sized(HostRegisters.Address, 2);
    private static Register Address4 => HostRegisters.Sized(HostRegisters.Address, 4);

    // ---- Addresses ----

    /// <summary>An offset becomes a linear address, or the instruction is the interpreter's. Flags and the spare register are lost.</summary>
    private void AddCheckedSegment(Register segment, Register to, int size, bool write)
    {
        int number = segment - Register.ES;
        Register end = to;
        if (size > 1)
            _a.Lea(end = HostRegisters.Spare, to, size - 1);
        _a.WithState(HostOperation.Compare, end, StateLayout.SegmentEnds + sizeof(long) * (2 * number + (write ? 1 : 0)));
        _stubs.Add((_a.Jump(Greater), AddSite(SiteAt(SiteKind.Leave, _trace!, _instruction))));
        _a.WithState(HostOperation.Add, to, StateLayout.SegmentBase(number));
        _a.Move32(to, to);
    }

    /// <summary>The same for the operand of the instruction that is being emitted.</summary>
    private void AddCheckedSegment(in Instruction i, Register to)
    {
        ref readonly GuestInstruction g = ref At(_trace!, _instruction);
        bool write = g.SiteAfter && g.Lowering is Lowering.Plain or Lowering.Vector or Lowering.BitString;
        AddCheckedSegment(i.MemorySegment, to, i.MemorySize.GetSize(), write);
    }

    /// <summary>Cuts an offset to 16 bits. Changes no flag.</summary>
    private void CutToWord(Register register) =>
        _a.Add(Instruction.Create(Code.Movzx_r32_rm16, HostRegisters.Sized(register, 4), HostRegisters.Sized(register, 2)));

    /// <summary>The linear address of <paramref name="size"/> bytes of the stack.</summary>
    private void StackAddress(Register from, int displacement, int size, bool write)
    {
        _a.Lea(HostRegisters.Address, from, displacement, 4);
        if (_word == 2)
            CutToWord(HostRegisters.Address);
        AddCheckedSegment(Register.SS, HostRegisters.Address, size, write);
    }

    /// <summary>SP or ESP = the same part of a register + displacement. Changes no flag.</summary>
    private void MoveStack(Register from, int displacement)
    {
        if (_word == 2)
            _a.Add(Instruction.Create(Code.Lea_r16_m, HostRegisters.Sized(Stack, 2), HostAssembler.Memory(from, displacement)));
        else
            _a.Lea(Stack, from, displacement, 4);
    }

    // ---- The stack ----

    /// <summary>Bytes of the operand of an instruction of the stack, of which there is a form for 16 and one for 32 bits.</summary>
    private static int OperandBytes(Code code) => InstructionRules.IsWordForm(code) ? 2 : 4;

    private void StoreValue(Register value, int size)
    {
        if (size == 2)
            _a.Add(Instruction.Create(Code.Mov_rm16_r16, new MemoryOperand(HostRegisters.Address), HostRegisters.Sized(value, 2)));
        else
            _a.StoreTo(HostRegisters.Address, value, 4);
    }

    private void LoadValue(Register to, int size)
    {
        if (size == 2)
            _a.Add(Instruction.Create(Code.Movzx_r32_rm16, HostRegisters.Sized(to, 4), new MemoryOperand(HostRegisters.Address)));
        else
            _a.LoadFrom(to, HostRegisters.Address, 4);
    }

    /// <summary>Register = the value, whose upper half is 0: its lower 16 bits, or all of it.</summary>
    private void SetRegister(Register home, Register value, int size)
    {
        if (size == 2)
            _a.Add(Instruction.Create(Code.Mov_r16_rm16, HostRegisters.Sized(home, 2), HostRegisters.Sized(value, 2)));
        else
            _a.Move32(home, value);
    }

    /// <summary>What a push begins with, up to the comparison with level 1.</summary>
    private int BeginPush(Trace t, int i, int size)
    {
        int site = MissSite(t, i, AccessForm.Push, size, true);
        StackAddress(Stack, -size, size, true);
        BeginCheck(size, true);
        return site;
    }

    private void EndPush(Trace t, int i, int size, int leaveFor)
    {
        MoveStack(Stack, -size);
        EmitCodeCheck(t, i, size, leaveFor);
    }

    private void EmitNarrowPush(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        int site = BeginPush(t, i, size);
        if (g.Code.Op0Kind != Iced.Intel.OpKind.Register)
        {
            EndCheck(site);
            int value = (int)g.Code.GetImmediate(0);
            MemoryOperand at = new(HostRegisters.Address);
            _a.Add(size == 2 ? Instruction.Create(Code.Mov_rm16_imm16, at, (uint)(ushort)value) : Instruction.Create(Code.Mov_rm32_imm32, at, value));
        }
        else
        {
            Register from = HostRegisters.Spare;
            if (g.Code.Op0Register.IsSegmentRegister())
                LoadSelector(g.Code.Op0Register, HostRegisters.Spare);
            else
                from = HostRegisters.HomeOf(Guest(g.Code.Op0Register));
            EndCheck(site);
            StoreValue(from, size);
        }
        EndPush(t, i, size, g.Next);
    }

    private void EmitNarrowPushMemory(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        int operand = MissSite(t, i, AccessForm.Operand, size, false);
        EmitAddress(g.Code, HostRegisters.Address, true);
        EmitCheck(size, false, operand);
        LoadValue(HostRegisters.Spare, size);
        _hostFlags = false;
        _a.Store(StateLayout.Between, HostRegisters.Spare);
        int site = BeginPush(t, i, size);
        _a.Load(HostRegisters.Spare, StateLayout.Between);
        EndCheck(site);
        StoreValue(HostRegisters.Spare, size);
        EndPush(t, i, size, g.Next);
    }

    private void EmitNarrowPop(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        int site = MissSite(t, i, AccessForm.Pop, size, false);
        StackAddress(Stack, 0, size, false);
        EmitCheck(size, false, site);
        LoadValue(HostRegisters.Spare, size);
        MoveStack(Stack, size);
        SetRegister(HostRegisters.HomeOf(Guest(g.Code.Op0Register)), HostRegisters.Spare, size);
        _hostFlags = false;
    }

    private void EmitNarrowLeave(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        int site = MissSite(t, i, AccessForm.Leave, size, false);
        StackAddress(Register.RBP, 0, size, false);
        EmitCheck(size, false, site);
        LoadValue(HostRegisters.Spare, size);
        MoveStack(Register.RBP, size);
        SetRegister(Register.RBP, HostRegisters.Spare, size);
        _hostFlags = false;
    }

    // ---- Transfers ----

    private static bool IsOutside(long offset) => (ulong)offset >= 4096;

    /// <summary>Where a branch leads that leaves the page, into the address register. Changes no flag.</summary>
    private void LoadOutside(long offset, bool cuts)
    {
        _a.Load(HostRegisters.Address, StateLayout.CodeBase);
        _a.Lea(HostRegisters.Address, HostRegisters.Address, (int)offset, 4);
        if (cuts)
            CutToWord(HostRegisters.Address);
    }

    /// <summary>Targets behind the code segment's end are the interpreter's, before anything has happened. Flags are lost.</summary>
    private void CheckTarget(Trace t, int i)
    {
        _a.Add(Instruction.Create(Code.Cmp_r32_rm32, Address4, RegionAssembler.State(StateLayout.CodeLimit)));
        _stubs.Add((_a.Jump(Above), AddSite(SiteAt(SiteKind.Leave, t, i))));
        _hostFlags = false;
    }

    /// <summary>The edge of a direct branch. A target in the page is in the code segment, as all of the page is.</summary>
    private void EmitNarrowEdge(Trace t, int i, in GuestInstruction g)
    {
        long offset = g.LeavesFor;
        _cutsTarget = !g.Inverted && InstructionRules.IsWordForm(g.Code.Code);
        if (!g.Inverted && IsOutside(offset))
        {
            PackNow();
            LoadOutside(offset, _cutsTarget);
            CheckTarget(t, i);
        }
        EmitEdge(t, offset, t.TargetOf(g), i + 1);
        _cutsTarget = false;
    }

    private void EmitNarrowBranch(Trace t, int i, in GuestInstruction g)
    {
        if (IsOutside(g.LeavesFor))
            PackNow();
        NeedHostFlags(HostRegisters.Spare);
        byte condition = (byte)(g.Code.ConditionCode - ConditionCode.o);
        int skip = _a.Jump((byte)(g.Inverted ? condition : condition ^ 1));
        (bool host, bool unpacked, Recipe flags) = (_hostFlags, _unpacked, _flags);
        EmitNarrowEdge(t, i, g);
        _a.Bind(skip);
        (_hostFlags, _unpacked, _flags) = (host, unpacked, flags);
    }

    private void PushReturn(Trace t, int i, int size, int next, int leaveFor)
    {
        int site = BeginPush(t, i, size);
        _a.Load(HostRegisters.Spare, StateLayout.CodeBase);
        _a.Lea(HostRegisters.Spare, HostRegisters.Spare, next, 4);
        EndCheck(site);
        StoreValue(HostRegisters.Spare, size);
        EndPush(t, i, size, leaveFor);
    }

    private void EmitNarrowCall(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        long offset = (long)g.Code.NearBranchTarget;
        if (!IsOutside(offset))
        {
            PushReturn(t, i, size, g.Next, (int)offset);
            EmitEdge(t, offset, t.TargetOf(g), i + 1);
            return;
        }
        LoadOutside(offset, size == 2);
        EmitCallTo(t, i, g, size);
    }

    private void EmitNarrowCallIndirect(Trace t, int i, in GuestInstruction g)
    {
        LoadNarrowTarget(t, i, g.Code);
        EmitCallTo(t, i, g, OperandBytes(g.Code.Code));
    }

    /// <summary>A call of what the address register says.</summary>
    private void EmitCallTo(Trace t, int i, in GuestInstruction g, int size)
    {
        CheckTarget(t, i);
        _a.Store(StateLayout.Rip, HostRegisters.Address);
        PushReturn(t, i, size, g.Next, AtRip);
        StoreFlags();
        _a.Load(HostRegisters.Address, StateLayout.Rip);
        EmitNarrowJump(new Site { Kind = SiteKind.Jump, PageOffset = -1 });
    }

    private void LoadNarrowTarget(Trace t, int i, in Instruction code)
    {
        int size = OperandBytes(code.Code);
        if (code.Op0Kind == Iced.Intel.OpKind.Register)
        {
            _a.Move32(HostRegisters.Address, HostRegisters.HomeOf(Guest(code.Op0Register)));
            if (size == 2)
                CutToWord(HostRegisters.Address);
            return;
        }
        int site = MissSite(t, i, AccessForm.Operand, size, false);
        EmitAddress(code, HostRegisters.Address, true);
        EmitCheck(size, false, site);
        LoadValue(HostRegisters.Address, size);
        _hostFlags = false;
    }

    private void EmitNarrowReturn(Trace t, int i, in GuestInstruction g)
    {
        int size = OperandBytes(g.Code.Code);
        int site = MissSite(t, i, AccessForm.Pop, size, false);
        StackAddress(Stack, 0, size, false);
        EmitCheck(size, false, site);
        LoadValue(HostRegisters.Address, size);
        _hostFlags = false;
        int bytes = size + (g.Code.Code is Code.Retnw_imm16 or Code.Retnd_imm16 ? g.Code.Immediate16 : 0);
        MoveStack(Stack, bytes);
        Site jump = SiteAt(SiteKind.Jump, t, i);
        jump.Popped = (uint)bytes;
        StoreFlags();
        EmitNarrowJump(jump);
    }

    /// <summary>
    /// As <see cref="EmitJump"/>, to the offset in <see cref="HostRegisters.Address"/>. What the table has lies in the code segment, with its page.
    /// </summary>
    private void EmitNarrowJump(in Site site)
    {
        const Register Target = HostRegisters.Address, Index = HostRegisters.Spare, Other = HostRegisters.Entry;
        EndShadow();
        _a.Multiply32(Index, Target, unchecked((int)ProcessorMemory.JumpFactor));
        _a.WithState(HostOperation.Xor, Index, StateLayout.JumpSalt);
        _a.And32(Index, (ProcessorMemory.JumpEntries - 1) << ProcessorMemory.JumpShift);
        int miss = AddSite(site);
        _a.Move(Other, Target);
        _a.WithState(HostOperation.Or, Other, StateLayout.JumpSegment);
        _a.WithTable(HostOperation.Compare, Other, Index, StateLayout.Jumps);
        _stubs.Add((_a.Jump(NotEqual), miss));
        _a.Load(Other, StateLayout.JumpContext);
        _a.WithTable(HostOperation.Compare, Other, Index, StateLayout.Jumps + 8);
        _stubs.Add((_a.Jump(NotEqual), miss));
        // The page begins where the linear address says.
        _a.Move(Other, Target);
        _a.WithState(HostOperation.Add, Other, StateLayout.SegmentBase(SegmentIndex.CS));
        _a.And32(Other, 0xfff);
        _a.OnRegisters(HostOperation.Sub, Target, Other);
        _a.Store(StateLayout.CodeBase, Target);
        _a.JumpThroughTable(Index, StateLayout.Jumps + 16);
    }
}

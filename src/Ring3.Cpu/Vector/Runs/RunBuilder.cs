using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Emits a run. Host registers: RDI state, RSI level-1 TLB, RAX address, RCX TLB entry offset, RDX scratch, R8 + i general-purpose operand i; guest vector
/// register n is host register n.
/// A register is loaded when it is first read and stored at the end, or in the stub that leaves early.
/// </summary>
/// <remarks>
/// SAFETY: emitted memory accesses repeat the level-1 TLB check of LogicalProcessor.ReadPtr and WritePtr and the check for overwritten code of EndWrite.
/// </remarks>
internal sealed unsafe partial class RunBuilder
{
    private const Register State = Register.RDI, Tlb1 = Register.RSI, Address = Register.RAX, Entry = Register.RCX, Scratch = Register.RDX;
    private const byte NoRegister = OpEncoder.NoRegister, Carry = 2, Equal = 4, NotEqual = 5;
    private const int TagReadOffset = 0, TagWriteOffset = 8, AddendOffset = 16, CodeBitsOffset = 24, EntryShift = 5;

    private readonly ThunkAssembler _a = new();
    private readonly InstructionInfoFactory _info = new();
    private readonly List<(int Op, int Jump, uint Dirty)> _exits = [];
    private readonly List<(int Op, int Jump, uint Dirty, int Bytes)> _overwritten = [];
    private uint _loaded, _dirty;
    private bool _wide, _sse, _avx, _fp;

    /// <summary>Builds the run that starts at <paramref name="first"/>. Null when it is too short or the budget is used up.</summary>
    public static VectorRun* TryBuild(LogicalProcessor p, Op* first, out bool sse, out bool avx, out bool fp)
    {
        sse = avx = fp = false;
        if (!VectorRuns.HasRoom)
            return null;
        int count = Count(p, first);
        if (count < 2)
            return null;
        RunBuilder b = new();
        b.Survey(p, first, count);
        b.EmitOps(p, first, 0, count);
        b.Leave(b._dirty, count);
        b.EmitExits();
        (sse, avx, fp) = (b._sse, b._avx, b._fp);
        int bytes = b._a.Position;
        return VectorRuns.Add(new VectorRun
        {
            Entry = (delegate* unmanaged[SuppressGCTransition]<CpuState*, TlbEntry*, int>)b._a.Finish(ThunkKind.Run),
            Single = (p.Forms + first->Aux)->Single,
        }, bytes);
    }

    private void Survey(LogicalProcessor p, Op* first, int count)
    {
        for (int i = 0; i < count; i++)
        {
            if (first[i].Kind != (ushort)OpKind.Generic)
                continue;
            VectorFormFlags flags = (p.Forms + first[i].Aux)->Flags;
            _avx |= (flags & VectorFormFlags.Vex) != 0;
            _sse |= (flags & VectorFormFlags.Vex) == 0;
            _fp |= (flags & VectorFormFlags.Fp) != 0;
        }
        _wide = _avx;
    }

    private void EmitOps(LogicalProcessor p, Op* first, int from, int to)
    {
        for (int i = from; i < to; i++)
        {
            if (first[i].Kind != (ushort)OpKind.Generic)
                EmitInteger(first + i, i);
            else
                Emit(p.Forms + first[i].Aux, first + i, i);
        }
    }

    /// <summary>Number of consecutive ops from <paramref name="first"/> on that can be in one run; gives each of them its form.</summary>
    private static int Count(LogicalProcessor p, Op* first)
    {
        int n = 0;
        for (; n < VectorRun.MaxOps; n++)
        {
            if (n != 0 && CanTakeAlong(first + n))
                continue;
            if (first[n].Kind != (ushort)OpKind.Generic || !VectorHandlers.CanFuse(first + n))
                break;
            VectorHandlers.Resolve(first + n);
            VectorFormFlags flags = p.Forms[first[n].Aux].Flags;
            // Only 64-bit addresses: with others there may be segments to check.
            bool segmented = (first[n].Flags & OpFlags.HasMemory) != 0 && first[n].AddressSize != 8;
            if ((flags & (VectorFormFlags.Mmx | VectorFormFlags.WritesFlags)) != 0 || segmented)
                break;
        }
        return n;
    }

    private void Emit(VectorForm* f, Op* op, int index)
    {
        Code code = (Code)f->Code;
        OpCodeInfo info = code.ToOpCode();
        bool memory = f->MemoryIndex != 255;
        Span<OperandClass> classes = stackalloc OperandClass[4];
        Instruction instruction = new() { Code = code };
        for (int i = 0; i < info.OpCount; i++)
        {
            classes[i] = VectorThunkBuilder.Classify(info.GetOpKind(i), memory);
            byte number = (&op->Reg0)[i];
            switch (classes[i])
            {
                case OperandClass.Memory:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                    instruction.MemoryBase = Address;
                    break;
                case OperandClass.Immediate:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Immediate8);
                    instruction.Immediate8 = f->Immediate;
                    break;
                default:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
                    instruction.SetOpRegister(i, classes[i] switch
                    {
                        OperandClass.Xmm => Register.XMM0 + number,
                        OperandClass.Ymm => Register.YMM0 + number,
                        OperandClass.Gpr32 => Register.R8D + i,
                        _ => Register.R8 + i,
                    });
                    break;
            }
        }
        InstructionInfo used = _info.GetInfo(instruction);
        bool legacy = (f->Flags & VectorFormFlags.Vex) == 0;
        uint written = LoadSources(used, legacy);
        for (int i = 0; i < info.OpCount; i++)
            if (classes[i] is OperandClass.Gpr32 or OperandClass.Gpr64 && VectorThunkBuilder.Reads(used.GetOpAccess(i)))
                _a.Load(Code.Mov_r64_rm64, Register.R8 + i, State, (&op->Reg0)[i]);
        bool stores = (f->Flags & VectorFormFlags.StoresMemory) != 0;
        if (memory)
            EmitAddress(op, f->MemorySize, f->AlignMask, index, stores);
        _a.Add(instruction);
        if (stores)
            EmitCodeCheck(index, f->MemorySize);
        if ((f->Flags & VectorFormFlags.StoresFlags) != 0)
            VectorThunkBuilder.EmitFlags(_a, State, Register.AL, Register.EAX, Register.CL, Register.ECX, Register.RDX);
        for (int i = 0; i < info.OpCount; i++)
            if (classes[i] is OperandClass.Gpr32 or OperandClass.Gpr64 && VectorThunkBuilder.Writes(used.GetOpAccess(i)))
                _a.Store(Code.Mov_rm64_r64, State, Register.R8 + i, (&op->Reg0)[i]);
        _dirty |= written;
        _loaded |= written;
    }

    /// <summary>Loads the vector registers that are read and not yet there; returns those that are written.</summary>
    private uint LoadSources(in InstructionInfo used, bool legacy)
    {
        uint read = 0, written = 0;
        foreach (UsedRegister r in used.GetUsedRegisters())
        {
            if (!r.Register.IsVectorRegister())
                continue;
            uint bit = 1u << r.Register.GetNumber();
            if (VectorThunkBuilder.Reads(r.Access))
                read |= bit;
            if (VectorThunkBuilder.Writes(r.Access))
                written |= bit;
        }
        // A legacy write keeps the upper half, so among whole registers it depends on the old value.
        if (legacy && _wide)
            read |= written;
        for (int n = 0; n < 16; n++)
            if ((read & ~_loaded & 1u << n) != 0)
                LoadRegister(n);
        _loaded |= read;
        return written;
    }

    private void LoadRegister(int n)
    {
        if (_wide)
            _a.Load(Code.VEX_Vmovups_ymm_ymmm256, Register.YMM0 + n, State, VectorThunkBuilder.YmmOffset + 32 * n);
        else
            _a.Load(Code.Movups_xmm_xmmm128, Register.XMM0 + n, State, VectorThunkBuilder.YmmOffset + 32 * n);
    }

    /// <summary>
    /// Host address of the memory operand into RAX, or leave. The access must follow directly: a fault looks for the last jump here, and leaves as it does
    /// (<see cref="ThunkKind.Run"/>).
    /// </summary>
    private void EmitAddress(Op* op, int size, byte alignMask, int index, bool write)
    {
        EmitEffective(op);
        if (op->AddressSize == 4)
            _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, Register.EAX));
        EmitSegment(op);
        if (alignMask != 0)
        {
            _a.Add(Instruction.Create(Code.Test_rm8_imm8, Register.AL, (uint)alignMask));
            LeaveIf(NotEqual, index);
        }
        _a.Add(Instruction.Create(Code.Mov_r64_rm64, Entry, Address));
        _a.Add(Instruction.Create(Code.Shr_rm64_imm8, Entry, 12 - EntryShift));
        _a.Add(Instruction.Create(Code.And_rm32_imm32, Register.ECX, (Tlb.Level1Entries - 1) << EntryShift));
        _a.Add(Instruction.Create(Code.Lea_r64_m, Scratch, ThunkAssembler.Memory(Address, size - 1)));
        _a.Add(Instruction.Create(Code.And_rm64_imm32, Scratch, -4096));
        CpuState c;
        _a.Load(Code.Or_r64_rm64, Scratch, State, (int)((byte*)&c.TlbContext - (byte*)&c));
        _a.Add(Instruction.Create(Code.Cmp_r64_rm64, Scratch, new MemoryOperand(Tlb1, Entry, 1, write ? TagWriteOffset : TagReadOffset, 1)));
        LeaveIf(NotEqual, index);
        _a.Add(Instruction.Create(Code.Add_r64_rm64, Address, new MemoryOperand(Tlb1, Entry, 1, AddendOffset, 1)));
    }

    private void EmitEffective(Op* op)
    {
        if (op->Base != NoRegister)
            _a.Load(Code.Mov_r64_rm64, Address, State, op->Base);
        bool fits = op->Disp == (int)op->Disp;
        int displacement = fits ? (int)op->Disp : 0;
        if (op->Index != NoRegister)
        {
            _a.Load(Code.Mov_r64_rm64, Entry, State, op->Index);
            Register b = op->Base != NoRegister ? Address : Register.None;
            _a.Add(Instruction.Create(Code.Lea_r64_m, Address, new MemoryOperand(b, Entry, 1 << op->Shift, displacement, 8)));
        }
        else if (op->Base == NoRegister)
        {
            _a.Add(Instruction.Create(Code.Mov_rm64_imm32, Address, displacement));
        }
        else if (displacement != 0)
        {
            _a.Add(Instruction.Create(Code.Lea_r64_m, Address, new MemoryOperand(Address, displacement, 8)));
        }
        if (!fits)
        {
            _a.Add(Instruction.Create(Code.Mov_r64_imm64, Entry, op->Disp));
            _a.Add(Instruction.Create(Code.Add_r64_rm64, Address, Entry));
        }
    }

    private void EmitSegment(Op* op)
    {
        if (op->Seg >= SegmentIndex.FS)
        {
            CpuState c;
            _a.Load(Code.Add_r64_rm64, Address, State, (int)((byte*)&CpuState.SegmentAt(&c, op->Seg)->Base - (byte*)&c));
        }
    }

    /// <summary>
    /// After a store: when it hit a granule with decoded code, leave behind this op and say what was written. The store is not made again: others may have
    /// written there since. A store is the last thing its op does.
    /// </summary>
    private void EmitCodeCheck(int index, int bytes)
    {
        _a.Add(Instruction.Create(Code.Mov_r64_rm64, Scratch, new MemoryOperand(Tlb1, Entry, 1, CodeBitsOffset, 1)));
        _a.Load(Code.Mov_r64_rm64, Scratch, Scratch);
        _a.Add(Instruction.Create(Code.Mov_r64_rm64, Entry, Address));
        _a.Add(Instruction.Create(Code.Shr_rm64_imm8, Entry, 6));
        _a.Add(Instruction.Create(Code.Bt_rm64_r64, Scratch, Entry));
        _overwritten.Add((index, _a.Jump(Carry), _dirty, bytes));
    }

    private void LeaveIf(byte condition, int index) => _exits.Add((index, _a.Jump(condition), _dirty));

    private void EmitExits()
    {
        for (int i = 0; i < _exits.Count; i++)
        {
            (int op, int jump, uint dirty) = _exits[i];
            _a.Bind(jump);
            while (i + 1 < _exits.Count && _exits[i + 1].Op == op)
                _a.Bind(_exits[++i].Jump);
            Leave(dirty, op);
        }
        CpuState c;
        foreach ((int op, int jump, uint dirty, int bytes) in _overwritten)
        {
            _a.Bind(jump);
            _a.Store(Code.Mov_rm64_r64, State, Address, (int)((byte*)&c.OverwrittenHost - (byte*)&c));
            _a.Add(Instruction.Create(Code.Mov_rm32_imm32, ThunkAssembler.Memory(State, (int)((byte*)&c.OverwrittenBytes - (byte*)&c)), bytes));
            Leave(dirty, op + 1);
        }
    }

    private void Leave(uint dirty, int done)
    {
        for (int n = 0; n < 16; n++)
        {
            if ((dirty & 1u << n) == 0)
                continue;
            if (_wide)
                _a.Store(Code.VEX_Vmovups_ymmm256_ymm, State, Register.YMM0 + n, VectorThunkBuilder.YmmOffset + 32 * n);
            else
                _a.Store(Code.Movups_xmmm128_xmm, State, Register.XMM0 + n, VectorThunkBuilder.YmmOffset + 32 * n);
        }
        _a.Add(Instruction.Create(Code.Mov_r32_imm32, Register.EAX, done));
        if (_wide)
            _a.Plain(Code.VEX_Vzeroupper);
        _a.Plain(Code.Retnq);
    }
}

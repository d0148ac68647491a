using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// The integer ops that a run takes along, between and behind vector instructions. They work on the registers and the lazy flags in the state.
/// </summary>
/// <remarks>SAFETY: as <see cref="RunBuilder"/>; each form does what the case of the same name does in the run loop.</remarks>
internal sealed unsafe partial class RunBuilder
{
    private const Register X = Register.R8, Y = Register.R9;

    private const Register Value = Register.R8, Value32 = Register.R8D, Value16 = Register.R8W, Value8 = Register.R8L;

    /// <summary>How an inline kind is emitted.</summary>
    private enum IntegerForm : byte { None, Nop, Move, MoveImmediate, Widen, Lea, Alu64, AluImmediate64, Alu32, AluImmediate32, Load, Store, Flagged }

    /// <summary>Form of a kind, and the host instruction at its core.</summary>
    private static (IntegerForm Form, Code Code, int Size) Describe(OpKind kind) => kind switch
    {
        OpKind.Nop => (IntegerForm.Nop, default, 0),
        OpKind.MovRR64 => (IntegerForm.Widen, Code.Mov_r64_rm64, 8),
        OpKind.MovRR32 => (IntegerForm.Widen, Code.Mov_r32_rm32, 4),
        OpKind.MovzxB => (IntegerForm.Widen, Code.Movzx_r32_rm8, 1),
        OpKind.MovzxW => (IntegerForm.Widen, Code.Movzx_r32_rm16, 2),
        OpKind.MovsxD64 => (IntegerForm.Widen, Code.Movsxd_r64_rm32, 4),
        OpKind.MovRI => (IntegerForm.MoveImmediate, default, 0),
        OpKind.Lea64 or OpKind.LeaBase64 => (IntegerForm.Lea, default, 8),
        OpKind.Lea32 => (IntegerForm.Lea, default, 4),
        OpKind.AddRR64Nf => (IntegerForm.Alu64, Code.Add_rm64_r64, 8),
        OpKind.SubRR64Nf => (IntegerForm.Alu64, Code.Sub_rm64_r64, 8),
        OpKind.AndRR64Nf => (IntegerForm.Alu64, Code.And_rm64_r64, 8),
        OpKind.OrRR64Nf => (IntegerForm.Alu64, Code.Or_rm64_r64, 8),
        OpKind.XorRR64Nf => (IntegerForm.Alu64, Code.Xor_rm64_r64, 8),
        OpKind.AddRI64Nf => (IntegerForm.AluImmediate64, Code.Add_rm64_imm32, 8),
        OpKind.SubRI64Nf => (IntegerForm.AluImmediate64, Code.Sub_rm64_imm32, 8),
        OpKind.AndRI64Nf => (IntegerForm.AluImmediate64, Code.And_rm64_imm32, 8),
        OpKind.ShlRI64Nf => (IntegerForm.AluImmediate64, Code.Shl_rm64_imm8, 8),
        OpKind.ShrRI64Nf => (IntegerForm.AluImmediate64, Code.Shr_rm64_imm8, 8),
        OpKind.AddRR32Nf => (IntegerForm.Alu32, Code.Add_r32_rm32, 4),
        OpKind.SubRR32Nf => (IntegerForm.Alu32, Code.Sub_r32_rm32, 4),
        OpKind.AndRR32Nf => (IntegerForm.Alu32, Code.And_r32_rm32, 4),
        OpKind.OrRR32Nf => (IntegerForm.Alu32, Code.Or_r32_rm32, 4),
        OpKind.XorRR32Nf => (IntegerForm.Alu32, Code.Xor_r32_rm32, 4),
        OpKind.AddRI32Nf => (IntegerForm.AluImmediate32, Code.Add_rm32_imm32, 4),
        OpKind.SubRI32Nf => (IntegerForm.AluImmediate32, Code.Sub_rm32_imm32, 4),
        OpKind.AndRI32Nf => (IntegerForm.AluImmediate32, Code.And_rm32_imm32, 4),
        OpKind.ShlRI32Nf => (IntegerForm.AluImmediate32, Code.Shl_rm32_imm8, 4),
        OpKind.ShrRI32Nf => (IntegerForm.AluImmediate32, Code.Shr_rm32_imm8, 4),
        OpKind.Load64B or OpKind.Load64X => (IntegerForm.Load, Code.Mov_r64_rm64, 8),
        OpKind.Load32B or OpKind.Load32X => (IntegerForm.Load, Code.Mov_r32_rm32, 4),
        OpKind.LoadzxWB or OpKind.LoadzxWX => (IntegerForm.Load, Code.Movzx_r32_rm16, 2),
        OpKind.LoadzxBB or OpKind.LoadzxBX => (IntegerForm.Load, Code.Movzx_r32_rm8, 1),
        OpKind.LoadsxD64B or OpKind.LoadsxD64X => (IntegerForm.Load, Code.Movsxd_r64_rm32, 4),
        OpKind.Store64B or OpKind.Store64X => (IntegerForm.Store, Code.Mov_rm64_r64, 8),
        OpKind.Store32B or OpKind.Store32X => (IntegerForm.Store, Code.Mov_rm32_r32, 4),
        OpKind.Store16B or OpKind.Store16X => (IntegerForm.Store, Code.Mov_rm16_r16, 2),
        OpKind.Store8B or OpKind.Store8X => (IntegerForm.Store, Code.Mov_rm8_r8, 1),
        OpKind.AddRR64 or OpKind.AddRI64 or OpKind.SubRR64 or OpKind.SubRI64 or OpKind.AndRR64 or OpKind.AndRI64 or OpKind.OrRR64
            or OpKind.XorRR64 => (IntegerForm.Flagged, default, 8),
        OpKind.AddRR32 or OpKind.AddRI32 or OpKind.SubRR32 or OpKind.SubRI32 or OpKind.AndRR32 or OpKind.AndRI32 or OpKind.OrRR32
            or OpKind.XorRR32 => (IntegerForm.Flagged, default, 4),
        _ => default,
    };

    private static bool CanTakeAlong(Op* op) => op->Kind != (ushort)OpKind.Generic && Describe((OpKind)op->Kind).Form != IntegerForm.None;

    private static Register Result(Code code) => code is Code.Mov_r64_rm64 or Code.Movsxd_r64_rm32 ? Value : Value32;

    private void EmitInteger(Op* op, int index)
    {
        (IntegerForm form, Code code, int size) = Describe((OpKind)op->Kind);
        switch (form)
        {
            case IntegerForm.Widen:
                _a.Load(code, Result(code), State, op->Reg1);
                _a.Store(Code.Mov_rm64_r64, State, Value, op->Reg0);
                break;
            case IntegerForm.MoveImmediate:
                _a.Add(Instruction.Create(Code.Mov_r64_imm64, Value, op->Imm));
                _a.Store(Code.Mov_rm64_r64, State, Value, op->Reg0);
                break;
            case IntegerForm.Lea:
                EmitEffective(op);
                if (size == 4)
                    _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, Register.EAX));
                _a.Store(Code.Mov_rm64_r64, State, Address, op->Reg0);
                break;
            case IntegerForm.Alu64:
                _a.Load(Code.Mov_r64_rm64, Value, State, op->Reg1);
                _a.Store(code, State, Value, op->Reg0);
                break;
            case IntegerForm.AluImmediate64:
                _a.Add(Instruction.Create(code, ThunkAssembler.Memory(State, op->Reg0), Immediate(code, op)));
                break;
            case IntegerForm.Alu32:
                _a.Load(Code.Mov_r32_rm32, Value32, State, op->Reg0);
                _a.Load(code, Value32, State, op->Reg1);
                _a.Store(Code.Mov_rm64_r64, State, Value, op->Reg0);
                break;
            case IntegerForm.AluImmediate32:
                _a.Load(Code.Mov_r32_rm32, Value32, State, op->Reg0);
                _a.Add(Instruction.Create(code, Value32, Immediate(code, op)));
                _a.Store(Code.Mov_rm64_r64, State, Value, op->Reg0);
                break;
            case IntegerForm.Load:
                EmitAddress(op, size, 0, index, write: false);
                _a.Load(code, Result(code), Address);
                _a.Store(Code.Mov_rm64_r64, State, Value, op->Reg0);
                break;
            case IntegerForm.Flagged:
                EmitFlagged(op, size == 8);
                break;
            case IntegerForm.Store:
                _a.Load(Code.Mov_r64_rm64, Value, State, op->Reg1);
                EmitAddress(op, size, 0, index, write: true);
                _a.Store(code, Address, size switch { 8 => Value, 4 => Value32, 2 => Value16, _ => Value8 });
                EmitCodeCheck(index, size);
                break;
        }
    }

    /// <summary>Operation of a form that sets flags.</summary>
    private enum Arithmetic : byte { Add, Sub, And, Or, Xor }

    private const Register ResultValue = Register.R10, ResultValue32 = Register.R10D;

    private void EmitFlagged(Op* op, bool wide)
    {
        OpKind kind = (OpKind)op->Kind;
        bool immediate = kind is OpKind.AddRI64 or OpKind.SubRI64 or OpKind.AndRI64 or OpKind.AddRI32 or OpKind.SubRI32 or OpKind.AndRI32;
        Arithmetic operation = kind switch
        {
            OpKind.AddRR64 or OpKind.AddRI64 or OpKind.AddRR32 or OpKind.AddRI32 => Arithmetic.Add,
            OpKind.SubRR64 or OpKind.SubRI64 or OpKind.SubRR32 or OpKind.SubRI32 => Arithmetic.Sub,
            OpKind.AndRR64 or OpKind.AndRI64 or OpKind.AndRR32 or OpKind.AndRI32 => Arithmetic.And,
            OpKind.OrRR64 or OpKind.OrRR32 => Arithmetic.Or,
            _ => Arithmetic.Xor,
        };
        LoadPair(op, immediate, wide);
        Combine(operation);
        if (!wide)
            _a.Add(Instruction.Create(Code.Mov_r32_rm32, ResultValue32, ResultValue32));
        _a.Store(Code.Mov_rm64_r64, State, ResultValue, op->Reg0);
        StoreFlags(operation, wide);
    }

    /// <summary>The operands into X and Y, zero-extended when narrow.</summary>
    private void LoadPair(Op* op, bool immediate, bool wide)
    {
        Code load = wide ? Code.Mov_r64_rm64 : Code.Mov_r32_rm32;
        _a.Load(load, wide ? X : Register.R8D, State, op->Reg0);
        if (!immediate)
            _a.Load(load, wide ? Y : Register.R9D, State, op->Reg1);
        else
            _a.Add(Instruction.Create(Code.Mov_r64_imm64, Y, wide ? op->Imm : (uint)op->Imm));
    }

    /// <summary>X op Y into the result register.</summary>
    private void Combine(Arithmetic operation)
    {
        _a.Add(Instruction.Create(Code.Mov_r64_rm64, ResultValue, X));
        Code code = operation switch
        {
            Arithmetic.Add => Code.Add_r64_rm64,
            Arithmetic.Sub => Code.Sub_r64_rm64,
            Arithmetic.And => Code.And_r64_rm64,
            Arithmetic.Or => Code.Or_r64_rm64,
            _ => Code.Xor_r64_rm64,
        };
        _a.Add(Instruction.Create(code, ResultValue, Y));
    }

    /// <summary>The lazy flags of X op Y: see <see cref="Flags"/>. Destroys X, the result and the scratch registers.</summary>
    private void StoreFlags(Arithmetic operation, bool wide)
    {
        CpuState c;
        byte* state = (byte*)&c;
        int zero = (int)((byte*)&c.FlagsZero - state), sign = (int)((byte*)&c.FlagsSign - state), carry = (int)((byte*)&c.FlagsCarry - state);
        if (!wide)
            _a.Add(Instruction.Create(Code.Movsxd_r64_rm32, ResultValue, ResultValue32));
        _a.Store(Code.Mov_rm64_r64, State, ResultValue, zero);
        _a.Store(Code.Mov_rm64_r64, State, ResultValue, sign);
        if (operation is not (Arithmetic.Add or Arithmetic.Sub))
        {
            _a.Add(Instruction.Create(Code.Mov_rm64_imm32, ThunkAssembler.Memory(State, carry), 0));
            return;
        }
        // Addition: x & y | (x | y) & ~r. Subtraction: ~x & y | (~x | y) & r.
        _a.Add(Instruction.Create(Code.Not_rm64, operation == Arithmetic.Add ? ResultValue : X));
        _a.Add(Instruction.Create(Code.Mov_r64_rm64, Scratch, X));
        _a.Add(Instruction.Create(Code.And_r64_rm64, Scratch, Y));
        _a.Add(Instruction.Create(Code.Or_r64_rm64, X, Y));
        _a.Add(Instruction.Create(Code.And_r64_rm64, X, ResultValue));
        _a.Add(Instruction.Create(Code.Or_r64_rm64, Scratch, X));
        if (!wide)
        {
            _a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, Register.EDX));
            _a.Add(Instruction.Create(Code.Shl_rm64_imm8, Scratch, 32));
            _a.Add(Instruction.Create(Code.Or_r64_rm64, Scratch, Register.RAX));
        }
        _a.Store(Code.Mov_rm64_r64, State, Scratch, carry);
    }

    private static int Immediate(Code code, Op* op) => code switch
    {
        Code.Shl_rm64_imm8 or Code.Shr_rm64_imm8 => (int)op->Imm & 63,
        Code.Shl_rm32_imm8 or Code.Shr_rm32_imm8 => (int)op->Imm & 31,
        _ => (int)op->Imm,
    };
}

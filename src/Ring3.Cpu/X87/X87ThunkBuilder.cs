using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Emits the thunk of an x87 form, which works on the live register stack: RDI points to the memory operand, ESI holds RFLAGS for FCMOVcc, the result is RFLAGS
/// for FCOMI and its kin, or the status word for FNSTSW.
/// </summary>
/// <remarks>SAFETY: emits code that touches only the operands passed to it.</remarks>
internal static unsafe class X87ThunkBuilder
{
    /// <summary>Builds the form of an instruction with operand ST(<paramref name="sti"/>) or in memory.</summary>
    public static VectorForm Build(Code code, int sti)
    {
        OpCodeInfo info = code.ToOpCode();
        VectorForm form = default;
        form.Code = (ushort)code;
        form.MemoryIndex = 255;
        Instruction instruction = new() { Code = code };
        for (int i = 0; i < info.OpCount; i++)
        {
            OpCodeOperandKind kind = info.GetOpKind(i);
            if (kind == OpCodeOperandKind.mem)
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                instruction.MemoryBase = Register.RDI;
                form.MemoryIndex = (byte)i;
                form.MemorySize = (byte)info.MemorySize.GetSize();
            }
            else
            {
                instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
                instruction.SetOpRegister(i,
                    kind switch { OpCodeOperandKind.st0 => Register.ST0, OpCodeOperandKind.ax => Register.AX, _ => Register.ST0 + sti });
            }
        }
        InstructionInfo used = new InstructionInfoFactory().GetInfo(instruction);
        if (form.MemoryIndex != 255 && used.GetOpAccess(form.MemoryIndex) is OpAccess.Write or OpAccess.CondWrite or OpAccess.ReadWrite)
            form.Flags |= VectorFormFlags.StoresMemory;
        // Iced also counts C0-C3 of the status word among the flags.
        if ((instruction.RflagsRead & (RflagsBits.CF | RflagsBits.ZF | RflagsBits.PF)) != 0)
            form.Flags |= VectorFormFlags.ReadsFlags;
        if ((instruction.RflagsModified & RflagsBits.ZF) != 0)
            form.Flags |= VectorFormFlags.WritesFlags;
        if (instruction.GetFpuStackIncrementInfo() is { Increment: > 0, Conditional: false })
            form.Flags |= VectorFormFlags.Pops;

        ThunkAssembler a = new();
        if ((form.Flags & VectorFormFlags.ReadsFlags) != 0)
        {
            a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, Register.ESI));
            a.Add(Instruction.Create(Code.Shl_rm32_imm8, Register.EAX, 8));
            a.Plain(Code.Sahf);
        }
        a.Add(instruction);
        if ((form.Flags & VectorFormFlags.WritesFlags) != 0)
        {
            a.Plain(Code.Pushfq);
            a.Add(Instruction.Create(Code.Pop_r64, Register.RAX));
        }
        a.Plain(Code.Retnq);
        form.X87Entry = (delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong>)a.Finish();
        return form;
    }
}

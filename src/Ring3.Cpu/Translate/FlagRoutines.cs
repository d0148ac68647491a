using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Out of line: the guest's flags into the host's, from wherever the state says that they are (<see cref="CpuState.CcKind"/>). A table of routines, one for
/// each kind and size.
/// </summary>
/// <remarks>
/// SAFETY: the routines read the state through <see cref="HostRegisters.Base"/> and restore the registers that they use; the table has an entry for every
/// value of CcKind.
/// </remarks>
internal static unsafe class FlagRoutines
{
    private const int Sizes = 4, SizeShift = 4, Kinds = 1 << SizeShift;

    private static readonly ExecutableMemory s_memory = new(4096);
    private static readonly nint* s_table = (nint*)HostMemory.Map(Kinds * Sizes * (nuint)sizeof(nint));

    /// <summary>Called from translated code. Changes nothing but the host's flags.</summary>
    public static readonly nint Load;

    private const Register Scratch = HostRegisters.Spare;

    static FlagRoutines()
    {
        RegionAssembler a = new();
        for (int i = 0; i < Kinds * Sizes; i++)
        {
            a.Clear();
            FlagKind kind = (FlagKind)(i & (Kinds - 1));
            switch (kind)
            {
                case FlagKind.Words:
                    FromWords(a);
                    break;
                case FlagKind.Packed:
                    a.Add(Instruction.Create(Code.Movzx_r32_rm16, Register.EAX, RegionAssembler.State(StateLayout.CcA)));
                    ToFlags(a);
                    break;
                default:
                    FromRecipe(a, kind, i >> SizeShift);
                    break;
            }
            a.Add(Instruction.Create(Code.Pop_r64, Scratch));
            a.Add(Instruction.Create(Code.Pop_r64, Register.RAX));
            a.Add(Instruction.Create(Code.Retnq));
            s_table[i] = s_memory.Add(a.Bytes);
        }
        a.Clear();
        a.Add(Instruction.Create(Code.Push_r64, Register.RAX));
        a.Add(Instruction.Create(Code.Push_r64, Scratch));
        a.Add(Instruction.Create(Code.Mov_r32_rm32, Register.EAX, RegionAssembler.State(StateLayout.CcKind)));
        a.Immediate(Scratch, (ulong)s_table);
        a.Add(Instruction.Create(Code.Jmp_rm64, new MemoryOperand(Scratch, Register.RAX, sizeof(long))));
        Load = s_memory.Add(a.Bytes);
    }

    /// <summary>AL has OF, AH the others as SAHF takes them.</summary>
    private static void ToFlags(RegionAssembler a)
    {
        a.Add(Instruction.Create(Code.Add_rm8_imm8, Register.AL, 0x7f));
        a.Add(Instruction.Create(Code.Sahf));
    }

    /// <summary>See <see cref="Flags"/>.</summary>
    private static void FromWords(RegionAssembler a)
    {
        const Register Image = Register.RCX;
        Register image = HostRegisters.Sized(Image, 4), scratch = HostRegisters.Sized(Scratch, 4);
        a.Add(Instruction.Create(Code.Push_r64, Image));
        a.Load(Register.RAX, StateLayout.FlagsCarry);
        a.Move(Image, Register.RAX);
        a.Add(Instruction.Create(Code.Shr_rm64_imm8, Image, 63));
        a.Add(Instruction.Create(Code.Mov_r32_rm32, scratch, Register.EAX));
        a.Add(Instruction.Create(Code.And_rm32_imm8, scratch, 8));
        a.Add(Instruction.Create(Code.Add_r32_rm32, scratch, scratch));
        a.Add(Instruction.Create(Code.Or_r32_rm32, image, scratch));
        a.Add(Instruction.Create(Code.Lea_r64_m, Scratch, new MemoryOperand(Register.RAX, Register.RAX)));
        a.Add(Instruction.Create(Code.Xor_r64_rm64, Register.RAX, Scratch));
        a.Add(Instruction.Create(Code.Shr_rm64_imm8, Register.RAX, 63));
        a.Load(Scratch, StateLayout.FlagsSign);
        a.Add(Instruction.Create(Code.Test_rm8_r8, HostRegisters.Sized(Scratch, 1), HostRegisters.Sized(Scratch, 1)));
        a.Add(Instruction.Create(Code.Setp_rm8, Register.AH));
        a.Add(Instruction.Create(Code.Shl_rm8_imm8, Register.AH, 2));
        a.Add(Instruction.Create(Code.Or_r8_rm8, Register.CL, Register.AH));
        a.Add(Instruction.Create(Code.Shr_rm64_imm8, Scratch, 56));
        a.Add(Instruction.Create(Code.And_rm32_imm32, scratch, 0x80));
        a.Add(Instruction.Create(Code.Or_r32_rm32, image, scratch));
        a.Add(Instruction.Create(Code.Cmp_rm64_imm8, RegionAssembler.State(StateLayout.FlagsZero), 0));
        a.Add(Instruction.Create(Code.Sete_rm8, Register.AH));
        a.Add(Instruction.Create(Code.Shl_rm8_imm8, Register.AH, 6));
        a.Add(Instruction.Create(Code.Or_r8_rm8, Register.AH, Register.CL));
        ToFlags(a);
        a.Add(Instruction.Create(Code.Pop_r64, Image));
    }

    /// <summary>As the builder's own code for a recipe, with values in memory.</summary>
    private static void FromRecipe(RegionAssembler a, FlagKind kind, int size)
    {
        Register x = HostRegisters.Sized(Register.RAX, 1 << size);
        MemoryOperand b = RegionAssembler.State(StateLayout.CcB);
        a.Load(Register.RAX, StateLayout.CcA);
        switch (kind)
        {
            case FlagKind.Compare:
                a.Add(Instruction.Create(Sized(size, Code.Cmp_r8_rm8, Code.Cmp_r16_rm16, Code.Cmp_r32_rm32, Code.Cmp_r64_rm64), x, b));
                break;
            case FlagKind.Subtract:
                a.Add(Instruction.Create(Sized(size, Code.Add_r8_rm8, Code.Add_r16_rm16, Code.Add_r32_rm32, Code.Add_r64_rm64), x, b));
                a.Add(Instruction.Create(Sized(size, Code.Cmp_r8_rm8, Code.Cmp_r16_rm16, Code.Cmp_r32_rm32, Code.Cmp_r64_rm64), x, b));
                break;
            case FlagKind.Add:
                a.Add(Instruction.Create(Sized(size, Code.Sub_r8_rm8, Code.Sub_r16_rm16, Code.Sub_r32_rm32, Code.Sub_r64_rm64), x, b));
                a.Add(Instruction.Create(Sized(size, Code.Add_r8_rm8, Code.Add_r16_rm16, Code.Add_r32_rm32, Code.Add_r64_rm64), x, b));
                break;
            case FlagKind.Negate:
                Code negate = Sized(size, Code.Neg_rm8, Code.Neg_rm16, Code.Neg_rm32, Code.Neg_rm64);
                a.Add(Instruction.Create(negate, x));
                a.Add(Instruction.Create(negate, x));
                break;
            case FlagKind.Logic:
                a.Add(Instruction.Create(Sized(size, Code.Test_rm8_r8, Code.Test_rm16_r16, Code.Test_rm32_r32, Code.Test_rm64_r64), x, x));
                break;
            case FlagKind.ShiftLeft:
                ByCount(a, Sized(size, Code.Shl_rm8_CL, Code.Shl_rm16_CL, Code.Shl_rm32_CL, Code.Shl_rm64_CL), x);
                break;
            case FlagKind.ShiftRight:
                ByCount(a, Sized(size, Code.Shr_rm8_CL, Code.Shr_rm16_CL, Code.Shr_rm32_CL, Code.Shr_rm64_CL), x);
                break;
            case FlagKind.ShiftRightSigned:
                ByCount(a, Sized(size, Code.Sar_rm8_CL, Code.Sar_rm16_CL, Code.Sar_rm32_CL, Code.Sar_rm64_CL), x);
                break;
            default:
                a.Add(Instruction.Create(Sized(size, Code.Test_rm8_r8, Code.Test_rm16_r16, Code.Test_rm32_r32, Code.Test_rm64_r64), b, x));
                break;
        }
    }

    private static void ByCount(RegionAssembler a, Code shift, Register x)
    {
        a.Move(Scratch, Register.RCX);
        a.Add(Instruction.Create(Code.Mov_r8_rm8, Register.CL, RegionAssembler.State(StateLayout.CcB)));
        a.Add(Instruction.Create(shift, x, Register.CL));
        a.Move(Register.RCX, Scratch);
    }

    private static Code Sized(int size, Code bytes, Code words, Code dwords, Code qwords) => size switch { 0 => bytes, 1 => words, 2 => dwords, _ => qwords };
}

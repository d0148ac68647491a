using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Host code of a region while it is made.</summary>
internal sealed class RegionAssembler : HostAssembler
{
    /// <summary>Operand at <see cref="HostRegisters.Base"/> + displacement.</summary>
    public static MemoryOperand State(int displacement) => Memory(HostRegisters.Base, displacement);

    public void Load(Register register, int displacement) => Add(Instruction.Create(Code.Mov_r64_rm64, register, State(displacement)));

    public void Store(int displacement, Register register) => Add(Instruction.Create(Code.Mov_rm64_r64, State(displacement), register));

    public void Move(Register to, Register from) => Add(Instruction.Create(Code.Mov_r64_rm64, to, from));

    public void Immediate(Register register, ulong value)
    {
        if (value <= uint.MaxValue)
            Add(Instruction.Create(Code.Mov_r32_imm32, HostRegisters.Sized(register, 4), (uint)value));
        else
            Add(Instruction.Create(Code.Mov_r64_imm64, register, value));
    }

    /// <summary>to = from + displacement. Changes no flag.</summary>
    public void Lea(Register to, Register from, long displacement) =>
        Add(Instruction.Create(Code.Lea_r64_m, to, new MemoryOperand(from, displacement, 8)));
}

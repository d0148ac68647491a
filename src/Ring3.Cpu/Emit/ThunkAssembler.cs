using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Host code of thunks, from white-listed forms.</summary>
internal sealed class ThunkAssembler : HostAssembler
{
    /// <summary>
    /// One instruction whose two operands are a register and memory at <paramref name="pointer"/> + <paramref name="displacement"/>, load direction.
    /// </summary>
    public void Load(Code code, Register register, Register pointer, int displacement = 0)
        => Add(Instruction.Create(code, register, Memory(pointer, displacement)));

    /// <summary>As <see cref="Load"/>, store direction.</summary>
    public void Store(Code code, Register pointer, Register register, int displacement = 0)
        => Add(Instruction.Create(code, Memory(pointer, displacement), register));

    /// <summary>Instruction without explicit operands.</summary>
    public void Plain(Code code) => Add(Instruction.Create(code));

    /// <summary>Instruction with one memory operand.</summary>
    public void Unary(Code code, Register pointer, int displacement = 0) => Add(Instruction.Create(code, Memory(pointer, displacement)));

    /// <summary>Publishes the code and empties the assembler for the next thunk.</summary>
    public nint Finish(ThunkKind kind = ThunkKind.Leaf)
    {
        nint entry = ThunkMemory.Add(Bytes, kind);
        Clear();
        return entry;
    }
}

using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Collects the host code of one thunk. Instructions are encoded from white-listed forms; guest bytes never get here. Code is position-independent.
/// </summary>
internal sealed class ThunkAssembler
{
    private sealed class Sink : CodeWriter
    {
        public byte[] Bytes = new byte[256];
        public int Count;

        public override void WriteByte(byte value)
        {
            if (Count == Bytes.Length)
                Array.Resize(ref Bytes, 2 * Count);
            Bytes[Count++] = value;
        }
    }

    private readonly Sink _sink = new();
    private readonly Encoder _encoder;

    public ThunkAssembler() => _encoder = Encoder.Create(64, _sink);

    /// <summary>Bytes so far; also the position of the next instruction.</summary>
    public int Position => _sink.Count;

    public void Add(in Instruction instruction) => _encoder.Encode(instruction, (ulong)_sink.Count);

    /// <summary>One instruction whose two operands are a register and memory at <paramref name="pointer"/> + <paramref name="displacement"/>, load direction.</summary>
    public void Load(Code code, Register register, Register pointer, int displacement = 0)
        => Add(Instruction.Create(code, register, Memory(pointer, displacement)));

    /// <summary>As <see cref="Load"/>, store direction.</summary>
    public void Store(Code code, Register pointer, Register register, int displacement = 0)
        => Add(Instruction.Create(code, Memory(pointer, displacement), register));

    /// <summary>Instruction without explicit operands.</summary>
    public void Plain(Code code) => Add(Instruction.Create(code));

    /// <summary>Instruction with one memory operand.</summary>
    public void Unary(Code code, Register pointer, int displacement = 0) => Add(Instruction.Create(code, Memory(pointer, displacement)));

    public static MemoryOperand Memory(Register pointer, int displacement = 0)
        => displacement == 0 ? new MemoryOperand(pointer) : new MemoryOperand(pointer, displacement, displacement is >= -128 and < 128 ? 1 : 8);

    /// <summary>Conditional jump with a 32-bit displacement (second opcode byte 0F 8x); returns the place to give to <see cref="Bind"/>.</summary>
    public int Jump(byte condition)
    {
        _sink.WriteByte(0x0f);
        _sink.WriteByte((byte)(0x80 | condition));
        for (int i = 0; i < 4; i++)
            _sink.WriteByte(0);
        return _sink.Count;
    }

    /// <summary>Unconditional jump, to be bound later.</summary>
    public int Jump()
    {
        _sink.WriteByte(0xe9);
        for (int i = 0; i < 4; i++)
            _sink.WriteByte(0);
        return _sink.Count;
    }

    /// <summary>Unconditional jump to an earlier position.</summary>
    public void JumpTo(int position)
    {
        int jump = Jump();
        BitConverter.TryWriteBytes(_sink.Bytes.AsSpan(jump - 4), position - jump);
    }

    /// <summary>Makes a jump go to the current position.</summary>
    public void Bind(int jump) => BitConverter.TryWriteBytes(_sink.Bytes.AsSpan(jump - 4), _sink.Count - jump);

    /// <summary>Publishes the code and empties the assembler for the next thunk.</summary>
    public nint Finish(ThunkKind kind = ThunkKind.Leaf)
    {
        nint entry = ThunkMemory.Add(_sink.Bytes.AsSpan(0, _sink.Count), kind);
        _sink.Count = 0;
        return entry;
    }
}

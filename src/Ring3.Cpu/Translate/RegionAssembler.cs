using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Host code of a region while it is made. Position-independent; jumps have 32-bit displacements.</summary>
/// <remarks>SAFETY: writes to its own buffer.</remarks>
internal sealed class RegionAssembler
{
    private sealed class Sink : CodeWriter
    {
        public byte[] Bytes = new byte[4096];
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

    public RegionAssembler() => _encoder = Encoder.Create(64, _sink);

    public int Position => _sink.Count;
    public ReadOnlySpan<byte> Code => _sink.Bytes.AsSpan(0, _sink.Count);

    public void Clear() => _sink.Count = 0;

    public void Add(in Instruction instruction) => _encoder.Encode(instruction, (ulong)_sink.Count);

    /// <summary>Whether the host has an encoding of the instruction.</summary>
    public bool TryAdd(in Instruction instruction)
    {
        int start = _sink.Count;
        if (_encoder.TryEncode(instruction, (ulong)start, out _, out _))
            return true;
        _sink.Count = start;
        return false;
    }

    public void Load(Register register, int displacement) => Add(Instruction.Create(Iced.Intel.Code.Mov_r64_rm64, register, State(displacement)));
    public void Store(int displacement, Register register) => Add(Instruction.Create(Iced.Intel.Code.Mov_rm64_r64, State(displacement), register));
    public void Move(Register to, Register from) => Add(Instruction.Create(Iced.Intel.Code.Mov_r64_rm64, to, from));
    public void Immediate(Register register, ulong value)
    {
        if (value <= uint.MaxValue)
            Add(Instruction.Create(Iced.Intel.Code.Mov_r32_imm32, HostRegisters.Sized(register, 4), (uint)value));
        else
            Add(Instruction.Create(Iced.Intel.Code.Mov_r64_imm64, register, value));
    }

    public void Lea(Register to, Register from, long displacement) => Add(Instruction.Create(Iced.Intel.Code.Lea_r64_m, to, new MemoryOperand(from, displacement, 8)));

    /// <summary>Operand at <see cref="HostRegisters.Base"/> + displacement.</summary>
    public static MemoryOperand State(int displacement) => new(HostRegisters.Base, displacement, displacement is >= -128 and < 128 ? 1 : 8);

    /// <summary>Conditional jump, to be bound; the condition as in the encoding of Jcc.</summary>
    public int Jump(int condition)
    {
        _sink.WriteByte(0x0f);
        _sink.WriteByte((byte)(0x80 | condition));
        return Displacement();
    }

    public int Jump()
    {
        _sink.WriteByte(0xe9);
        return Displacement();
    }

    private int Displacement()
    {
        for (int i = 0; i < 4; i++)
            _sink.WriteByte(0);
        return _sink.Count;
    }

    public void Bind(int jump) => Bind(jump, _sink.Count);

    public void Bind(int jump, int target) => BitConverter.TryWriteBytes(_sink.Bytes.AsSpan(jump - 4), target - jump);
}

using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Collects host code: position-independent, jumps with 32-bit displacements.</summary>
/// <remarks>Instructions are encoded from their parts; guest bytes never get here as they are.</remarks>
internal abstract class HostAssembler
{
    private sealed class Sink : CodeWriter
    {
        public byte[] Bytes = new byte[1024];
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

    protected HostAssembler() => _encoder = Encoder.Create(64, _sink);

    /// <summary>Bytes so far; also the position of the next instruction.</summary>
    public int Position => _sink.Count;

    public ReadOnlySpan<byte> Bytes => _sink.Bytes.AsSpan(0, _sink.Count);

    public void Clear() => _sink.Count = 0;

    public void Add(in Instruction instruction)
    {
        Room();
        int bytes = HostEncoder.Encode(instruction, _sink.Bytes.AsSpan(_sink.Count));
        if (bytes == 0)
            _encoder.Encode(instruction, (ulong)_sink.Count);
        _sink.Count += bytes;
    }

    /// <summary>Makes room for an instruction.</summary>
    protected void Room()
    {
        if (_sink.Bytes.Length - _sink.Count < 2 * HostEncoder.MaxBytes)
            Array.Resize(ref _sink.Bytes, 2 * _sink.Bytes.Length);
    }

    public static MemoryOperand Memory(Register pointer, int displacement = 0)
        => displacement == 0 ? new MemoryOperand(pointer) : new MemoryOperand(pointer, displacement, displacement is >= -128 and < 128 ? 1 : 8);

    /// <summary>One byte, in room that was made.</summary>
    protected void Put(int value) => _sink.Bytes[_sink.Count++] = (byte)value;

    protected void Put32(int value)
    {
        System.Buffers.Binary.BinaryPrimitives.WriteInt32LittleEndian(_sink.Bytes.AsSpan(_sink.Count), value);
        _sink.Count += sizeof(int);
    }

    /// <summary>Conditional jump (second opcode byte 0F 8x); returns the place to give to <see cref="Bind(int)"/>.</summary>
    public int Jump(byte condition)
    {
        Room();
        Put(0x0f);
        Put(0x80 | condition);
        return Displacement();
    }

    /// <summary>Unconditional jump, to be bound.</summary>
    public int Jump()
    {
        Room();
        Put(0xe9);
        return Displacement();
    }

    /// <summary>A NOP with a displacement to be bound, which leads from its end.</summary>
    public int Nop()
    {
        Room();
        Put(0x0f);
        Put(0x1f);
        Put(0x84);
        Put(0);
        return Displacement();
    }

    private int Displacement()
    {
        Put32(0);
        return _sink.Count;
    }

    /// <summary>Makes a jump go to the current position.</summary>
    public void Bind(int jump) => Bind(jump, _sink.Count);

    /// <summary>Makes a jump go to a position.</summary>
    public void Bind(int jump, int position) => BitConverter.TryWriteBytes(_sink.Bytes.AsSpan(jump - 4), position - jump);
}

using System.Buffers.Binary;
using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Collects host code: position-independent, jumps with 32-bit displacements.</summary>
/// <remarks>Instructions are encoded from their parts; guest bytes never get here as they are.</remarks>
internal abstract class HostAssembler
{
    private sealed class Sink(HostAssembler assembler) : CodeWriter
    {
        public override void WriteByte(byte value) => assembler.Put(value, 1);
    }

    private byte[] _bytes = new byte[1024];
    private int _count;
    private Encoder? _encoder;

    /// <summary>Bytes so far; also the position of the next instruction.</summary>
    public int Position => _count;

    public ReadOnlySpan<byte> Bytes => _bytes.AsSpan(0, _count);

    public void Clear() => _count = 0;

    public void Add(in Instruction instruction)
    {
        Room();
        int bytes = HostEncoder.Encode(instruction, _bytes.AsSpan(_count));
        if (bytes == 0)
            (_encoder ??= Encoder.Create(64, new Sink(this))).Encode(instruction, (ulong)_count);
        _count += bytes;
    }

    /// <summary>Makes room for an instruction.</summary>
    private void Room()
    {
        if (_bytes.Length - _count < 2 * HostEncoder.MaxBytes)
            Array.Resize(ref _bytes, 2 * _bytes.Length);
    }

    /// <summary>The low bytes of a value, at most an instruction's worth.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void Put(ulong bytes, int count)
    {
        Room();
        BinaryPrimitives.WriteUInt64LittleEndian(_bytes.AsSpan(_count), bytes);
        _count += count;
    }

    public static MemoryOperand Memory(Register pointer, int displacement = 0)
        => displacement == 0 ? new MemoryOperand(pointer) : new MemoryOperand(pointer, displacement, displacement is >= -128 and < 128 ? 1 : 8);

    /// <summary>Conditional jump (second opcode byte 0F 8x); returns the place to give to <see cref="Bind(int)"/>.</summary>
    public int Jump(byte condition)
    {
        Put(0x800fUL | (ulong)condition << 8, 6);
        return _count;
    }

    /// <summary>Unconditional jump, to be bound.</summary>
    public int Jump()
    {
        Put(0xe9, 5);
        return _count;
    }

    /// <summary>A NOP with a displacement to be bound, which leads from its end.</summary>
    public int Nop()
    {
        Put(0x841f0f, 8);
        return _count;
    }

    /// <summary>Makes a jump go to the current position.</summary>
    public void Bind(int jump) => Bind(jump, _count);

    /// <summary>Makes a jump go to a position.</summary>
    public void Bind(int jump, int position) => BinaryPrimitives.WriteInt32LittleEndian(_bytes.AsSpan(jump - 4), position - jump);
}

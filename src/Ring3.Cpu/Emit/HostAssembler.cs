using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Collects host code: position-independent, jumps with 32-bit displacements.</summary>
/// <remarks>
/// Instructions are encoded from their parts; guest bytes never get here as they are.
/// SAFETY: the array is pinned as long as it lives, and there is room behind the end for more than the longest instruction, whenever something is put there.
/// </remarks>
internal abstract unsafe class HostAssembler
{
    private sealed class Sink(HostAssembler assembler) : CodeWriter
    {
        public override void WriteByte(byte value) => assembler.Put(value, 1);
    }

    private const int Margin = 2 * HostEncoder.MaxBytes;

    private byte[] _bytes;
    private byte* _start, _limit;
    private int _count;
    private Encoder? _encoder;

    protected HostAssembler() => Take(_bytes = GC.AllocateUninitializedArray<byte>(1024, true));

    private void Take(byte[] bytes)
    {
        _bytes = bytes;
        _start = (byte*)Unsafe.AsPointer(ref bytes[0]);
        _limit = _start + bytes.Length - Margin;
    }

    /// <summary>Bytes so far; also the position of the next instruction.</summary>
    public int Position => _count;

    public ReadOnlySpan<byte> Bytes => _bytes.AsSpan(0, _count);

    public void Clear() => _count = 0;

    public void Add(in Instruction instruction)
    {
        int bytes = HostEncoder.Encode(instruction, ref *Room());
        if (bytes == 0)
            (_encoder ??= Encoder.Create(64, new Sink(this))).Encode(instruction, (ulong)_count);
        _count += bytes;
    }

    /// <summary>Where the next instruction goes; there is room for it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private byte* Room()
    {
        byte* at = _start + _count;
        return at < _limit ? at : Grow();
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private byte* Grow()
    {
        byte[] more = GC.AllocateUninitializedArray<byte>(2 * _bytes.Length, true);
        Bytes.CopyTo(more);
        Take(more);
        return _start + _count;
    }

    /// <summary>The low bytes of a value, at most an instruction's worth.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    protected void Put(ulong bytes, int count)
    {
        *(ulong*)Room() = bytes;
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

    /// <summary>There is no <see cref="Jump()"/> after all, which was the last instruction.</summary>
    public void TakeJumpBack() => _count -= 5;

    /// <summary>A call, to be bound.</summary>
    public int Call()
    {
        Put(0xe8, 5);
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
    public void Bind(int jump, int position)
    {
        ArgumentOutOfRangeException.ThrowIfGreaterThan((uint)(jump - 4), (uint)_count);
        *(int*)(_start + jump - 4) = position - jump;
    }
}

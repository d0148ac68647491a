using System.Diagnostics;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Operations on a 64-bit register and another or memory: their opcodes in load direction.</summary>
internal enum HostOperation : byte { Add = 0x03, Or = 0x0b, And = 0x23, Sub = 0x2b, Xor = 0x33, Compare = 0x3b, Move = 0x8b }

/// <summary>Host code of a region while it is made. What it is mostly made of is encoded here; <see cref="HostAssembler.Add"/> does the rest.</summary>
internal sealed class RegionAssembler : HostAssembler
{
    private const int WideRex = 0x48;

    /// <summary>Operand at <see cref="HostRegisters.Base"/> + displacement.</summary>
    public static MemoryOperand State(int displacement) => Memory(HostRegisters.Base, displacement);

    private static int Number(Register r) => r - Register.RAX;

    public void Load(Register register, int displacement) => WithState(HostOperation.Move, register, displacement);

    public void Store(int displacement, Register register) => OnState(0x89, register, displacement);

    /// <summary>register = register OPERATION state.</summary>
    public void WithState(HostOperation operation, Register register, int displacement) => OnState((byte)operation, register, displacement);

    private void OnState(byte opcode, Register register, int displacement)
    {
        Room();
        int r = Number(register);
        Put(WideRex | r >> 3 << 2 | 1);
        Put(opcode);
        Displaced(r, Number(HostRegisters.Base), displacement);
    }

    /// <summary>register = register OPERATION field of the entry in <see cref="HostRegisters.Entry"/>. Five bytes unless it is the first.</summary>
    public void WithEntry(HostOperation operation, Register register, int field)
    {
        Room();
        int r = Number(register), b = Number(HostRegisters.Base), x = Number(HostRegisters.Entry);
        Put(WideRex | r >> 3 << 2 | x >> 3 << 1 | b >> 3);
        Put((int)operation);
        Put((field != 0 ? 0x44 : 4) | (r & 7) << 3);
        Put((x & 7) << 3 | b & 7);
        if (field != 0)
            Put(field);
    }

    /// <summary>register = a slot of the frame that translated code runs in. See <see cref="RegionRoutines"/>.</summary>
    public void LoadSlot(Register register, int slot) => OnSlot((byte)HostOperation.Move, register, slot);

    public void StoreSlot(int slot, Register register) => OnSlot(0x89, register, slot);

    private void OnSlot(byte opcode, Register register, int slot)
    {
        Room();
        int r = Number(register);
        Debug.Assert(slot < 16);
        Put(WideRex | r >> 3 << 2);
        Put(opcode);
        Put(0x44 | (r & 7) << 3);
        Put(0x24);
        Put(sizeof(long) * slot);
    }

    public void Move(Register to, Register from) => OnRegisters((byte)HostOperation.Move, to, from);

    public void OnRegisters(HostOperation operation, Register register, Register other) => OnRegisters((byte)operation, register, other);

    private void OnRegisters(byte opcode, Register register, Register other)
    {
        Room();
        int r = Number(register), m = Number(other);
        Put(WideRex | r >> 3 << 2 | m >> 3);
        Put(opcode);
        Put(0xc0 | (r & 7) << 3 | m & 7);
    }

    /// <summary>register = [pointer].</summary>
    public void LoadFrom(Register register, Register pointer) => OnPointer((byte)HostOperation.Move, register, pointer);

    /// <summary>[pointer] = register.</summary>
    public void StoreTo(Register pointer, Register register) => OnPointer(0x89, register, pointer);

    private void OnPointer(byte opcode, Register register, Register pointer)
    {
        Room();
        int r = Number(register), m = Number(pointer);
        Debug.Assert((m & 7) is not (4 or 5));
        Put(WideRex | r >> 3 << 2 | m >> 3);
        Put(opcode);
        Put((r & 7) << 3 | m & 7);
    }

    public void Immediate(Register register, ulong value)
    {
        Room();
        int r = Number(register);
        if (value > uint.MaxValue)
        {
            Immediate64(register, value);
            return;
        }
        if (r >= 8)
            Put(0x41);
        Put(0xb8 | r & 7);
        Put32((int)value);
    }

    /// <summary>With all eight bytes, which are the last ones of the instruction.</summary>
    public void Immediate64(Register register, ulong value)
    {
        Room();
        int r = Number(register);
        Put(WideRex | r >> 3);
        Put(0xb8 | r & 7);
        Put32((int)value);
        Put32((int)(value >> 32));
    }

    /// <summary>to = from + displacement. Changes no flag.</summary>
    public void Lea(Register to, Register from, long displacement)
    {
        Room();
        int r = Number(to), b = Number(from);
        Put(WideRex | r >> 3 << 2 | b >> 3);
        Put(0x8d);
        Displaced(r, b, (int)displacement);
    }

    /// <summary>ModRM, SIB and displacement of [b + displacement].</summary>
    private void Displaced(int r, int b, int displacement)
    {
        int mode = displacement == 0 && (b & 7) != 5 ? 0 : displacement == (sbyte)displacement ? 0x40 : 0x80;
        Put(mode | (r & 7) << 3 | b & 7);
        if ((b & 7) == 4)
            Put(0x24);
        if (mode == 0x40)
            Put(displacement);
        else if (mode == 0x80)
            Put32(displacement);
    }

    /// <summary>to = from rotated. Changes no flag.</summary>
    public void RotateRight(Register to, Register from, int count)
    {
        Room();
        int r = Number(to), m = Number(from);
        Put(0xc4);
        Put((~r & 8) << 4 | 0x40 | (~m & 8) << 2 | 3);
        Put(0xfb);
        Put(0xf0);
        Put(0xc0 | (r & 7) << 3 | m & 7);
        Put(count);
    }

    /// <summary>The lower half of a register AND a mask; the upper half becomes 0.</summary>
    public void And32(Register register, int mask)
    {
        Room();
        int r = Number(register);
        if (r >= 8)
            Put(0x41);
        Put(0x81);
        Put(0xe0 | r & 7);
        Put32(mask);
    }

    public void And64(Register register, int mask)
    {
        Room();
        int r = Number(register);
        Put(WideRex | r >> 3);
        Put(0x81);
        Put(0xe0 | r & 7);
        Put32(mask);
    }

    /// <summary>CF = the bit of <paramref name="bits"/> that the low six bits of <paramref name="number"/> name.</summary>
    public void TestBit(Register bits, Register number)
    {
        Room();
        int r = Number(number), m = Number(bits);
        Put(WideRex | r >> 3 << 2 | m >> 3);
        Put(0x0f);
        Put(0xa3);
        Put(0xc0 | (r & 7) << 3 | m & 7);
    }

    /// <summary>Compares 32 or 64 bits of the state with 0; only the flags of equality count.</summary>
    public void CompareStateWithZero(int displacement, bool wide)
    {
        Room();
        int b = Number(HostRegisters.Base);
        Put((wide ? WideRex : 0x40) | b >> 3);
        Put(0x83);
        Displaced(7, b, displacement);
        Put(0);
    }

    /// <summary>REP MOVS or REP STOS of elements of 1 &lt;&lt; <paramref name="shift"/> bytes.</summary>
    public void RepeatString(bool moves, int shift)
    {
        Room();
        if (shift == 1)
            Put(0x66);
        Put(0xf3);
        if (shift == 3)
            Put(WideRex);
        Put((moves ? 0xa4 : 0xaa) | (shift != 0 ? 1 : 0));
    }

    /// <summary>Adds to 64 bits of the state.</summary>
    public void AddToState(int displacement, int value)
    {
        Room();
        int b = Number(HostRegisters.Base);
        Put(WideRex | b >> 3);
        Put(value == (sbyte)value ? 0x83 : 0x81);
        Displaced(0, b, displacement);
        if (value == (sbyte)value)
            Put(value);
        else
            Put32(value);
    }
}

using System.Diagnostics;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Operations on a 64-bit register and another or memory: their opcodes in load direction.</summary>
internal enum HostOperation : byte { Add = 0x03, Or = 0x0b, And = 0x23, Sub = 0x2b, Xor = 0x33, Compare = 0x3b, Move = 0x8b }

/// <summary>Host code of a region while it is made. What it is mostly made of is encoded here; <see cref="HostAssembler.Add"/> does the rest.</summary>
internal sealed class RegionAssembler : HostAssembler
{
    private const int WideRex = 0x48, NarrowRex = 0x40;

    /// <summary>Operand at <see cref="HostRegisters.Base"/> + displacement.</summary>
    public static MemoryOperand State(int displacement) => Memory(HostRegisters.Base, displacement);

    private static int Number(Register r) => r - Register.RAX;

    public void Load(Register register, int displacement) => WithState(HostOperation.Move, register, displacement);

    public void Store(int displacement, Register register) => OnState(0x89, register, displacement);

    /// <summary>register = register OPERATION state.</summary>
    public void WithState(HostOperation operation, Register register, int displacement) => OnState((byte)operation, register, displacement);

    private void OnState(byte opcode, Register register, int displacement)
    {
        int r = Number(register);
        Displaced(WideRex | r >> 3 << 2 | 1, opcode, r, Number(HostRegisters.Base), displacement);
    }

    /// <summary>register = register OPERATION field of the entry in <see cref="HostRegisters.Entry"/>. Five bytes unless it is the first.</summary>
    public void WithEntry(HostOperation operation, Register register, int field)
    {
        int r = Number(register), b = Number(HostRegisters.Base), x = Number(HostRegisters.Entry);
        int rex = WideRex | r >> 3 << 2 | x >> 3 << 1 | b >> 3, modRM = (field != 0 ? 0x44 : 4) | (r & 7) << 3, sib = (x & 7) << 3 | b & 7;
        Put((ulong)(uint)(rex | (int)operation << 8 | modRM << 16 | sib << 24) | (ulong)field << 32, field != 0 ? 5 : 4);
    }

    /// <summary>register = a slot of <see cref="ProcessorMemory"/>.</summary>
    public void LoadSlot(Register register, int slot) => OnSlot((byte)HostOperation.Move, register, slot);

    public void StoreSlot(int slot, Register register) => OnSlot(0x89, register, slot);

    private void OnSlot(byte opcode, Register register, int slot)
    {
        OnState(opcode, register, ProcessorMemory.Slot(slot));
    }

    public void Move(Register to, Register from) => OnRegisters((byte)HostOperation.Move, to, from, WideRex);

    /// <summary>The lower half alone; the upper half of <paramref name="to"/> becomes 0.</summary>
    public void Move32(Register to, Register from) => OnRegisters((byte)HostOperation.Move, to, from, NarrowRex);

    public void OnRegisters(HostOperation operation, Register register, Register other) => OnRegisters((byte)operation, register, other, WideRex);

    private void OnRegisters(byte opcode, Register register, Register other, int rex)
    {
        int r = Number(register), m = Number(other);
        Put((uint)(rex | r >> 3 << 2 | m >> 3 | opcode << 8 | (0xc0 | (r & 7) << 3 | m & 7) << 16), 3);
    }

    /// <summary>register = [pointer].</summary>
    public void LoadFrom(Register register, Register pointer, int bytes = 8) => OnPointer((byte)HostOperation.Move, register, pointer, RexOf(bytes));

    /// <summary>[pointer] = register.</summary>
    public void StoreTo(Register pointer, Register register, int bytes = 8) => OnPointer(0x89, register, pointer, RexOf(bytes));

    private static int RexOf(int bytes) => bytes == 8 ? WideRex : NarrowRex;

    private void OnPointer(byte opcode, Register register, Register pointer, int rex)
    {
        int r = Number(register), m = Number(pointer);
        Debug.Assert((m & 7) is not (4 or 5));
        Put((uint)(rex | r >> 3 << 2 | m >> 3 | opcode << 8 | ((r & 7) << 3 | m & 7) << 16), 3);
    }

    public void Immediate(Register register, ulong value)
    {
        int r = Number(register);
        if (value > uint.MaxValue)
            Immediate64(register, value);
        else if (r >= 8)
            Put((uint)(0x41 | (0xb8 | r & 7) << 8) | value << 16, 6);
        else
            Put((uint)(0xb8 | r) | value << 8, 5);
    }

    /// <summary>With all eight bytes, which are the last ones of the instruction.</summary>
    public void Immediate64(Register register, ulong value)
    {
        int r = Number(register);
        Put((uint)(WideRex | r >> 3 | (0xb8 | r & 7) << 8), 2);
        Put(value, 8);
    }

    /// <summary>to = from + displacement, cut to so many bytes. Changes no flag.</summary>
    public void Lea(Register to, Register from, long displacement, int bytes = 8)
    {
        int r = Number(to), b = Number(from);
        Displaced(RexOf(bytes) | r >> 3 << 2 | b >> 3, 0x8d, r, b, (int)displacement);
    }

    /// <summary>to = b + x * scale + displacement, where b may be none, or x, cut to so many bytes. Changes no flag.</summary>
    public void Lea(Register to, Register b, Register x, int scale, int displacement, int bytes)
    {
        if (x == Register.None)
        {
            Lea(to, b, displacement, bytes);
            return;
        }
        int r = Number(to), n = Number(x), pointer = b == Register.None ? 5 : Number(b);
        int mode = b == Register.None || displacement == 0 && (pointer & 7) != 5 ? 0 : displacement == (sbyte)displacement ? 0x40 : 0x80;
        int rex = RexOf(bytes) | r >> 3 << 2 | n >> 3 << 1 | pointer >> 3, sib = int.Log2(scale) << 6 | (n & 7) << 3 | pointer & 7;
        Put((uint)(rex | 0x8d << 8 | (mode | (r & 7) << 3 | 4) << 16 | sib << 24) | (ulong)(uint)displacement << 32,
            mode == 0x40 ? 5 : mode == 0x80 || b == Register.None ? 8 : 4);
    }

    /// <summary>A jump, to be bound, that is taken unless RCX is 0. Changes no flag.</summary>
    public int JumpUnlessCountIsZero()
    {
        const int JumpBytes = 5;
        Put(0xe3 | JumpBytes << 8, 2);
        return Jump();
    }

    /// <summary>Jumps to where the state says.</summary>
    public void JumpThroughState(int displacement) => Displaced(0x40 | Number(HostRegisters.Base) >> 3, 0xff, 4, Number(HostRegisters.Base), displacement);

    /// <summary>Jumps to where a pointer says.</summary>
    public void JumpThrough(Register pointer) => Displaced(0x40 | Number(pointer) >> 3, 0xff, 4, Number(pointer), 0);

    /// <summary>The lower half of to = that of from * factor; the upper half becomes 0.</summary>
    public void Multiply32(Register to, Register from, int factor)
    {
        int r = Number(to), m = Number(from);
        Put((uint)(0x40 | r >> 3 << 2 | m >> 3 | 0x69 << 8 | (0xc0 | (r & 7) << 3 | m & 7) << 16) | (ulong)(uint)factor << 24, 7);
    }

    /// <summary>Compares 32 or 64 bits at a pointer with 0; only the flags of equality count.</summary>
    public void CompareWithZero(Register pointer, int displacement, bool wide)
    {
        int b = Number(pointer);
        Displaced((wide ? WideRex : 0x40) | b >> 3, 0x83, 7, b, displacement);
        Put(0, 1);
    }

    /// <summary>Compares the 32 bits at a position of the code itself with 0; only the flags of equality count.</summary>
    public void CompareHereWithZero(int position)
    {
        const int Bytes = 7;
        Put(0x3d83 | (ulong)(uint)(position - Position - Bytes) << 16, Bytes);
    }

    /// <summary>Position of the address of a region's first site.</summary>
    public const int FirstSite = 8;

    /// <summary>Data in front of a region's code: <see cref="Region.StaleInCode"/>, and the address of its first site.</summary>
    public void BeginRegion()
    {
        Put(0, 8);
        Put(0, 8);
    }

    /// <summary>register = register + the address of the region's first site.</summary>
    public void AddFirstSite(Register register)
    {
        const int Bytes = 7;
        int r = Number(register);
        Put((uint)(WideRex | r >> 3 << 2 | 0x03 << 8 | (5 | (r & 7) << 3) << 16) | (ulong)(uint)(FirstSite - Position - Bytes) << 24, Bytes);
    }

    /// <summary>32 bits of the state = a value.</summary>
    public void StoreImmediate(int displacement, uint value)
    {
        int b = Number(HostRegisters.Base);
        Displaced(0x40 | b >> 3, 0xc7, 0, b, displacement);
        Put(value, 4);
    }

    /// <summary>The lower half of a register, shifted; the upper half becomes 0.</summary>
    public void ShiftLeft32(Register register, int count)
    {
        int r = Number(register);
        Put((uint)(0x40 | r >> 3 | 0xc1 << 8 | (0xe0 | r & 7) << 16 | count << 24), 4);
    }

    /// <summary>register OPERATION [<see cref="HostRegisters.Base"/> + index + displacement], or a jump there.</summary>
    public void WithTable(HostOperation operation, Register register, Register index, int displacement) =>
        OnTable(WideRex | Number(register) >> 3 << 2, (int)operation, Number(register), Number(index), displacement);

    /// <summary>[<see cref="HostRegisters.Base"/> + index + displacement] = register.</summary>
    public void StoreTable(Register index, int displacement, Register register) =>
        OnTable(WideRex | Number(register) >> 3 << 2, 0x89, Number(register), Number(index), displacement);

    public void JumpThroughTable(Register index, int displacement) => OnTable(0x40, 0xff, 4, Number(index), displacement);

    private void OnTable(int rex, int opcode, int r, int x, int displacement)
    {
        int b = Number(HostRegisters.Base);
        rex |= x >> 3 << 1 | b >> 3;
        Put((uint)(rex | opcode << 8 | (0x84 | (r & 7) << 3) << 16 | ((x & 7) << 3 | b & 7) << 24) | (ulong)(uint)displacement << 32, 8);
    }

    /// <summary>Prefix, opcode, and ModRM, SIB and displacement of [b + displacement].</summary>
    private void Displaced(int rex, int opcode, int r, int b, int displacement)
    {
        int mode = displacement == 0 && (b & 7) != 5 ? 0 : displacement == (sbyte)displacement ? 0x40 : 0x80;
        ulong bytes = (uint)(rex | opcode << 8 | (mode | (r & 7) << 3 | b & 7) << 16), place = (uint)displacement;
        int count = 3;
        if ((b & 7) == 4)
            bytes |= 0x24UL << 8 * count++;
        Put(bytes | place << 8 * count, count + (mode == 0 ? 0 : mode == 0x40 ? 1 : 4));
    }

    /// <summary>to = from rotated. Changes no flag.</summary>
    public void RotateRight(Register to, Register from, int count)
    {
        int r = Number(to), m = Number(from);
        Put((uint)(0xc4 | ((~r & 8) << 4 | 0x40 | (~m & 8) << 2 | 3) << 8 | 0xfb << 16 | 0xf0 << 24)
            | (ulong)(0xc0 | (r & 7) << 3 | m & 7 | count << 8) << 32, 6);
    }

    /// <summary>The lower half of a register AND a mask; the upper half becomes 0.</summary>
    public void And32(Register register, int mask)
    {
        int r = Number(register);
        if (r >= 8)
            Put((uint)(0x41 | 0x81 << 8 | (0xe0 | r & 7) << 16) | (ulong)(uint)mask << 24, 7);
        else
            Put((uint)(0x81 | (0xe0 | r) << 8) | (ulong)(uint)mask << 16, 6);
    }

    public void And64(Register register, int mask)
    {
        int r = Number(register);
        Put((uint)(WideRex | r >> 3 | 0x81 << 8 | (0xe0 | r & 7) << 16) | (ulong)(uint)mask << 24, 7);
    }

    /// <summary>CF = the bit of <paramref name="bits"/> that the low six bits of <paramref name="number"/> name.</summary>
    public void TestBit(Register bits, Register number)
    {
        int r = Number(number), m = Number(bits);
        Put((uint)(WideRex | r >> 3 << 2 | m >> 3 | 0x0f << 8 | 0xa3 << 16 | (0xc0 | (r & 7) << 3 | m & 7) << 24), 4);
    }

    /// <summary>Compares 32 or 64 bits of the state with 0; only the flags of equality count.</summary>
    public void CompareStateWithZero(int displacement, bool wide)
    {
        CompareWithZero(HostRegisters.Base, displacement, wide);
    }

    /// <summary>REP MOVS or REP STOS of elements of 1 &lt;&lt; <paramref name="shift"/> bytes.</summary>
    public void RepeatString(bool moves, int shift)
    {
        if (shift == 1)
            Put(0x66, 1);
        Put(0xf3, 1);
        if (shift == 3)
            Put(WideRex, 1);
        Put((moves ? 0xa4UL : 0xaaUL) | (shift != 0 ? 1UL : 0), 1);
    }

    /// <summary>REPE or REPNE, CMPS or SCAS, of elements of 1 &lt;&lt; <paramref name="shift"/> bytes.</summary>
    public void RepeatComparison(bool scans, bool untilEqual, int shift)
    {
        if (shift == 1)
            Put(0x66, 1);
        Put(untilEqual ? 0xf2UL : 0xf3UL, 1);
        if (shift == 3)
            Put(WideRex, 1);
        Put((scans ? 0xaeUL : 0xa6UL) | (shift != 0 ? 1UL : 0), 1);
    }

    /// <summary>Adds to 64 bits of the state.</summary>
    public void AddToState(int displacement, int value)
    {
        int b = Number(HostRegisters.Base);
        bool small = value == (sbyte)value;
        Displaced(WideRex | b >> 3, small ? 0x83 : 0x81, 0, b, displacement);
        Put((uint)value, small ? 1 : 4);
    }
}

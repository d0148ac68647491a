using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>What a handler tells the loop.</summary>
public enum OpResult
{
    /// <summary>Retired; go on with the next op of the block.</summary>
    Next = 0,
    /// <summary>Retired; CpuState.Rip holds the next RIP, and what decides about events, translations and the mode may have changed.</summary>
    EndBlock = 1,
    /// <summary>
    /// Not retired: an exception (CpuState.Pending*) or an exit (CpuState.ExitPending) is pending. No architectural state was changed, except what the ISA says
    /// survives.
    /// </summary>
    Fault = 2,
    /// <summary>Retired, CpuState.Rip holds the next RIP, and an exit is pending (HLT, OUT).</summary>
    RetiredExit = 3,
    /// <summary>A near transfer has retired: CpuState.Rip holds its target, and nothing else that matters to finding the next block has changed.</summary>
    Jump = 4,
    /// <summary>The same by the direct branch that ends the block: its target is the same each time.</summary>
    Taken = 5,
    /// <summary>The end of the block without a transfer: CpuState.Rip is behind it.</summary>
    Fall = 6,
}

/// <remarks>
/// <see cref="Plain"/>: the memory operand's linear address is its effective address, cut to the address size, and the base at <see cref="Op.SegmentBase"/>;
/// an access that stays within its page meets no segment check. So it is in 64-bit mode, and in the flat segments of 32-bit code.
/// </remarks>
[Flags]
public enum OpFlags : byte { None = 0, Lock = 1, Rep = 2, Repne = 4, HasMemory = 8, Plain = 16 }

/// <summary>
/// One pre-decoded instruction, 48 bytes. Operands are byte offsets into <see cref="CpuState"/> (GPRs) or register numbers (vector, segment, control, debug,
/// ST, MMX).
/// Operand i of Iced is <c>Reg0..Reg3</c> when it is a register; the memory operand, if any, is described by the address fields.
/// </summary>
/// <remarks>SAFETY: Handler is set only from HandlerTable, whose entries are static methods.</remarks>
[StructLayout(LayoutKind.Sequential, Size = 48)]
public unsafe struct Op
{
    /// <summary>What executes the op.</summary>
    public delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Handler;
    /// <summary>Offset in <see cref="CpuState"/> of the base that a plain memory operand's address gets; of a zero for most.</summary>
    public ushort SegmentBase;
    /// <summary>Operand size in bytes: 1, 2, 4, 8, 16, 32.</summary>
    public byte Size;
    /// <summary>Length of the instruction in bytes.</summary>
    public byte Length;
    /// <summary>Offset of the instruction from the block's first byte.</summary>
    public ushort Offset;
    /// <summary>Address size in bytes: 2, 4, 8.</summary>
    public byte AddressSize;
    /// <summary>Effective segment of the memory operand (SegmentIndex). In 64-bit mode only FS and GS have a base.</summary>
    public byte Seg;
    public byte Reg0, Reg1, Reg2, Reg3;
    /// <summary>
    /// Byte offset of the base register (128 = none, 136 = BlockRip for RIP-relative), of the index register (128 = none), and the shift of the index.
    /// </summary>
    public byte Base, Index, Shift;
    public OpFlags Flags;
    /// <summary>Displacement, sign-extended; for RIP-relative operands relative to BlockRip.</summary>
    public long Disp;
    /// <summary>First immediate, sign- or zero-extended as the ISA says; for relative branches the target minus BlockRip; far pointers: offset.</summary>
    public ulong Imm;
    /// <summary>Iced.Intel.Code of the instruction.</summary>
    public ushort Code;
    /// <summary>Second immediate, or the selector of a far pointer.</summary>
    public ushort Imm2;
    /// <summary>Handler's own use (thunk number and so on).</summary>
    public uint Aux;
}

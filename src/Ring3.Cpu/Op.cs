using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>What a handler tells the loop.</summary>
public enum OpResult
{
    /// <summary>Retired; go on with the next op of the block.</summary>
    Next = 0,
    /// <summary>Retired; CpuState.Rip holds the next RIP; look the next block up (mode, CPL or flow may have changed).</summary>
    EndBlock = 1,
    /// <summary>
    /// Not retired: an exception (CpuState.Pending*) or an exit (CpuState.ExitPending) is pending. No architectural state was changed, except what the ISA says
    /// survives.
    /// </summary>
    Fault = 2,
    /// <summary>Retired, CpuState.Rip holds the next RIP, and an exit is pending (HLT, OUT).</summary>
    RetiredExit = 3,
    /// <summary>Several ops have retired, perhaps a loop of them: go on CpuState.SkipOps ops from this one (may be negative).</summary>
    Skip = 4,
}

[Flags]
public enum OpFlags : byte { None = 0, Lock = 1, Rep = 2, Repne = 4, HasMemory = 8, Xacquire = 16, Wide = 32 }

/// <summary>
/// One pre-decoded instruction, 48 bytes. Operands are byte offsets into <see cref="CpuState"/> (GPRs) or register numbers (vector, segment, control, debug,
/// ST, MMX).
/// Operand i of Iced is <c>Reg0..Reg3</c> when it is a register; the memory operand, if any, is described by the address fields.
/// </summary>
/// <remarks>SAFETY: Handler is set only from HandlerTable, whose entries are static methods.</remarks>
[StructLayout(LayoutKind.Sequential, Size = 48)]
public unsafe struct Op
{
    /// <summary>Slow-path handler; null for ops that the loop executes inline.</summary>
    public delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Handler;
    /// <summary>Case of the loop's switch.</summary>
    public ushort Kind;
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

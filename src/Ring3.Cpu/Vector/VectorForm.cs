using System.Runtime.InteropServices;

namespace Ring3.Cpu;

[Flags]
internal enum VectorFormFlags : ushort
{
    None = 0,
    /// <summary>VEX-encoded: checked against CR4.OSXSAVE and XCR0, results clear the rest of the register.</summary>
    Vex = 1,
    /// <summary>Reads or raises MXCSR.</summary>
    Fp = 2,
    /// <summary>The thunk returns RFLAGS.</summary>
    WritesFlags = 4,
    /// <summary>An operand is an MMX register.</summary>
    Mmx = 8,
    /// <summary>Memory is written (operand 0).</summary>
    StoresMemory = 16,
    /// <summary>An operand is not a vector register.</summary>
    Mixed = 32,
    /// <summary>x87: needs the status flags (FCMOVcc).</summary>
    ReadsFlags = 64,
    /// <summary>x87: pops the register stack.</summary>
    Pops = 128,
    /// <summary>An MMX form that needs SSE state too: it has an XMM operand.</summary>
    NeedsSse = 256,
    /// <summary>The thunk writes the lazy status flags of the state.</summary>
    StoresFlags = 512,
}

/// <summary>
/// One executable form: an instruction with its immediate, with or without memory operand. 64 bytes, in unmanaged memory that never moves.
/// Operand i lives at <c>(byte*)state + Base_i + (Op.Reg_i &lt;&lt; Shift_i)</c>, except the memory operand.
/// </summary>
/// <remarks>SAFETY: describes forms; pointers are operand offsets into the processor's own state.</remarks>
[StructLayout(LayoutKind.Explicit, Size = 64)]
internal unsafe struct VectorForm
{
    /// <summary>
    /// Thunk: pointers to operands 0-3 and to the state; returns RFLAGS when <see cref="VectorFormFlags.WritesFlags"/>. Restores everything that managed code
    /// relies on.
    /// </summary>
    [FieldOffset(0)] public delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, CpuState*, ulong> Entry;
    /// <summary>Thunk of an x87 form: pointer to the memory operand, status flags; returns flags.</summary>
    [FieldOffset(0)] public delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong> X87Entry;
    [FieldOffset(8)] public ushort Base0;
    [FieldOffset(10)] public ushort Base1;
    [FieldOffset(12)] public ushort Base2;
    [FieldOffset(14)] public ushort Base3;
    [FieldOffset(16)] public byte Shift0;
    [FieldOffset(17)] public byte Shift1;
    [FieldOffset(18)] public byte Shift2;
    [FieldOffset(19)] public byte Shift3;
    /// <summary>Bytes that the instruction reads or writes in memory; 0 for register forms.</summary>
    [FieldOffset(20)] public byte MemorySize;
    /// <summary>Address bits that must be zero, else #GP.</summary>
    [FieldOffset(21)] public byte AlignMask;
    /// <summary>Which operand is in memory; 255 for none.</summary>
    [FieldOffset(22)] public byte MemoryIndex;
    /// <summary>Bytes that the thunk writes at operand 0.</summary>
    [FieldOffset(23)] public byte ResultSize;
    [FieldOffset(24)] public VectorFormFlags Flags;
    [FieldOffset(26)] public ushort Code;
    [FieldOffset(30)] public byte Immediate;
    /// <summary>Handler of the ops of this form.</summary>
    [FieldOffset(32)] public delegate*<LogicalProcessor, CpuState*, Op*, OpResult> Handler;
}

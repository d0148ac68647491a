using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Memory operands of vector and x87 instructions. A null pointer means that an exception or exit is pending.</summary>
/// <remarks>SAFETY: pointers come from the processor's memory interface.</remarks>
internal static unsafe class VectorMemory
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Read(LogicalProcessor p, CpuState* c, Op* op, int size, uint alignMask)
    {
        if (!Addressing.LinearAddress(c, op, size, AccessKind.Read, out ulong linear))
            return null;
        return (linear & alignMask) == 0 ? p.Access.ReadPtr(c, linear, size) : ReadMisaligned(p, c, op, linear, size);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Write(LogicalProcessor p, CpuState* c, Op* op, int size, uint alignMask, out ulong linear)
    {
        if (!Addressing.LinearAddress(c, op, size, AccessKind.Write, out linear))
            return null;
        return (linear & alignMask) == 0 ? p.Access.WritePtr(c, linear, size) : Misaligned(p, c);
    }

    /// <summary>Linear address of an operand's byte.</summary>
    public static ulong At(CpuState* c, ulong linear, int offset) => c->BlockMode == BlockMode.Code64 ? linear + (ulong)offset : (uint)(linear + (ulong)offset);

    /// <summary>Whether every byte can be written; alignment is not checked.</summary>
    public static bool CanWrite(LogicalProcessor p, CpuState* c, ulong linear, int size)
    {
        for (int i = 0; i < size; i++)
        {
            if (p.Access.WritePtr(c, At(c, linear, i), 1) == null)
                return false;
        }
        return true;
    }

    /// <summary>Writes an operand by bytes.</summary>
    public static bool WriteBytes(LogicalProcessor p, CpuState* c, ulong linear, byte* from, int size)
    {
        for (int i = 0; i < size; i++)
        {
            byte* m = p.Access.WritePtr(c, At(c, linear, i), 1);
            if (m == null)
                return false;
            *m = from[i];
            if (p.Access.EndWrite(c, m, At(c, linear, i), 1) != OpResult.Next)
                return false;
        }
        return true;
    }

    /// <summary>
    /// #GP, or with MXCSR.MM a copy of the operand that is aligned as the host's own units want it; the access has its alignment check then.
    /// SPEC: APM volume 1, "Misaligned Exception Mask"; volume 4, the exceptions of each instruction: the aligned moves take no notice of MM.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static byte* ReadMisaligned(LogicalProcessor p, CpuState* c, Op* op, ulong linear, int size)
    {
        if ((c->Mxcsr & MxcsrUnit.Misaligned) == 0 || VectorFacts.IsAlignedMove(((Code)op->Code).Mnemonic()))
            return Misaligned(p, c);
        byte* m = p.Access.ReadPtr(c, linear, size);
        if (m == null)
            return null;
        byte* aligned = p.Access.AlignedOperand;
        Buffer.MemoryCopy(m, aligned, GuestAccess.AlignedOperandSize, size);
        return aligned;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static byte* Misaligned(LogicalProcessor p, CpuState* c)
    {
        Outcome.Raise(c, Arch.Vector.GP, 0);
        return null;
    }
}

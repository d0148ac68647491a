using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Memory operands of vector and x87 instructions. A null pointer means that an exception or exit is pending.</summary>
/// <remarks>SAFETY: pointers come from the processor's memory interface.</remarks>
internal static unsafe class VectorMemory
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Read(LogicalProcessor p, CpuState* c, Op* op, int size, uint alignMask)
    {
        if (!p.LinearAddress(c, op, size, AccessKind.Read, out ulong linear))
            return null;
        return (linear & alignMask) == 0 ? p.ReadPtr(c, linear, size) : Misaligned(p, c);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static byte* Write(LogicalProcessor p, CpuState* c, Op* op, int size, uint alignMask, out ulong linear)
    {
        if (!p.LinearAddress(c, op, size, AccessKind.Write, out linear))
            return null;
        return (linear & alignMask) == 0 ? p.WritePtr(c, linear, size) : Misaligned(p, c);
    }

    /// <summary>Linear address of an operand's byte.</summary>
    public static ulong At(CpuState* c, ulong linear, int offset) => c->BlockMode == BlockMode.Code64 ? linear + (ulong)offset : (uint)(linear + (ulong)offset);

    /// <summary>Whether every byte can be written; alignment is not checked.</summary>
    public static bool CanWrite(LogicalProcessor p, CpuState* c, ulong linear, int size)
    {
        for (int i = 0; i < size; i++)
        {
            if (p.WritePtr(c, At(c, linear, i), 1) == null)
                return false;
        }
        return true;
    }

    /// <summary>Writes an operand by bytes.</summary>
    public static bool WriteBytes(LogicalProcessor p, CpuState* c, ulong linear, byte* from, int size)
    {
        for (int i = 0; i < size; i++)
        {
            byte* m = p.WritePtr(c, At(c, linear, i), 1);
            if (m == null)
                return false;
            *m = from[i];
            if (p.EndWrite(c, m, At(c, linear, i), 1) != OpResult.Next)
                return false;
        }
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static byte* Misaligned(LogicalProcessor p, CpuState* c)
    {
        p.Raise(c, Arch.Vector.GP, 0);
        return null;
    }
}

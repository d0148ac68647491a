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

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static byte* Misaligned(LogicalProcessor p, CpuState* c)
    {
        p.Raise(c, Arch.Vector.GP, 0);
        return null;
    }
}

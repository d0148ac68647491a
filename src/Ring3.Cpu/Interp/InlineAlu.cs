using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>Multiplications of the loop's inline cases.</summary>
/// <remarks>SAFETY: register operands are offsets into the processor's own state.</remarks>
internal sealed unsafe partial class Interpreter
{
    /// <summary>CF and OF; ZF, SF, AF and PF are undefined and kept.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetOverflow(CpuState* c, bool over) => c->FlagsCarry = c->FlagsCarry & 8 | (over ? 1UL << 63 : 0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Imul64(CpuState* c, Op* op, ulong a, ulong b)
    {
        long high = Math.BigMul((long)a, (long)b, out long low);
        *(ulong*)((byte*)c + op->Reg0) = (ulong)low;
        SetOverflow(c, high != low >> 63);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Imul32(CpuState* c, Op* op, uint a, uint b)
    {
        long r = (long)(int)a * (int)b;
        *(ulong*)((byte*)c + op->Reg0) = (uint)r;
        SetOverflow(c, r != (int)r);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Mul64(CpuState* c, ulong b)
    {
        ulong high = Math.BigMul(c->Gpr[0], b, out ulong low);
        c->Gpr[0] = low;
        c->Gpr[2] = high;
        SetOverflow(c, high != 0);
    }

    /// <summary>Reg0 the high half, Reg1 the low half; the high one wins when they are the same.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Mulx64(CpuState* c, Op* op, ulong b)
    {
        ulong high = Math.BigMul(c->Gpr[2], b, out ulong low);
        *(ulong*)((byte*)c + op->Reg1) = low;
        *(ulong*)((byte*)c + op->Reg0) = high;
    }
}

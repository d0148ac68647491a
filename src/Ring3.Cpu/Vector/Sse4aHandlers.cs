using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// SSE4a, which is AMD's: bit fields of the low quadword, and scalar stores around the caches. SPEC: APM volume 4, "EXTRQ", "INSERTQ", "MOVNTSD", "MOVNTSS".
/// What the manual leaves undefined: the upper quadword of a result is zero here, and bits of a field above bit 63 read as zero and are lost when written.
/// </summary>
/// <remarks>SAFETY: registers are indexed by decoded numbers below 16; memory goes through the checked accessors.</remarks>
internal static unsafe class Sse4aHandlers
{
    internal static void Register()
    {
        VectorHandlers.SetSpecial(Code.Extrq_xmm_imm8_imm8, &ExtractImmediate);
        VectorHandlers.SetSpecial(Code.Extrq_xmm_xmm, &ExtractRegister);
        VectorHandlers.SetSpecial(Code.Insertq_xmm_xmm_imm8_imm8, &InsertImmediate);
        VectorHandlers.SetSpecial(Code.Insertq_xmm_xmm, &InsertRegister);
        VectorHandlers.SetSpecial(Code.Movntss_m32_xmm, &Store<uint>);
        VectorHandlers.SetSpecial(Code.Movntsd_m64_xmm, &Store<ulong>);
    }

    /// <summary>False: #UD or #NM is pending.</summary>
    private static bool IsOpen(LogicalProcessor p, CpuState* c)
    {
        if (p.CpuidFeatures.Sse4a && SseGate.IsOpen(c))
            return true;
        if (p.CpuidFeatures.Sse4a)
            SseGate.Refuse(p, c);
        else
            Outcome.Raise(c, Arch.Vector.UD);
        return false;
    }

    private static ulong* Quadwords(CpuState* c, int register) => (ulong*)(c->Ymm + 32 * register);

    /// <summary>Ones in a field of 1 to 64 bits, of which 64 is encoded as 0.</summary>
    private static ulong FieldMask(int length) => ulong.MaxValue >> (-length & 63);

    private static OpResult Extract(CpuState* c, int register, int length, int index)
    {
        ulong* to = Quadwords(c, register);
        to[0] = to[0] >> (index & 63) & FieldMask(length);
        to[1] = 0;
        return OpResult.Next;
    }

    private static OpResult Insert(CpuState* c, int register, ulong value, int length, int index)
    {
        ulong* to = Quadwords(c, register);
        ulong mask = FieldMask(length) << (index & 63);
        to[0] = to[0] & ~mask | value << (index & 63) & mask;
        to[1] = 0;
        return OpResult.Next;
    }

    private static OpResult ExtractImmediate(LogicalProcessor p, CpuState* c, Op* op)
        => IsOpen(p, c) ? Extract(c, op->Reg0, (int)op->Imm, op->Imm2) : OpResult.Fault;

    private static OpResult ExtractRegister(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(p, c))
            return OpResult.Fault;
        ulong field = Quadwords(c, op->Reg1)[0];
        return Extract(c, op->Reg0, (int)field, (int)(field >> 8));
    }

    private static OpResult InsertImmediate(LogicalProcessor p, CpuState* c, Op* op)
        => IsOpen(p, c) ? Insert(c, op->Reg0, Quadwords(c, op->Reg1)[0], (int)op->Imm, op->Imm2) : OpResult.Fault;

    private static OpResult InsertRegister(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(p, c))
            return OpResult.Fault;
        ulong* from = Quadwords(c, op->Reg1);
        return Insert(c, op->Reg0, from[0], (int)from[1], (int)(from[1] >> 8));
    }

    private static OpResult Store<T>(LogicalProcessor p, CpuState* c, Op* op) where T : unmanaged
    {
        if (!IsOpen(p, c))
            return OpResult.Fault;
        return Addressing.LinearAddress(c, op, sizeof(T), AccessKind.Write, out ulong linear) ? p.Access.StoreVector(c, linear, *(T*)(c->Ymm + 32 * op->Reg1))
            : OpResult.Fault;
    }
}

using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Moves between vector registers, memory and general-purpose registers: copies within the state need no thunk.</summary>
/// <remarks>SAFETY: pointers are register places in the state or come from the memory interface for the size that is copied.</remarks>
internal static unsafe class VectorMoves
{
    internal static void Register()
    {
        SetWhole(Code.Movups_xmm_xmmm128, Code.Movups_xmmm128_xmm, Code.VEX_Vmovups_xmm_xmmm128, Code.VEX_Vmovups_xmmm128_xmm, Code.VEX_Vmovups_ymm_ymmm256,
            Code.VEX_Vmovups_ymmm256_ymm, false);
        SetWhole(Code.Movupd_xmm_xmmm128, Code.Movupd_xmmm128_xmm, Code.VEX_Vmovupd_xmm_xmmm128, Code.VEX_Vmovupd_xmmm128_xmm, Code.VEX_Vmovupd_ymm_ymmm256,
            Code.VEX_Vmovupd_ymmm256_ymm, false);
        SetWhole(Code.Movdqu_xmm_xmmm128, Code.Movdqu_xmmm128_xmm, Code.VEX_Vmovdqu_xmm_xmmm128, Code.VEX_Vmovdqu_xmmm128_xmm, Code.VEX_Vmovdqu_ymm_ymmm256,
            Code.VEX_Vmovdqu_ymmm256_ymm, false);
        SetWhole(Code.Movaps_xmm_xmmm128, Code.Movaps_xmmm128_xmm, Code.VEX_Vmovaps_xmm_xmmm128, Code.VEX_Vmovaps_xmmm128_xmm, Code.VEX_Vmovaps_ymm_ymmm256,
            Code.VEX_Vmovaps_ymmm256_ymm, true);
        SetWhole(Code.Movapd_xmm_xmmm128, Code.Movapd_xmmm128_xmm, Code.VEX_Vmovapd_xmm_xmmm128, Code.VEX_Vmovapd_xmmm128_xmm, Code.VEX_Vmovapd_ymm_ymmm256,
            Code.VEX_Vmovapd_ymmm256_ymm, true);
        SetWhole(Code.Movdqa_xmm_xmmm128, Code.Movdqa_xmmm128_xmm, Code.VEX_Vmovdqa_xmm_xmmm128, Code.VEX_Vmovdqa_xmmm128_xmm, Code.VEX_Vmovdqa_ymm_ymmm256,
            Code.VEX_Vmovdqa_ymmm256_ymm, true);
        SetWhole(Code.Lddqu_xmm_m128, null, Code.VEX_Vlddqu_xmm_m128, null, Code.VEX_Vlddqu_ymm_m256, null, false);
        SetWhole(Code.Movntdqa_xmm_m128, null, Code.VEX_Vmovntdqa_xmm_m128, null, Code.VEX_Vmovntdqa_ymm_m256, null, true);
        SetWhole(null, Code.Movntps_m128_xmm, null, Code.VEX_Vmovntps_m128_xmm, null, Code.VEX_Vmovntps_m256_ymm, true);
        SetWhole(null, Code.Movntpd_m128_xmm, null, Code.VEX_Vmovntpd_m128_xmm, null, Code.VEX_Vmovntpd_m256_ymm, true);
        SetWhole(null, Code.Movntdq_m128_xmm, null, Code.VEX_Vmovntdq_m128_xmm, null, Code.VEX_Vmovntdq_m256_ymm, true);

        VectorHandlers.SetDirect(Code.Movss_xmm_xmmm32, &Part<SseGate, uint, No>.Load);
        VectorHandlers.SetDirect(Code.Movss_xmmm32_xmm, &Part<SseGate, uint, No>.Store);
        VectorHandlers.SetDirect(Code.Movsd_xmm_xmmm64, &Part<SseGate, ulong, No>.Load);
        VectorHandlers.SetDirect(Code.Movsd_xmmm64_xmm, &Part<SseGate, ulong, No>.Store);
        VectorHandlers.SetDirect(Code.Movq_xmm_xmmm64, &Part<SseGate, ulong, Yes>.Load);
        VectorHandlers.SetDirect(Code.Movq_xmmm64_xmm, &Part<SseGate, ulong, Yes>.Store);
        VectorHandlers.SetDirect(Code.VEX_Vmovss_xmm_m32, &Part<AvxGate, uint, Yes>.Load);
        VectorHandlers.SetDirect(Code.VEX_Vmovss_m32_xmm, &Part<AvxGate, uint, Yes>.Store);
        VectorHandlers.SetDirect(Code.VEX_Vmovsd_xmm_m64, &Part<AvxGate, ulong, Yes>.Load);
        VectorHandlers.SetDirect(Code.VEX_Vmovsd_m64_xmm, &Part<AvxGate, ulong, Yes>.Store);
        VectorHandlers.SetDirect(Code.VEX_Vmovq_xmm_xmmm64, &Part<AvxGate, ulong, Yes>.Load);
        VectorHandlers.SetDirect(Code.VEX_Vmovq_xmmm64_xmm, &Part<AvxGate, ulong, Yes>.Store);

        VectorHandlers.SetDirect(Code.Movd_xmm_rm32, &General<SseGate, uint>.Load);
        VectorHandlers.SetDirect(Code.Movq_xmm_rm64, &General<SseGate, ulong>.Load);
        VectorHandlers.SetDirect(Code.VEX_Vmovd_xmm_rm32, &General<AvxGate, uint>.Load);
        VectorHandlers.SetDirect(Code.VEX_Vmovq_xmm_rm64, &General<AvxGate, ulong>.Load);
        VectorHandlers.SetDirect(Code.Movd_rm32_xmm, &General<SseGate, uint>.Store);
        VectorHandlers.SetDirect(Code.Movq_rm64_xmm, &General<SseGate, ulong>.Store);
        VectorHandlers.SetDirect(Code.VEX_Vmovd_rm32_xmm, &General<AvxGate, uint>.Store);
        VectorHandlers.SetDirect(Code.VEX_Vmovq_rm64_xmm, &General<AvxGate, ulong>.Store);
    }

    private static void SetWhole(Code? load, Code? store, Code? load128, Code? store128, Code? load256, Code? store256, bool aligned)
    {
        if (load is { } a)
            VectorHandlers.SetDirect(a, aligned ? &Whole<SseGate, Vector128<byte>, Yes>.Load : &Whole<SseGate, Vector128<byte>, No>.Load);
        if (store is { } b)
            VectorHandlers.SetDirect(b, aligned ? &Whole<SseGate, Vector128<byte>, Yes>.Store : &Whole<SseGate, Vector128<byte>, No>.Store);
        if (load128 is { } d)
            VectorHandlers.SetDirect(d, aligned ? &Whole<AvxGate, Vector128<byte>, Yes>.Load : &Whole<AvxGate, Vector128<byte>, No>.Load);
        if (store128 is { } e)
            VectorHandlers.SetDirect(e, aligned ? &Whole<AvxGate, Vector128<byte>, Yes>.Store : &Whole<AvxGate, Vector128<byte>, No>.Store);
        if (load256 is { } f)
            VectorHandlers.SetDirect(f, aligned ? &Whole<AvxGate, Vector256<byte>, Yes>.Load : &Whole<AvxGate, Vector256<byte>, No>.Load);
        if (store256 is { } g)
            VectorHandlers.SetDirect(g, aligned ? &Whole<AvxGate, Vector256<byte>, Yes>.Store : &Whole<AvxGate, Vector256<byte>, No>.Store);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool IsVex<TGate>() => typeof(TGate) == typeof(AvxGate);

    /// <summary>Writes a register: legacy forms keep the upper half, VEX forms clear it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void SetLow<TGate>(CpuState* c, int register, Vector128<byte> value)
    {
        byte* to = c->Ymm + register * 32;
        if (IsVex<TGate>())
            *(Vector256<byte>*)to = Vector256.Create(value, Vector128<byte>.Zero);
        else
            *(Vector128<byte>*)to = value;
    }

    /// <summary>Moves of a whole register.</summary>
    private static class Whole<TGate, TValue, TAligned> where TGate : struct, IVectorGate where TValue : unmanaged where TAligned : struct, IFlag
    {
        private static uint AlignMask => TAligned.Value ? (uint)sizeof(TValue) - 1 : 0;

        public static OpResult Load(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            if ((op->Flags & OpFlags.HasMemory) == 0)
                return Copy(c, op);
            byte* m = VectorMemory.Read(p, c, op, sizeof(TValue), AlignMask);
            if (m == null)
                return OpResult.Fault;
            if (sizeof(TValue) == 32)
                *(Vector256<byte>*)(c->Ymm + op->Reg0 * 32) = *(Vector256<byte>*)m;
            else
                SetLow<TGate>(c, op->Reg0, *(Vector128<byte>*)m);
            return OpResult.Next;
        }

        public static OpResult Store(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            if ((op->Flags & OpFlags.HasMemory) == 0)
                return Copy(c, op);
            if (!Addressing.LinearAddress(c, op, sizeof(TValue), AccessKind.Write, out ulong linear))
                return OpResult.Fault;
            if ((linear & AlignMask) != 0)
                return Outcome.Raise(c, Arch.Vector.GP, 0);
            return p.Access.StoreVector(c, linear, *(TValue*)(c->Ymm + op->Reg1 * 32));
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static OpResult Copy(CpuState* c, Op* op)
        {
            if (sizeof(TValue) == 32)
                *(Vector256<byte>*)(c->Ymm + op->Reg0 * 32) = *(Vector256<byte>*)(c->Ymm + op->Reg1 * 32);
            else
                SetLow<TGate>(c, op->Reg0, *(Vector128<byte>*)(c->Ymm + op->Reg1 * 32));
            return OpResult.Next;
        }
    }

    /// <summary>
    /// Moves of the lowest element. From memory they clear the rest of the 128 bits; between registers only when <typeparamref name="TClear"/> is set (MOVQ).
    /// </summary>
    private static class Part<TGate, TValue, TClear> where TGate : struct, IVectorGate where TValue : unmanaged where TClear : struct, IFlag
    {
        public static OpResult Load(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            if ((op->Flags & OpFlags.HasMemory) == 0)
                return Copy(c, op);
            byte* m = VectorMemory.Read(p, c, op, sizeof(TValue), 0);
            if (m == null)
                return OpResult.Fault;
            SetLow<TGate>(c, op->Reg0, Vector128.CreateScalar(*(TValue*)m).AsByte());
            return OpResult.Next;
        }

        public static OpResult Store(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            if ((op->Flags & OpFlags.HasMemory) == 0)
                return Copy(c, op);
            return Addressing.LinearAddress(c, op, sizeof(TValue), AccessKind.Write, out ulong linear)
                ? p.Access.StoreVector(c, linear, *(TValue*)(c->Ymm + op->Reg1 * 32)) : OpResult.Fault;
        }

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        private static OpResult Copy(CpuState* c, Op* op)
        {
            Vector128<TValue> from = *(Vector128<TValue>*)(c->Ymm + op->Reg1 * 32);
            if (TClear.Value)
                SetLow<TGate>(c, op->Reg0, Vector128.CreateScalar(from.ToScalar()).AsByte());
            else
                SetLow<TGate>(c, op->Reg0, (*(Vector128<TValue>*)(c->Ymm + op->Reg0 * 32)).WithElement(0, from.ToScalar()).AsByte());
            return OpResult.Next;
        }
    }

    /// <summary>MOVD and MOVQ with a general-purpose register or memory.</summary>
    private static class General<TGate, TValue> where TGate : struct, IVectorGate where TValue : unmanaged
    {
        public static OpResult Load(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            byte* m = (op->Flags & OpFlags.HasMemory) == 0 ? (byte*)c + op->Reg1 : VectorMemory.Read(p, c, op, sizeof(TValue), 0);
            if (m == null)
                return OpResult.Fault;
            SetLow<TGate>(c, op->Reg0, Vector128.CreateScalar(*(TValue*)m).AsByte());
            return OpResult.Next;
        }

        public static OpResult Store(LogicalProcessor p, CpuState* c, Op* op)
        {
            if (!TGate.IsOpen(c))
                return TGate.Refuse(p, c);
            byte* from = c->Ymm + op->Reg1 * 32;
            if ((op->Flags & OpFlags.HasMemory) == 0)
            {
                *(ulong*)((byte*)c + op->Reg0) = sizeof(TValue) == 4 ? *(uint*)from : *(ulong*)from;
                return OpResult.Next;
            }
            return Addressing.LinearAddress(c, op, sizeof(TValue), AccessKind.Write, out ulong linear) ? p.Access.StoreVector(c, linear, *(TValue*)from)
                : OpResult.Fault;
        }
    }
}

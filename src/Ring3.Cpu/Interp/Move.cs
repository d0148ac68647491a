using System.Buffers.Binary;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>MOV, MOVZX, MOVSX, LEA, XCHG, CMOVcc, SETcc, MOVBE, BSWAP, sign extension, MOVNTI.</summary>
/// <remarks>SAFETY: registers and memory are reached through <see cref="Shape"/>; an address that LEA computes is not followed.</remarks>
internal static unsafe class MoveHandlers
{
    private static OpResult RegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, Shape.Reg1<W>(c, op));
        return OpResult.Next;
    }

    private static OpResult RegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, op->Imm);
        return OpResult.Next;
    }

    private static OpResult MemReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Store<W>(p, c, op, Shape.Reg1<W>(c, op));
    private static OpResult MemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Store<W>(p, c, op, op->Imm);

    private static OpResult RegMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong value))
            return OpResult.Fault;
        Shape.SetReg0<W>(c, op, value);
        return OpResult.Next;
    }

    private static OpResult ZeroReg<D, S>(LogicalProcessor p, CpuState* c, Op* op) where D : IWidth where S : IWidth
    {
        Shape.SetReg0<D>(c, op, Shape.Reg1<S>(c, op));
        return OpResult.Next;
    }

    private static OpResult ZeroMem<D, S>(LogicalProcessor p, CpuState* c, Op* op) where D : IWidth where S : IWidth
    {
        if (!Shape.Load<S>(p, c, op, out ulong value))
            return OpResult.Fault;
        Shape.SetReg0<D>(c, op, value);
        return OpResult.Next;
    }

    private static OpResult SignReg<D, S>(LogicalProcessor p, CpuState* c, Op* op) where D : IWidth where S : IWidth
    {
        Shape.SetReg0<D>(c, op, S.SignExtend(Shape.Reg1<S>(c, op)));
        return OpResult.Next;
    }

    private static OpResult SignMem<D, S>(LogicalProcessor p, CpuState* c, Op* op) where D : IWidth where S : IWidth
    {
        if (!Shape.Load<S>(p, c, op, out ulong value))
            return OpResult.Fault;
        Shape.SetReg0<D>(c, op, S.SignExtend(value));
        return OpResult.Next;
    }

    private static OpResult Lea<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, Addressing.EffectiveAddress(c, op) & Addressing.AddressMask(op->AddressSize));
        return OpResult.Next;
    }

    private static OpResult XchgReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op), b = Shape.Reg1<W>(c, op);
        Shape.SetReg0<W>(c, op, b);
        W.Set((byte*)c + op->Reg1, a);
        return OpResult.Next;
    }

    /// <summary>XCHG with memory is always locked.</summary>
    private static OpResult XchgMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return BusLock.IsSplit(linear, W.Bytes) ? ExchangeSplit<W>(p, c, op, linear) : Exchange<W>(p, c, op, linear);
    }

    private static OpResult ExchangeSplit<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        SplitExchange change = new() { Value = Shape.Reg1<W>(c, op) };
        OpResult end = p.ChangeSplit(c, linear, W.Bytes, ref change, out ulong old);
        if (end == OpResult.Next)
            W.Set((byte*)c + op->Reg1, old);
        return BusLock.BusLocked(c, op, end);
    }

    private struct SplitExchange : ISplitChange
    {
        public ulong Value;

        public static bool IsComparison => false;

        public readonly bool Apply(ulong old, out ulong value)
        {
            value = Value;
            return true;
        }
    }

    private static OpResult Exchange<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        ulong old = W.Exchange(ptr, Shape.Reg1<W>(c, op));
        OpResult end = p.Access.EndWrite(c, ptr, linear, W.Bytes);
        if (end == OpResult.Next)
            W.Set((byte*)c + op->Reg1, old);
        return end;
    }

    private static OpResult CmovReg<W, C>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth where C : struct, ICondition
    {
        // A 32-bit destination is zero-extended also when the condition is false.
        Shape.SetReg0<W>(c, op, C.Holds(c) ? Shape.Reg1<W>(c, op) : Shape.Reg0<W>(c, op));
        return OpResult.Next;
    }

    private static OpResult CmovMem<W, C>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth where C : struct, ICondition
    {
        if (!Shape.Load<W>(p, c, op, out ulong value))
            return OpResult.Fault;
        Shape.SetReg0<W>(c, op, C.Holds(c) ? value : Shape.Reg0<W>(c, op));
        return OpResult.Next;
    }

    private static OpResult SetReg<C>(LogicalProcessor p, CpuState* c, Op* op) where C : struct, ICondition
    {
        Shape.SetReg0<W8>(c, op, C.Holds(c) ? 1UL : 0);
        return OpResult.Next;
    }

    private static OpResult SetMem<C>(LogicalProcessor p, CpuState* c, Op* op) where C : struct, ICondition =>
        Shape.Store<W8>(p, c, op, C.Holds(c) ? 1UL : 0);

    private static ulong Swap<W>(ulong v) where W : IWidth => BinaryPrimitives.ReverseEndianness(v) >> (64 - W.Bytes * 8);

    private static OpResult MovbeLoad<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong value))
            return OpResult.Fault;
        Shape.SetReg0<W>(c, op, Swap<W>(value));
        return OpResult.Next;
    }

    private static OpResult MovbeStore<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Store<W>(p, c, op, Swap<W>(Shape.Reg1<W>(c, op)));

    private static OpResult Bswap<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, Swap<W>(Shape.Reg0<W>(c, op)));
        return OpResult.Next;
    }

    /// <summary>BSWAP r16 is undefined; processors write zero.</summary>
    private static OpResult Bswap16(LogicalProcessor p, CpuState* c, Op* op)
    {
        Shape.SetReg0<W16>(c, op, 0);
        return OpResult.Next;
    }

    private static OpResult ExtendAccumulator<D, S>(LogicalProcessor p, CpuState* c, Op* op) where D : IWidth where S : IWidth
    {
        D.Set((byte*)c, S.SignExtend(S.Get((byte*)c)));
        return OpResult.Next;
    }

    private static OpResult ExtendToDx<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        W.Set((byte*)&c->Gpr[2], Width.Sign<W>(W.Get((byte*)c)) ? ulong.MaxValue : 0);
        return OpResult.Next;
    }

    private struct Conditionals : IConditionalFamily
    {
        public static void Register<C>(int cc) where C : struct, ICondition
        {
            HandlerTable.Set(Code.Cmovo_r16_rm16 + cc * 3, &CmovMem<W16, C>, &CmovReg<W16, C>);
            HandlerTable.Set(Code.Cmovo_r32_rm32 + cc * 3, &CmovMem<W32, C>, &CmovReg<W32, C>);
            HandlerTable.Set(Code.Cmovo_r64_rm64 + cc * 3, &CmovMem<W64, C>, &CmovReg<W64, C>);
            HandlerTable.Set(Code.Seto_rm8 + cc, &SetMem<C>, &SetReg<C>);
        }
    }

    public static void Register()
    {
        HandlerTable.Set(Code.Mov_rm8_r8, &MemReg<W8>, &RegReg<W8>);
        HandlerTable.Set(Code.Mov_rm16_r16, &MemReg<W16>, &RegReg<W16>);
        HandlerTable.Set(Code.Mov_rm32_r32, &MemReg<W32>, &RegReg<W32>);
        HandlerTable.Set(Code.Mov_rm64_r64, &MemReg<W64>, &RegReg<W64>);
        HandlerTable.Set(Code.Mov_r8_rm8, &RegMem<W8>, &RegReg<W8>);
        HandlerTable.Set(Code.Mov_r16_rm16, &RegMem<W16>, &RegReg<W16>);
        HandlerTable.Set(Code.Mov_r32_rm32, &RegMem<W32>, &RegReg<W32>);
        HandlerTable.Set(Code.Mov_r64_rm64, &RegMem<W64>, &RegReg<W64>);
        HandlerTable.Set(Code.Mov_AL_moffs8, &RegMem<W8>);
        HandlerTable.Set(Code.Mov_AX_moffs16, &RegMem<W16>);
        HandlerTable.Set(Code.Mov_EAX_moffs32, &RegMem<W32>);
        HandlerTable.Set(Code.Mov_RAX_moffs64, &RegMem<W64>);
        HandlerTable.Set(Code.Mov_moffs8_AL, &MemReg<W8>);
        HandlerTable.Set(Code.Mov_moffs16_AX, &MemReg<W16>);
        HandlerTable.Set(Code.Mov_moffs32_EAX, &MemReg<W32>);
        HandlerTable.Set(Code.Mov_moffs64_RAX, &MemReg<W64>);
        HandlerTable.Set(Code.Mov_r8_imm8, &RegImm<W8>);
        HandlerTable.Set(Code.Mov_r16_imm16, &RegImm<W16>);
        HandlerTable.Set(Code.Mov_r32_imm32, &RegImm<W32>);
        HandlerTable.Set(Code.Mov_r64_imm64, &RegImm<W64>);
        HandlerTable.Set(Code.Mov_rm8_imm8, &MemImm<W8>, &RegImm<W8>);
        HandlerTable.Set(Code.Mov_rm16_imm16, &MemImm<W16>, &RegImm<W16>);
        HandlerTable.Set(Code.Mov_rm32_imm32, &MemImm<W32>, &RegImm<W32>);
        HandlerTable.Set(Code.Mov_rm64_imm32, &MemImm<W64>, &RegImm<W64>);
        HandlerTable.Set(Code.Movnti_m32_r32, &MemReg<W32>);
        HandlerTable.Set(Code.Movnti_m64_r64, &MemReg<W64>);

        HandlerTable.Set(Code.Movzx_r16_rm8, &ZeroMem<W16, W8>, &ZeroReg<W16, W8>);
        HandlerTable.Set(Code.Movzx_r32_rm8, &ZeroMem<W32, W8>, &ZeroReg<W32, W8>);
        HandlerTable.Set(Code.Movzx_r64_rm8, &ZeroMem<W64, W8>, &ZeroReg<W64, W8>);
        HandlerTable.Set(Code.Movzx_r16_rm16, &ZeroMem<W16, W16>, &ZeroReg<W16, W16>);
        HandlerTable.Set(Code.Movzx_r32_rm16, &ZeroMem<W32, W16>, &ZeroReg<W32, W16>);
        HandlerTable.Set(Code.Movzx_r64_rm16, &ZeroMem<W64, W16>, &ZeroReg<W64, W16>);
        HandlerTable.Set(Code.Movsx_r16_rm8, &SignMem<W16, W8>, &SignReg<W16, W8>);
        HandlerTable.Set(Code.Movsx_r32_rm8, &SignMem<W32, W8>, &SignReg<W32, W8>);
        HandlerTable.Set(Code.Movsx_r64_rm8, &SignMem<W64, W8>, &SignReg<W64, W8>);
        HandlerTable.Set(Code.Movsx_r16_rm16, &SignMem<W16, W16>, &SignReg<W16, W16>);
        HandlerTable.Set(Code.Movsx_r32_rm16, &SignMem<W32, W16>, &SignReg<W32, W16>);
        HandlerTable.Set(Code.Movsx_r64_rm16, &SignMem<W64, W16>, &SignReg<W64, W16>);
        HandlerTable.Set(Code.Movsxd_r16_rm16, &RegMem<W16>, &RegReg<W16>);
        HandlerTable.Set(Code.Movsxd_r32_rm32, &RegMem<W32>, &RegReg<W32>);
        HandlerTable.Set(Code.Movsxd_r64_rm32, &SignMem<W64, W32>, &SignReg<W64, W32>);

        HandlerTable.Set(Code.Lea_r16_m, &Lea<W16>);
        HandlerTable.Set(Code.Lea_r32_m, &Lea<W32>);
        HandlerTable.Set(Code.Lea_r64_m, &Lea<W64>);

        HandlerTable.Set(Code.Xchg_rm8_r8, &XchgMem<W8>, &XchgReg<W8>);
        HandlerTable.Set(Code.Xchg_rm16_r16, &XchgMem<W16>, &XchgReg<W16>);
        HandlerTable.Set(Code.Xchg_rm32_r32, &XchgMem<W32>, &XchgReg<W32>);
        HandlerTable.Set(Code.Xchg_rm64_r64, &XchgMem<W64>, &XchgReg<W64>);
        HandlerTable.Set(Code.Xchg_r16_AX, &XchgReg<W16>);
        HandlerTable.Set(Code.Xchg_r32_EAX, &XchgReg<W32>);
        HandlerTable.Set(Code.Xchg_r64_RAX, &XchgReg<W64>);

        Conditions.Register<Conditionals>();

        HandlerTable.Set(Code.Movbe_r16_m16, &MovbeLoad<W16>);
        HandlerTable.Set(Code.Movbe_r32_m32, &MovbeLoad<W32>);
        HandlerTable.Set(Code.Movbe_r64_m64, &MovbeLoad<W64>);
        HandlerTable.Set(Code.Movbe_m16_r16, &MovbeStore<W16>);
        HandlerTable.Set(Code.Movbe_m32_r32, &MovbeStore<W32>);
        HandlerTable.Set(Code.Movbe_m64_r64, &MovbeStore<W64>);
        HandlerTable.Set(Code.Bswap_r16, &Bswap16);
        HandlerTable.Set(Code.Bswap_r32, &Bswap<W32>);
        HandlerTable.Set(Code.Bswap_r64, &Bswap<W64>);

        HandlerTable.Set(Code.Cbw, &ExtendAccumulator<W16, W8>);
        HandlerTable.Set(Code.Cwde, &ExtendAccumulator<W32, W16>);
        HandlerTable.Set(Code.Cdqe, &ExtendAccumulator<W64, W32>);
        HandlerTable.Set(Code.Cwd, &ExtendToDx<W16>);
        HandlerTable.Set(Code.Cdq, &ExtendToDx<W32>);
        HandlerTable.Set(Code.Cqo, &ExtendToDx<W64>);
    }
}

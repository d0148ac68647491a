using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>CMPXCHG, CMPXCHG8B, CMPXCHG16B.</summary>
/// <remarks>SAFETY: pointers come from ModifyPtr, for all bytes of the operand; a locked one that crosses a line goes to <see cref="SplitAccess"/>.</remarks>
internal static unsafe class ExchangeHandlers
{
    private static OpResult Reg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong accumulator = W.Get((byte*)c), old = Shape.Reg0<W>(c, op);
        Width.FlagsSub<W>(c, accumulator, old, (accumulator - old) & Width.Mask<W>());
        if (accumulator == old)
            Shape.SetReg0<W>(c, op, Shape.Reg1<W>(c, op));
        else
            W.Set((byte*)c, old);
        return OpResult.Next;
    }

    private static OpResult Mem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return (op->Flags & OpFlags.Lock) != 0 && BusLock.IsSplit(linear, W.Bytes) ? Split<W>(p, c, op, linear) : At<W>(p, c, op, linear);
    }

    private static OpResult Split<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        ulong accumulator = W.Get((byte*)c);
        SplitCompare change = new() { Expected = accumulator, Desired = Shape.Reg1<W>(c, op) };
        OpResult end = p.ChangeSplit(c, linear, W.Bytes, ref change, out ulong old);
        if (end == OpResult.Next)
            Finish<W>(c, accumulator, old);
        return BusLock.BusLocked(c, op, end);
    }

    private struct SplitCompare : ISplitChange
    {
        public ulong Expected, Desired;

        public static bool IsComparison => true;

        public readonly bool Apply(ulong old, out ulong value)
        {
            value = Desired;
            return old == Expected;
        }
    }

    private static OpResult At<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        ulong accumulator = W.Get((byte*)c), value = Shape.Reg1<W>(c, op), old;
        if ((op->Flags & OpFlags.Lock) != 0)
            old = W.CompareExchange(ptr, value, accumulator);
        else
        {
            old = W.Get(ptr);
            W.Put(ptr, old == accumulator ? value : old);
        }
        OpResult end = p.Access.EndWrite(c, ptr, linear, W.Bytes);
        if (end != OpResult.Next)
            return end;
        Finish<W>(c, accumulator, old);
        return OpResult.Next;
    }

    private static void Finish<W>(CpuState* c, ulong accumulator, ulong old) where W : IWidth
    {
        Width.FlagsSub<W>(c, accumulator, old, (accumulator - old) & Width.Mask<W>());
        if (old != accumulator)
            W.Set((byte*)c, old);
    }

    private static OpResult Pair8(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Addressing.LinearAddress(c, op, 8, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return BusLock.IsSplit(linear, 8) ? Pair8Split(p, c, op, linear) : Pair8At(p, c, linear);
    }

    private static OpResult Pair8Split(LogicalProcessor p, CpuState* c, Op* op, ulong linear)
    {
        if ((op->Flags & OpFlags.Lock) == 0)
            return Pair8Apart(p, c, linear);
        ulong expected = Expected8(c);
        SplitCompare change = new() { Expected = expected, Desired = Desired8(c) };
        OpResult end = p.ChangeSplit(c, linear, 8, ref change, out ulong old);
        if (end == OpResult.Next)
            Finish8(c, expected, old);
        return BusLock.BusLocked(c, op, end);
    }

    /// <summary>Not locked: a read and a write, between which others may write.</summary>
    private static OpResult Pair8Apart(LogicalProcessor p, CpuState* c, ulong linear)
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, 8);
        if (ptr == null)
            return OpResult.Fault;
        ulong expected = Expected8(c), old = W64.Get(ptr);
        W64.Put(ptr, old == expected ? Desired8(c) : old);
        OpResult end = p.Access.EndWrite(c, ptr, linear, 8);
        if (end == OpResult.Next)
            Finish8(c, expected, old);
        return end;
    }

    private static ulong Expected8(CpuState* c) => (uint)c->Gpr[0] | c->Gpr[2] << 32;
    private static ulong Desired8(CpuState* c) => (uint)c->Gpr[3] | c->Gpr[1] << 32;

    private static void Finish8(CpuState* c, ulong expected, ulong old)
    {
        Flags.SetZF(c, old == expected);
        if (old == expected)
            return;
        c->Gpr[0] = (uint)old;
        c->Gpr[2] = old >> 32;
    }

    private static OpResult Pair8At(LogicalProcessor p, CpuState* c, ulong linear)
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, 8);
        if (ptr == null)
            return OpResult.Fault;
        ulong expected = Expected8(c), old = Interlocked.CompareExchange(ref *(ulong*)ptr, Desired8(c), expected);
        OpResult end = p.Access.EndWrite(c, ptr, linear, 8);
        if (end != OpResult.Next)
            return end;
        Finish8(c, expected, old);
        return OpResult.Next;
    }

    private static OpResult Pair16(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Addressing.LinearAddress(c, op, 16, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        if ((linear & 15) != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        byte* ptr = p.Access.ModifyPtr(c, linear, 16);
        if (ptr == null)
            return OpResult.Fault;
        UInt128 expected = new(c->Gpr[2], c->Gpr[0]), desired = new(c->Gpr[1], c->Gpr[3]);
        if (!UserCopy.CompareExchange((ulong)ptr, desired, expected, out UInt128 old))
            return Outcome.LeaveForMemory(c, (ulong)ptr, AccessKind.Write);
        bool equal = old == expected;
        OpResult end = p.Access.EndWrite(c, ptr, linear, 16);
        if (end != OpResult.Next)
            return end;
        Flags.SetZF(c, equal);
        if (!equal)
        {
            c->Gpr[0] = (ulong)old;
            c->Gpr[2] = (ulong)(old >> 64);
        }
        return OpResult.Next;
    }

    public static void Register()
    {
        HandlerTable.Set(Code.Cmpxchg_rm8_r8, &Mem<W8>, &Reg<W8>);
        HandlerTable.Set(Code.Cmpxchg_rm16_r16, &Mem<W16>, &Reg<W16>);
        HandlerTable.Set(Code.Cmpxchg_rm32_r32, &Mem<W32>, &Reg<W32>);
        HandlerTable.Set(Code.Cmpxchg_rm64_r64, &Mem<W64>, &Reg<W64>);
        HandlerTable.Set(Code.Cmpxchg8b_m64, &Pair8);
        HandlerTable.Set(Code.Cmpxchg16b_m128, &Pair16);
    }
}

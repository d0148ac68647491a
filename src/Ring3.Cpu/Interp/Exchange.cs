using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>CMPXCHG, CMPXCHG8B, CMPXCHG16B.</summary>
/// <remarks>SAFETY: see <see cref="Shape"/>.</remarks>
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
        if (!p.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return (op->Flags & OpFlags.Lock) != 0 && LogicalProcessor.IsSplit(linear, W.Bytes) ? Split<W>(p, c, op, linear) : At<W>(p, c, op, linear);
    }

    private static OpResult Split<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        if (!LogicalProcessor.CrossesPage(linear, W.Bytes))
            return p.BusLocked(c, op, At<W>(p, c, op, linear));
        lock (p.Machine.SplitLock)
            return p.BusLocked(c, op, At<W>(p, c, op, linear));
    }

    private static OpResult At<W>(LogicalProcessor p, CpuState* c, Op* op, ulong linear) where W : IWidth
    {
        byte* ptr = p.ModifyPtr(c, linear, W.Bytes);
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
        OpResult end = p.EndWrite(c, ptr, linear, W.Bytes);
        if (end != OpResult.Next)
            return end;
        Width.FlagsSub<W>(c, accumulator, old, (accumulator - old) & Width.Mask<W>());
        if (old != accumulator)
            W.Set((byte*)c, old);
        return OpResult.Next;
    }

    private static OpResult Pair8(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.LinearAddress(c, op, 8, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return LogicalProcessor.IsSplit(linear, 8) ? Pair8Split(p, c, op, linear) : Pair8At(p, c, linear);
    }

    private static OpResult Pair8Split(LogicalProcessor p, CpuState* c, Op* op, ulong linear)
    {
        OpResult end;
        if (!LogicalProcessor.CrossesPage(linear, 8))
            end = Pair8At(p, c, linear);
        else
            lock (p.Machine.SplitLock)
                end = Pair8At(p, c, linear);
        return (op->Flags & OpFlags.Lock) != 0 ? p.BusLocked(c, op, end) : end;
    }

    private static OpResult Pair8At(LogicalProcessor p, CpuState* c, ulong linear)
    {
        byte* ptr = p.ModifyPtr(c, linear, 8);
        if (ptr == null)
            return OpResult.Fault;
        ulong expected = (uint)c->Gpr[0] | c->Gpr[2] << 32, desired = (uint)c->Gpr[3] | c->Gpr[1] << 32;
        ulong old = Interlocked.CompareExchange(ref *(ulong*)ptr, desired, expected);
        OpResult end = p.EndWrite(c, ptr, linear, 8);
        if (end != OpResult.Next)
            return end;
        Flags.SetZF(c, old == expected);
        if (old != expected)
        {
            c->Gpr[0] = (uint)old;
            c->Gpr[2] = old >> 32;
        }
        return OpResult.Next;
    }

    private static OpResult Pair16(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.LinearAddress(c, op, 16, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        if ((linear & 15) != 0)
            return p.Raise(c, Vector.GP, 0);
        byte* ptr = p.ModifyPtr(c, linear, 16);
        if (ptr == null)
            return OpResult.Fault;
        UInt128 expected = new(c->Gpr[2], c->Gpr[0]), desired = new(c->Gpr[1], c->Gpr[3]);
        if (!UserCopy.CompareExchange((ulong)ptr, desired, expected, out UInt128 old))
            return p.FailMemory(c, (ulong)ptr, AccessKind.Write);
        bool equal = old == expected;
        OpResult end = p.EndWrite(c, ptr, linear, 16);
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

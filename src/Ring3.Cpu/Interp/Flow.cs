using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Near jumps, calls and returns, LOOP, JCXZ, BOUND, UD.</summary>
/// <remarks>SAFETY: branch targets are values and never followed; memory is reached through <see cref="Shape"/> and <see cref="StackHandlers"/>.</remarks>
internal static unsafe class FlowHandlers
{
    /// <summary>Checks a branch target against the code segment or for being canonical. False: #GP(0) is pending.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Check<W>(CpuState* c, ulong target) where W : IWidth
    {
        // 64-bit targets belong to 64-bit mode; shorter ones are canonical there.
        if (W.Bytes == 8 ? CpuMode.IsCanonical(c, target) : target <= c->Cs.Limit || c->BlockMode == BlockMode.Code64)
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult Go<W>(CpuState* c, ulong target, OpResult how) where W : IWidth
    {
        if (!Check<W>(c, target))
            return OpResult.Fault;
        c->Rip = target;
        return how;
    }

    private static ulong Relative<W>(CpuState* c, Op* op) where W : IWidth => (c->BlockRip + op->Imm) & Width.Mask<W>();

    private static OpResult Jmp<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Go<W>(c, Relative<W>(c, op), OpResult.Taken);

    private static OpResult Jcc<W, C>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth where C : struct, ICondition =>
        Branch<W>(c, op, C.Holds(c));

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult Branch<W>(CpuState* c, Op* op, bool taken) where W : IWidth
    {
        if (taken)
            return Go<W>(c, Relative<W>(c, op), OpResult.Taken);
        c->Rip = Addressing.NextRip(c, op);
        return OpResult.Fall;
    }

    /// <summary>The op behind the last instruction of a block that ends without a transfer.</summary>
    internal static OpResult FallThrough(LogicalProcessor p, CpuState* c, Op* op)
    {
        c->Rip = Addressing.NextRip(c, op);
        return OpResult.Fall;
    }

    private static OpResult Call<W>(LogicalProcessor p, CpuState* c, Op* op, ulong target, OpResult how) where W : IWidth
    {
        ulong next = Addressing.NextRip(c, op);
        if (!Check<W>(c, target))
        {
            // Any fault of the push comes before that of the target.
            ulong sp = MemoryGuard.Keep(c, op);
            if (p.Model.PushesBeforeTarget && c->BlockMode == BlockMode.Code64
                ? StackHandlers.Push<W>(p, c, next) == OpResult.Next
                : StackHandlers.CanPush<W>(p, c))
                Outcome.Raise(c, Vector.GP, 0);
            c->Gpr[4] = sp;
            return OpResult.Fault;
        }
        OpResult end = StackHandlers.Push<W>(p, c, next);
        if (end != OpResult.Next)
            return end;
        c->Rip = target;
        return how;
    }

    private static OpResult CallRelative<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Call<W>(p, c, op, Relative<W>(c, op), OpResult.Taken);
    private static OpResult CallReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Call<W>(p, c, op, Shape.Reg0<W>(c, op), OpResult.Jump);
    private static OpResult CallMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => Shape.Load<W>(p, c, op, out ulong target) ? Call<W>(p, c, op, target, OpResult.Jump) : OpResult.Fault;
    private static OpResult JmpReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Go<W>(c, Shape.Reg0<W>(c, op), OpResult.Jump);
    private static OpResult JmpMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong target) ? Go<W>(c, target, OpResult.Jump) : OpResult.Fault;

    private static OpResult Ret<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!StackHandlers.Peek<W>(p, c, 0, out ulong target) || !Check<W>(c, target))
            return OpResult.Fault;
        StackHandlers.Drop(c, (ulong)W.Bytes + (ushort)op->Imm);
        c->Rip = target;
        return OpResult.Jump;
    }

    /// <summary>LOOP (0), LOOPE (1), LOOPNE (2): C is the counter's width, W that of the instruction pointer.</summary>
    private static OpResult Loop<C, W>(LogicalProcessor p, CpuState* c, Op* op) where C : IWidth where W : IWidth
    {
        ulong count = (C.Get((byte*)&c->Gpr[1]) - 1) & Width.Mask<C>();
        bool taken = count != 0 && op->Aux switch { 1 => Flags.ZF(c), 2 => !Flags.ZF(c), _ => true };
        if (taken && !Check<W>(c, Relative<W>(c, op)))
            return OpResult.Fault;
        C.Set((byte*)&c->Gpr[1], count);
        return Branch<W>(c, op, taken);
    }

    private static OpResult Jcxz<C, W>(LogicalProcessor p, CpuState* c, Op* op) where C : IWidth where W : IWidth =>
        Branch<W>(c, op, C.Get((byte*)&c->Gpr[1]) == 0);

    private static OpResult Bound<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Addressing.LinearAddress(c, op, 2 * W.Bytes, AccessKind.Read, out ulong linear))
            return OpResult.Fault;
        // Two accesses: each bound is aligned by itself.
        byte* ptr = p.Access.ReadPtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        long low = (long)W.SignExtend(W.Get(ptr)), index = (long)W.SignExtend(Shape.Reg0<W>(c, op));
        if (index < low && p.Model.BoundsInTurn)
            return Outcome.Raise(c, Vector.BR);
        ptr = p.Access.ReadPtr(c, (uint)(linear + (ulong)W.Bytes), W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        long high = (long)W.SignExtend(W.Get(ptr));
        return index < low || index > high ? Outcome.Raise(c, Vector.BR) : OpResult.Next;
    }

    private static OpResult Undefined(LogicalProcessor p, CpuState* c, Op* op) => Outcome.Raise(c, Vector.UD);

    public static void Register()
    {
        Branches<W16>(0);
        Branches<W32>(1);
        Branches<W64>(2);
        Conditions.Register<Jccs>();
        Loops();
        HandlerTable.Set(Code.Bound_r16_m1616, &Bound<W16>);
        HandlerTable.Set(Code.Bound_r32_m3232, &Bound<W32>);
        HandlerTable.Set(Code.Ud2, &Undefined, true);
    }

    private struct Jccs : IConditionalFamily
    {
        public static void Register<C>(int cc) where C : struct, ICondition
        {
            Width<W16, C>(3 * cc);
            Width<W32, C>(3 * cc + 1);
            Width<W64, C>(3 * cc + 2);
        }

        private static void Width<W, C>(int n) where W : IWidth where C : struct, ICondition
        {
            HandlerTable.Set(Code.Jo_rel8_16 + n, &Jcc<W, C>, true);
            HandlerTable.Set(Code.Jo_rel16 + n, &Jcc<W, C>, true);
        }
    }

    private static void Branches<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.Jmp_rel8_16 + n, &Jmp<W>, true);
        HandlerTable.Set(Code.Jmp_rel16 + n, &Jmp<W>, true);
        HandlerTable.Set(Code.Call_rel16 + n, &CallRelative<W>, true);
        HandlerTable.Set(Code.Call_rm16 + n, &CallMem<W>, &CallReg<W>, true);
        HandlerTable.Set(Code.Jmp_rm16 + n, &JmpMem<W>, &JmpReg<W>, true);
        HandlerTable.Set(Code.Retnw + n, &Ret<W>, true);
        HandlerTable.Set(Code.Retnw_imm16 + n, &Ret<W>, true);
    }

    private static void Loops()
    {
        Loop(Code.Loop_rel8_16_CX, 0);
        Loop(Code.Loope_rel8_16_CX, 1);
        Loop(Code.Loopne_rel8_16_CX, 2);
        HandlerTable.Set(Code.Jcxz_rel8_16, &Jcxz<W16, W16>, true);
        HandlerTable.Set(Code.Jcxz_rel8_32, &Jcxz<W16, W32>, true);
        HandlerTable.Set(Code.Jecxz_rel8_16, &Jcxz<W32, W16>, true);
        HandlerTable.Set(Code.Jecxz_rel8_32, &Jcxz<W32, W32>, true);
        HandlerTable.Set(Code.Jecxz_rel8_64, &Jcxz<W32, W64>, true);
        HandlerTable.Set(Code.Jrcxz_rel8_16, &Jcxz<W64, W16>, true);
        HandlerTable.Set(Code.Jrcxz_rel8_64, &Jcxz<W64, W64>, true);
    }

    /// <summary>The seven encodings in Iced's order: 16/CX, 32/CX, 16/ECX, 32/ECX, 64/ECX, 16/RCX, 64/RCX.</summary>
    private static void Loop(Code first, uint kind)
    {
        HandlerTable.Set(first, null, &Loop<W16, W16>, true, kind);
        HandlerTable.Set(first + 1, null, &Loop<W16, W32>, true, kind);
        HandlerTable.Set(first + 2, null, &Loop<W32, W16>, true, kind);
        HandlerTable.Set(first + 3, null, &Loop<W32, W32>, true, kind);
        HandlerTable.Set(first + 4, null, &Loop<W32, W64>, true, kind);
        HandlerTable.Set(first + 5, null, &Loop<W64, W16>, true, kind);
        HandlerTable.Set(first + 6, null, &Loop<W64, W64>, true, kind);
    }
}

using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>PUSH, POP, PUSHA, POPA, PUSHF, POPF, ENTER, LEAVE.</summary>
/// <remarks>SAFETY: each slot of the stack is translated before it is read or written; RSP moves after the last access.</remarks>
internal static unsafe class StackHandlers
{
    /// <summary>A stack access failed: a non-canonical address is #SS(0).</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult Failed(CpuState* c)
    {
        if (c->ExitPending == 0 && c->PendingNonCanonical != 0)
            c->PendingVector = Vector.SS;
        c->PendingNonCanonical = 0;
        return OpResult.Fault;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Linear(LogicalProcessor p, CpuState* c, ulong sp, int size, AccessKind access, out ulong linear)
    {
        linear = sp;
        return c->BlockMode == BlockMode.Code64 || Addressing.SegmentLinear(c, SegmentIndex.SS, sp, size, access, out linear);
    }

    /// <summary>Writes below the stack pointer and moves it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static OpResult Push<W>(LogicalProcessor p, CpuState* c, ulong value) where W : IWidth
    {
        ulong linear = c->Gpr[4] - (ulong)W.Bytes;
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if (((linear + (ulong)W.Bytes - 1) & ~0xfffUL | c->TlbContext) != e->TagWrite || c->BlockMode != BlockMode.Code64)
            return PushSlow<W>(p, c, value);
        byte* ptr = (byte*)(linear + (ulong)e->Addend);
        W.Put(ptr, value);
        c->Gpr[4] = linear;
        return Shape.MeetsCode(e, linear) ? p.Access.EndWriteSlow(c, ptr, linear, W.Bytes) : OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult PushSlow<W>(LogicalProcessor p, CpuState* c, ulong value) where W : IWidth
    {
        ulong mask = Addressing.StackMask(c), sp = (c->Gpr[4] - (ulong)W.Bytes) & mask;
        if (!Linear(p, c, sp, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        byte* ptr = p.Access.WritePtr(c, linear, W.Bytes);
        if (ptr == null)
            return Failed(c);
        W.Put(ptr, value);
        OpResult end = p.Access.EndWrite(c, ptr, linear, W.Bytes);
        if (end == OpResult.Next)
            Addressing.SetStackPointer(c, sp, mask);
        return end;
    }

    /// <summary>Reads at an offset from the stack pointer; moves nothing.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Peek<W>(LogicalProcessor p, CpuState* c, ulong offset, out ulong value) where W : IWidth
    {
        ulong linear = c->Gpr[4] + offset;
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if (((linear + (ulong)W.Bytes - 1) & ~0xfffUL | c->TlbContext) != e->TagRead || c->BlockMode != BlockMode.Code64)
            return PeekSlow<W>(p, c, offset, out value);
        value = W.Get((byte*)(linear + (ulong)e->Addend));
        return true;
    }

    /// <summary>Whether a push would succeed; if not, its fault is pending.</summary>
    public static bool CanPush<W>(LogicalProcessor p, CpuState* c) where W : IWidth
    {
        ulong sp = (c->Gpr[4] - (ulong)W.Bytes) & Addressing.StackMask(c);
        if (!Linear(p, c, sp, W.Bytes, AccessKind.Write, out ulong linear))
            return false;
        if (p.Access.ModifyPtr(c, linear, W.Bytes) != null)
            return true;
        Failed(c);
        return false;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool PeekSlow<W>(LogicalProcessor p, CpuState* c, ulong offset, out ulong value) where W : IWidth
    {
        value = 0;
        ulong sp = (c->Gpr[4] + offset) & Addressing.StackMask(c);
        if (!Linear(p, c, sp, W.Bytes, AccessKind.Read, out ulong linear))
            return false;
        byte* ptr = p.Access.ReadPtr(c, linear, W.Bytes);
        if (ptr == null)
        {
            Failed(c);
            return false;
        }
        value = W.Get(ptr);
        return true;
    }

    /// <summary>Moves the stack pointer up.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Drop(CpuState* c, ulong bytes)
        => Addressing.SetStackPointer(c, c->Gpr[4] + bytes, Addressing.StackMask(c));

    private static OpResult PushReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Push<W>(p, c, Shape.Reg0<W>(c, op));
    private static OpResult PushImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Push<W>(p, c, op->Imm);
    private static OpResult PushMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong value) ? Push<W>(p, c, value) : OpResult.Fault;

    private static OpResult PopReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Peek<W>(p, c, 0, out ulong value))
            return OpResult.Fault;
        Drop(c, (ulong)W.Bytes);
        Shape.SetReg0<W>(c, op, value);
        return OpResult.Next;
    }

    /// <summary>The stack pointer is incremented before the operand's address is computed from it.</summary>
    private static OpResult PopMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong old = MemoryGuard.Keep(c, op);
        if (!Peek<W>(p, c, 0, out ulong value))
            return OpResult.Fault;
        Drop(c, (ulong)W.Bytes);
        OpResult end = Shape.Store<W>(p, c, op, value);
        if (end != OpResult.Next)
            c->Gpr[4] = old;
        return end;
    }

    private static OpResult PushAll<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong old = MemoryGuard.Keep(c, op);
        for (int i = 0; i < 8; i++)
        {
            OpResult end = Push<W>(p, c, i == 4 ? old : c->Gpr[i]);
            if (end != OpResult.Next)
            {
                c->Gpr[4] = old;
                return end;
            }
        }
        return OpResult.Next;
    }

    private static OpResult PopAll<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong* values = stackalloc ulong[8];
        for (int i = 0; i < 8; i++)
            if (!Peek<W>(p, c, (ulong)(i * W.Bytes), out values[i]))
                return OpResult.Fault;
        for (int i = 0; i < 8; i++)
            if (i != 3)
                W.Set((byte*)&c->Gpr[7 - i], values[i]);
        Drop(c, (ulong)(8 * W.Bytes));
        return OpResult.Next;
    }

    private static OpResult PushFlags<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => VirtualInterrupts.FlagsAccessOf(c, W.Bytes) switch
    {
        FlagsAccess.Real => Push<W>(p, c, Flags.Get(c) & ~(Rflags.RF | Rflags.VM)),
        FlagsAccess.Virtual => Push<W>(p, c, VirtualInterrupts.FlagsOf(c)),
        _ => Outcome.Raise(c, Vector.GP, 0),
    };

    private static OpResult PopFlags<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        FlagsAccess access = VirtualInterrupts.FlagsAccessOf(c, W.Bytes);
        if (access == FlagsAccess.Denied)
            return Outcome.Raise(c, Vector.GP, 0);
        if (!Peek<W>(p, c, 0, out ulong value) || (access == FlagsAccess.Virtual && !VirtualInterrupts.MayLoad(c, value)))
            return OpResult.Fault;
        Drop(c, (ulong)W.Bytes);
        if (access == FlagsAccess.Virtual)
        {
            p.Events.LoadVirtualFlags(c, value);
            return Outcome.EndBlock(c, op);
        }
        ulong change = Rflags.Status | Rflags.TF | Rflags.DF | Rflags.NT;
        if (W.Bytes != 2)
            change |= Rflags.AC | Rflags.ID;
        if (c->Cpl == 0)
            change |= Rflags.IOPL;
        if (c->Cpl <= (c->Rflags & Rflags.IOPL) >> Rflags.IoplShift)
            change |= Rflags.IF;
        ulong kept = Flags.Get(c) & ~(change | Rflags.RF);
        p.Events.SetRflags(c, kept | value & change);
        return Outcome.EndBlock(c, op);
    }

    private static OpResult Leave<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong mask = Addressing.StackMask(c), old = MemoryGuard.Keep(c, op);
        Addressing.SetStackPointer(c, c->Gpr[5], mask);
        if (!Peek<W>(p, c, 0, out ulong value))
        {
            c->Gpr[4] = old;
            return OpResult.Fault;
        }
        Drop(c, (ulong)W.Bytes);
        W.Set((byte*)&c->Gpr[5], value);
        return OpResult.Next;
    }

    private static OpResult Enter<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong mask = Addressing.StackMask(c), old = MemoryGuard.Keep(c, op), frameBase = c->Gpr[5];
        int level = op->Imm2 & 31;
        OpResult end = Push<W>(p, c, frameBase);
        ulong frame = c->Gpr[4];
        for (int i = 1; i <= level && end == OpResult.Next; i++)
        {
            if (i == level)
            {
                end = Push<W>(p, c, frame);
                break;
            }
            frameBase -= (ulong)W.Bytes;
            ulong at = frameBase & mask, value = 0;
            if (!Linear(p, c, at, W.Bytes, AccessKind.Read, out ulong linear))
                end = OpResult.Fault;
            else
            {
                byte* ptr = p.Access.ReadPtr(c, linear, W.Bytes);
                if (ptr == null)
                    end = Failed(c);
                else
                    value = W.Get(ptr);
            }
            if (end == OpResult.Next)
                end = Push<W>(p, c, value);
        }
        if (end == OpResult.Next)
            end = ReserveFrame<W>(p, c, op, mask);
        if (end != OpResult.Next)
        {
            c->Gpr[4] = old;
            return end;
        }
        W.Set((byte*)&c->Gpr[5], frame);
        return OpResult.Next;
    }

    /// <summary>Moves the stack pointer over the frame, whose last byte must be writable.</summary>
    private static OpResult ReserveFrame<W>(LogicalProcessor p, CpuState* c, Op* op, ulong mask) where W : IWidth
    {
        ulong sp = (c->Gpr[4] - (ushort)op->Imm) & mask;
        if (!Linear(p, c, sp, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        if (p.Access.ModifyPtr(c, linear, W.Bytes) == null)
            return Failed(c);
        Addressing.SetStackPointer(c, sp, mask);
        return OpResult.Next;
    }

    public static void Register()
    {
        Widths<W16>(0);
        Widths<W32>(1);
        Widths<W64>(2);
        HandlerTable.Set(Code.Push_imm16, &PushImm<W16>);
        HandlerTable.Set(Code.Pushd_imm32, &PushImm<W32>);
        HandlerTable.Set(Code.Pushq_imm32, &PushImm<W64>);
        HandlerTable.Set(Code.Pushaw, &PushAll<W16>);
        HandlerTable.Set(Code.Pushad, &PushAll<W32>);
        HandlerTable.Set(Code.Popaw, &PopAll<W16>);
        HandlerTable.Set(Code.Popad, &PopAll<W32>);
    }

    private static void Widths<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.Push_r16 + n, &PushReg<W>);
        HandlerTable.Set(Code.Pop_r16 + n, &PopReg<W>);
        HandlerTable.Set(Code.Push_rm16 + n, &PushMem<W>, &PushReg<W>);
        HandlerTable.Set(Code.Pop_rm16 + n, &PopMem<W>, &PopReg<W>);
        HandlerTable.Set(Code.Pushw_imm8 + n, &PushImm<W>);
        HandlerTable.Set(Code.Pushfw + n, &PushFlags<W>);
        HandlerTable.Set(Code.Popfw + n, &PopFlags<W>, endsBlock: true);
        HandlerTable.Set(Code.Leavew + n, &Leave<W>);
        HandlerTable.Set(Code.Enterw_imm16_imm8 + n, &Enter<W>);
    }
}

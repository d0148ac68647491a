using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Shapes of instructions: how operands are fetched and results stored, for any width and operation.</summary>
/// <remarks>SAFETY: register operands are offsets into CpuState; memory pointers come from the TLB and cover the operand's width.</remarks>
internal static unsafe class Shape
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Reg0<W>(CpuState* c, Op* op) where W : IWidth => W.Get((byte*)c + op->Reg0);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Reg1<W>(CpuState* c, Op* op) where W : IWidth => W.Get((byte*)c + op->Reg1);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetReg0<W>(CpuState* c, Op* op, ulong value) where W : IWidth => W.Set((byte*)c + op->Reg0, value);

    /// <summary>
    /// The common case of a memory operand: a plain address whose bytes lie in one page, which level 1 of the TLB has. Else null: nothing is known.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static byte* Hit<W>(CpuState* c, Op* op, bool write, out ulong linear, out TlbEntry* e) where W : IWidth
    {
        linear = Addressing.PlainAddress(c, op);
        e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        ulong tag = (linear + (ulong)W.Bytes - 1) & ~0xfffUL | c->TlbContext;
        return tag == (write ? e->TagWrite : e->TagRead) && (op->Flags & OpFlags.Plain) != 0 ? (byte*)(linear + (ulong)e->Addend) : null;
    }

    /// <summary>Whether a store there has to look for code that it has overwritten: asked behind the store. Memory that level 1 has never leaves.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool MeetsCode(TlbEntry* e, ulong linear) => (*e->CodeBits >> (int)((linear >> 6) & 63) & 1) != 0;

    /// <summary>Reads the memory operand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool Load<W>(LogicalProcessor p, CpuState* c, Op* op, out ulong value) where W : IWidth
    {
        byte* ptr = Hit<W>(c, op, write: false, out _, out _);
        if (ptr == null)
            return LoadSlow<W>(p, c, op, out value);
        value = W.Get(ptr);
        return true;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool LoadSlow<W>(LogicalProcessor p, CpuState* c, Op* op, out ulong value) where W : IWidth
    {
        value = 0;
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Read, out ulong linear))
            return false;
        byte* ptr = p.Access.ReadPtr(c, linear, W.Bytes);
        if (ptr == null)
            return false;
        value = W.Get(ptr);
        return true;
    }

    /// <summary>Writes the memory operand.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static OpResult Store<W>(LogicalProcessor p, CpuState* c, Op* op, ulong value) where W : IWidth
    {
        byte* ptr = Hit<W>(c, op, write: true, out ulong linear, out TlbEntry* e);
        if (ptr == null)
            return StoreSlow<W>(p, c, op, value);
        W.Put(ptr, value);
        return MeetsCode(e, linear) ? p.Access.EndWriteSlow(c, ptr, linear, W.Bytes) : OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult StoreSlow<W>(LogicalProcessor p, CpuState* c, Op* op, ulong value) where W : IWidth
    {
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        byte* ptr = p.Access.WritePtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        W.Put(ptr, value);
        return p.Access.EndWrite(c, ptr, linear, W.Bytes);
    }

    /// <summary>
    /// Read-modify-write of the memory operand. The operation is pure: it computes the new value; flags and other registers are written afterwards, when the
    /// store has succeeded.
    /// With LOCK it is a compare-exchange loop on the host's memory, so that other processors and the owner's threads see it as one access.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static OpResult Modify<W, O>(LogicalProcessor p, CpuState* c, Op* op, ulong source) where W : IWidth where O : struct, IModify
    {
        byte* ptr = Hit<W>(c, op, write: true, out ulong linear, out TlbEntry* e);
        if (ptr == null || (op->Flags & OpFlags.Lock) != 0)
            return ModifySlow<W, O>(p, c, op, source);
        ulong old = W.Get(ptr), result = O.Compute<W>(c, old, source);
        W.Put(ptr, result);
        O.Finish<W>(c, op, old, source, result & Width.Mask<W>());
        return MeetsCode(e, linear) ? p.Access.EndWriteSlow(c, ptr, linear, W.Bytes) : OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult ModifySlow<W, O>(LogicalProcessor p, CpuState* c, Op* op, ulong source) where W : IWidth where O : struct, IModify
    {
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        return ModifyAt<W, O>(p, c, op, linear, source);
    }

    public static OpResult ModifyAt<W, O>(LogicalProcessor p, CpuState* c, Op* op, ulong linear, ulong source) where W : IWidth where O : struct, IModify
    {
        bool locked = (op->Flags & OpFlags.Lock) != 0;
        if (locked && BusLock.IsSplit(linear, W.Bytes))
            return ModifySplit<W, O>(p, c, op, linear, source);
        return ModifyWhole<W, O>(p, c, op, linear, source, locked);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult ModifyWhole<W, O>(LogicalProcessor p, CpuState* c, Op* op, ulong linear, ulong source, bool locked)
        where W : IWidth where O : struct, IModify
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        ulong old, result;
        if (locked)
            do
            {
                old = W.Get(ptr);
                result = O.Compute<W>(c, old, source);
            }
            while (W.CompareExchange(ptr, result, old) != old);
        else
        {
            old = W.Get(ptr);
            result = O.Compute<W>(c, old, source);
            W.Put(ptr, result);
        }
        OpResult end = p.Access.EndWrite(c, ptr, linear, W.Bytes);
        if (end == OpResult.Next)
            O.Finish<W>(c, op, old, source, result & Width.Mask<W>());
        return end;
    }

    /// <summary>A locked access that crosses a cache line: a bus lock.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult ModifySplit<W, O>(LogicalProcessor p, CpuState* c, Op* op, ulong linear, ulong source) where W : IWidth where O : struct, IModify
    {
        SplitModify<W, O> change = new() { State = c, Source = source };
        OpResult end = p.ChangeSplit(c, linear, W.Bytes, ref change, out ulong old);
        if (end == OpResult.Next)
            O.Finish<W>(c, op, old, source, change.Result & Width.Mask<W>());
        return BusLock.BusLocked(c, op, end);
    }

    private struct SplitModify<W, O> : ISplitChange where W : IWidth where O : struct, IModify
    {
        public CpuState* State;
        public ulong Source, Result;

        public static bool IsComparison => false;

        public bool Apply(ulong old, out ulong value)
        {
            value = Result = O.Compute<W>(State, old, Source);
            return true;
        }
    }
}

/// <summary>A read-modify-write operation.</summary>
internal unsafe interface IModify
{
    /// <summary>New value of the destination; bits above the width are ignored.</summary>
    static abstract ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth;
    /// <summary>Flags, and registers that receive the old value.</summary>
    static abstract void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong result) where W : IWidth;
}

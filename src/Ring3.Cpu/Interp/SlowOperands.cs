using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>A read-modify-write instruction of which only the arithmetic differs.</summary>
internal unsafe interface IReadModifyWrite
{
    /// <summary>
    /// New value of the operand of <paramref name="size"/> bytes; <paramref name="status"/> is the old status on entry and the new one on return.
    /// </summary>
    static abstract ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status);
}

/// <summary>Operands of the instructions that are not inline in the loop, at run-time sizes.</summary>
/// <remarks>SAFETY: register offsets come from the decoder; memory goes through the checked accessors.</remarks>
internal static unsafe class SlowOperands
{
    /// <summary>Mask of a value of 1, 2, 4 or 8 bytes.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong Mask(int size) => ulong.MaxValue >> (64 - 8 * size);

    public static ulong Load(byte* p, int size) => size switch
    {
        1 => Volatile.Read(ref *p),
        2 => Volatile.Read(ref *(ushort*)p),
        4 => Volatile.Read(ref *(uint*)p),
        _ => Volatile.Read(ref *(ulong*)p),
    };

    public static void Store(byte* p, int size, ulong value)
    {
        switch (size)
        {
            case 1: Volatile.Write(ref *p, (byte)value); break;
            case 2: Volatile.Write(ref *(ushort*)p, (ushort)value); break;
            case 4: Volatile.Write(ref *(uint*)p, (uint)value); break;
            default: Volatile.Write(ref *(ulong*)p, value); break;
        }
    }

    /// <summary>Register by operand offset.</summary>
    public static ulong Get(CpuState* c, byte register, int size) => Load((byte*)c + register, size);

    /// <summary>Writes a register; 32-bit writes clear the upper half.</summary>
    public static void Set(CpuState* c, byte register, int size, ulong value)
    {
        if (size == 4)
            *(ulong*)((byte*)c + register) = (uint)value;
        else
            Store((byte*)c + register, size, value);
    }

    /// <summary>Reads the r/m operand: memory, or <paramref name="register"/>. False: a fault is pending.</summary>
    public static bool Read(LogicalProcessor p, CpuState* c, Op* op, byte register, int size, out ulong value)
    {
        if ((op->Flags & OpFlags.HasMemory) == 0)
        {
            value = Get(c, register, size);
            return true;
        }
        value = 0;
        if (!Addressing.LinearAddress(c, op, size, AccessKind.Read, out ulong linear))
            return false;
        byte* ptr = p.Access.ReadPtr(c, linear, size);
        if (ptr == null)
            return false;
        value = Load(ptr, size);
        return true;
    }

    /// <summary>Writes the r/m operand in position 0.</summary>
    public static OpResult Write(LogicalProcessor p, CpuState* c, Op* op, int size, ulong value)
    {
        if ((op->Flags & OpFlags.HasMemory) == 0)
        {
            Set(c, op->Reg0, size, value);
            return OpResult.Next;
        }
        if (!Addressing.LinearAddress(c, op, size, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        byte* ptr = p.Access.WritePtr(c, linear, size);
        if (ptr == null)
            return OpResult.Fault;
        Store(ptr, size, value);
        return p.Access.EndWrite(c, ptr, linear, size);
    }

    /// <summary>Runs <typeparamref name="T"/> on the r/m operand in position 0, atomically with LOCK.</summary>
    public static OpResult Modify<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IReadModifyWrite
    {
        int size = op->Size;
        ulong status = Flags.GetStatus(c);
        if ((op->Flags & OpFlags.HasMemory) == 0)
        {
            Set(c, op->Reg0, size, T.Apply(c, op, size, Get(c, op->Reg0, size), ref status));
            Flags.SetStatus(c, status);
            return OpResult.Next;
        }
        return Addressing.LinearAddress(c, op, size, AccessKind.Read | AccessKind.Write, out ulong linear) ? ModifyAt<T>(p, c, op, linear, size)
            : OpResult.Fault;
    }

    /// <summary>Runs <typeparamref name="T"/> on memory at <paramref name="linear"/>.</summary>
    public static OpResult ModifyAt<T>(LogicalProcessor p, CpuState* c, Op* op, ulong linear, int size) where T : IReadModifyWrite
    {
        if ((op->Flags & OpFlags.Lock) == 0 || !BusLock.IsSplit(linear, size))
            return ModifyWhole<T>(p, c, op, linear, size);
        SplitModify<T> change = new() { State = c, Op = op, Size = size };
        OpResult end = p.ChangeSplit(c, linear, size, ref change, out _);
        if (end == OpResult.Next)
            Flags.SetStatus(c, change.Status);
        return BusLock.BusLocked(c, op, end);
    }

    private struct SplitModify<T> : ISplitChange where T : IReadModifyWrite
    {
        public CpuState* State;
        public Op* Op;
        public int Size;
        public ulong Status;

        public static bool IsComparison => false;

        public bool Apply(ulong old, out ulong value)
        {
            Status = Flags.GetStatus(State);
            value = T.Apply(State, Op, Size, old, ref Status);
            return true;
        }
    }

    private static OpResult ModifyWhole<T>(LogicalProcessor p, CpuState* c, Op* op, ulong linear, int size) where T : IReadModifyWrite
    {
        byte* ptr = p.Access.ModifyPtr(c, linear, size);
        if (ptr == null)
            return OpResult.Fault;
        ulong status;
        if ((op->Flags & OpFlags.Lock) != 0)
        {
            ulong old, value;
            do
            {
                status = Flags.GetStatus(c);
                old = Load(ptr, size);
                value = T.Apply(c, op, size, old, ref status);
            }
            while (!CompareExchange(ptr, size, old, value));
        }
        else
        {
            status = Flags.GetStatus(c);
            Store(ptr, size, T.Apply(c, op, size, Load(ptr, size), ref status));
        }
        if (p.Access.EndWrite(c, ptr, linear, size) != OpResult.Next)
            return OpResult.Fault;
        Flags.SetStatus(c, status);
        return OpResult.Next;
    }

    private static bool CompareExchange(byte* p, int size, ulong old, ulong value) => size switch
    {
        1 => Interlocked.CompareExchange(ref *p, (byte)value, (byte)old) == (byte)old,
        2 => Interlocked.CompareExchange(ref *(ushort*)p, (ushort)value, (ushort)old) == (ushort)old,
        4 => Interlocked.CompareExchange(ref *(uint*)p, (uint)value, (uint)old) == (uint)old,
        _ => Interlocked.CompareExchange(ref *(ulong*)p, value, old) == old,
    };

    /// <summary>PF, ZF and SF of a result of <paramref name="size"/> bytes.</summary>
    public static ulong ResultStatus(ulong result, int size)
    {
        result &= Mask(size);
        return ((System.Numerics.BitOperations.PopCount(result & 0xff) & 1) == 0 ? Rflags.PF : 0)
            | (result == 0 ? Rflags.ZF : 0)
            | ((result >> (8 * size - 1)) != 0 ? Rflags.SF : 0);
    }
}

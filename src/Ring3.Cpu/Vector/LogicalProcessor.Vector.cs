using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>The vector part of a processor.</summary>
/// <remarks>SAFETY: a store goes to a host address from a TLB hit, within the page of the entry.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>The process-wide table of vector forms, here so that the fast path needs no static field.</summary>
    internal VectorForm* Forms;

    partial void ParkVector(CpuState* c) => VectorUnit.Park(c);

    partial void InitializeVector() => Forms = VectorForms.At(0);

    /// <summary>Stores a whole value: one TLB lookup for address, permission and the check for overwritten code.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal OpResult StoreVector<T>(CpuState* c, ulong linear, T value) where T : unmanaged
    {
        TlbEntry* e = Level1 + Tlb.Index(linear);
        if ((((linear + (ulong)sizeof(T) - 1) & ~0xfffUL) | c->TlbContext) == e->TagWrite)
        {
            byte* m = (byte*)(linear + (ulong)e->Addend);
            *(T*)m = value;
            return (*e->CodeBits >> (int)((linear >> 6) & 63) & 1) == 0 ? OpResult.Next : EndWriteSlow(c, m, linear, sizeof(T));
        }
        return StoreVectorSlow(c, linear, &value, sizeof(T));
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private OpResult StoreVectorSlow(CpuState* c, ulong linear, void* value, int size)
    {
        byte* m = WritePtrSlow(c, linear, size, CpuMode.ExplicitAccess(c), false);
        if (m == null)
            return OpResult.Fault;
        Buffer.MemoryCopy(value, m, size, size);
        return EndWriteSlow(c, m, linear, size);
    }
}

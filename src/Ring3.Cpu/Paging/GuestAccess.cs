using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Reads and writes of guest memory by linear address: the inline level-1 hit, and the calls for everything else (accesses that cross a page, MMIO with its log
/// of what an instruction has done already).
/// A null pointer or <c>false</c> means that an exception or an exit is pending: return <see cref="OpResult.Fault"/>.
/// </summary>
/// <remarks>
/// SAFETY: a pointer that comes out of a TLB hit or a walk lies in host memory that the nested tables map; it is valid until the processor leaves the guest.
/// </remarks>
internal sealed unsafe partial class GuestAccess
{
    /// <summary>Host pointer for a read of <paramref name="size"/> bytes (1..64).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* ReadPtr(CpuState* c, ulong linear, int size)
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | c->TlbContext) == e->TagRead)
            return (byte*)(linear + (ulong)e->Addend);
        return ReadPtrSlow(c, linear, size, CpuMode.ExplicitAccess(c));
    }

    /// <summary>
    /// Host pointer for a write of all <paramref name="size"/> bytes (1..64). Its old content is not valid; finish with <see cref="EndWrite"/>.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* WritePtr(CpuState* c, ulong linear, int size)
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | c->TlbContext) == e->TagWrite)
            return (byte*)(linear + (ulong)e->Addend);
        return WritePtrSlow(c, linear, size, CpuMode.ExplicitAccess(c), false);
    }

    /// <summary>
    /// Host pointer for a read-modify-write or a partial write within <paramref name="size"/> bytes (1..64): the old content is valid. Finish with <see
    /// cref="EndWrite"/>.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal byte* ModifyPtr(CpuState* c, ulong linear, int size)
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | c->TlbContext) == e->TagWrite)
            return (byte*)(linear + (ulong)e->Addend);
        return WritePtrSlow(c, linear, size, CpuMode.ExplicitAccess(c), true);
    }

    /// <summary>
    /// Completes a write through <see cref="WritePtr"/> or <see cref="ModifyPtr"/>: commits a bounce buffer, drops decoded code that was overwritten. Fault
    /// only when an MMIO write leaves.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal OpResult EndWrite(CpuState* c, byte* ptr, ulong linear, int size)
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | c->TlbContext) == e->TagWrite && (*e->CodeBits >> (int)((linear >> 6) & 63) & 1) == 0)
            return OpResult.Next;
        return EndWriteSlow(c, ptr, linear, size);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Load8(CpuState* c, ulong linear, out byte value)
    {
        byte* p = ReadPtr(c, linear, 1);
        value = p != null ? Volatile.Read(ref *p) : (byte)0;
        return p != null;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Load16(CpuState* c, ulong linear, out ushort value)
    {
        byte* p = ReadPtr(c, linear, 2);
        value = p != null ? Volatile.Read(ref *(ushort*)p) : (ushort)0;
        return p != null;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Load32(CpuState* c, ulong linear, out uint value)
    {
        byte* p = ReadPtr(c, linear, 4);
        value = p != null ? Volatile.Read(ref *(uint*)p) : 0;
        return p != null;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Load64(CpuState* c, ulong linear, out ulong value)
    {
        byte* p = ReadPtr(c, linear, 8);
        value = p != null ? Volatile.Read(ref *(ulong*)p) : 0;
        return p != null;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Store8(CpuState* c, ulong linear, byte value)
    {
        byte* p = WritePtr(c, linear, 1);
        if (p == null)
            return false;
        Volatile.Write(ref *p, value);
        return EndWrite(c, p, linear, 1) == OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Store16(CpuState* c, ulong linear, ushort value)
    {
        byte* p = WritePtr(c, linear, 2);
        if (p == null)
            return false;
        Volatile.Write(ref *(ushort*)p, value);
        return EndWrite(c, p, linear, 2) == OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Store32(CpuState* c, ulong linear, uint value)
    {
        byte* p = WritePtr(c, linear, 4);
        if (p == null)
            return false;
        Volatile.Write(ref *(uint*)p, value);
        return EndWrite(c, p, linear, 4) == OpResult.Next;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal bool Store64(CpuState* c, ulong linear, ulong value)
    {
        byte* p = WritePtr(c, linear, 8);
        if (p == null)
            return false;
        Volatile.Write(ref *(ulong*)p, value);
        return EndWrite(c, p, linear, 8) == OpResult.Next;
    }

    /// <summary>Reads 1, 2, 4 or 8 bytes with supervisor privilege whatever the CPL: descriptor tables, TSS, IDT.</summary>
    internal bool LoadSystem(CpuState* c, ulong linear, int size, out ulong value)
    {
        value = 0;
        byte* p = ReadPtrAs(c, linear, size, AccessKind.Implicit);
        if (p == null)
            return false;
        value = size switch
        {
            1 => Volatile.Read(ref *p),
            2 => Volatile.Read(ref *(ushort*)p),
            4 => Volatile.Read(ref *(uint*)p),
            _ => Volatile.Read(ref *(ulong*)p),
        };
        return true;
    }

    /// <summary>Writes 1, 2, 4 or 8 bytes with supervisor privilege whatever the CPL.</summary>
    internal bool StoreSystem(CpuState* c, ulong linear, int size, ulong value)
    {
        byte* p = WritePtrAs(c, linear, size, AccessKind.Implicit, out TlbEntry* e);
        if (p == null)
            return false;
        StoreSized(p, size, value);
        return EndWriteAs(c, p, linear, size, e);
    }

    /// <summary>Host pointer for a read with an explicit privilege: AccessKind.User, 0, or <see cref="AccessKind.Implicit"/>.</summary>
    internal byte* ReadPtrAs(CpuState* c, ulong linear, int size, AccessKind privilege)
    {
        BeforeImplicit(c, privilege);
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | _paging.Tlb.Context(CpuMode.PrivilegeOf(c, privilege))) == e->TagRead)
            return (byte*)(linear + (ulong)e->Addend);
        return ReadPtrSlow(c, linear, size, privilege);
    }

    /// <summary>RFLAGS.AC lifts nothing for an implicit access: SMAP keeps it out of user pages.</summary>
    private void BeforeImplicit(CpuState* c, AccessKind privilege)
    {
        if (c->LentPages != 0 && (privilege & AccessKind.Implicit) != 0)
            _paging.Tlb.TakeBack();
    }

    /// <summary>
    /// Host pointer for a write with an explicit privilege; finish with <see cref="EndWriteAs"/>. <paramref name="e"/> is null when level 1 missed.
    /// </summary>
    internal byte* WritePtrAs(CpuState* c, ulong linear, int size, AccessKind privilege, out TlbEntry* e)
    {
        BeforeImplicit(c, privilege);
        e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        if ((((linear + (ulong)size - 1) & ~0xfffUL) | _paging.Tlb.Context(CpuMode.PrivilegeOf(c, privilege))) == e->TagWrite)
            return (byte*)(linear + (ulong)e->Addend);
        e = null;
        return WritePtrSlow(c, linear, size, privilege, false);
    }

    /// <summary>Completes a write through <see cref="WritePtrAs"/>. False: an MMIO exit is pending.</summary>
    internal bool EndWriteAs(CpuState* c, byte* ptr, ulong linear, int size, TlbEntry* e)
    {
        if (e != null && (*e->CodeBits >> (int)((linear >> 6) & 63) & 1) == 0)
            return true;
        return EndWriteSlow(c, ptr, linear, size) == OpResult.Next;
    }

    private static void StoreSized(byte* p, int size, ulong value)
    {
        switch (size)
        {
            case 1: Volatile.Write(ref *p, (byte)value); break;
            case 2: Volatile.Write(ref *(ushort*)p, (ushort)value); break;
            case 4: Volatile.Write(ref *(uint*)p, (uint)value); break;
            default: Volatile.Write(ref *(ulong*)p, value); break;
        }
    }

    internal bool LoadSystem16(CpuState* c, ulong linear, out ushort value)
    {
        bool ok = LoadSystem(c, linear, 2, out ulong v);
        value = (ushort)v;
        return ok;
    }

    internal bool LoadSystem32(CpuState* c, ulong linear, out uint value)
    {
        bool ok = LoadSystem(c, linear, 4, out ulong v);
        value = (uint)v;
        return ok;
    }

    internal bool LoadSystem64(CpuState* c, ulong linear, out ulong value) => LoadSystem(c, linear, 8, out value);
    internal bool StoreSystem16(CpuState* c, ulong linear, ushort value) => StoreSystem(c, linear, 2, value);
    internal bool StoreSystem32(CpuState* c, ulong linear, uint value) => StoreSystem(c, linear, 4, value);
    internal bool StoreSystem64(CpuState* c, ulong linear, ulong value) => StoreSystem(c, linear, 8, value);

    /// <summary>
    /// Host pointer for bulk access inside the page of <paramref name="linear"/>, or null with nothing pending when it is not a plain, present page.
    /// </summary>
    internal byte* DirectPtr(CpuState* c, ulong linear, bool write)
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
        return ((linear & ~0xfffUL) | c->TlbContext) == (write ? e->TagWrite : e->TagRead) ? (byte*)(linear + (ulong)e->Addend) : null;
    }

    internal void DirectWritten(byte* host, int size) => _paging.CodeMayHaveChanged(host, size);

    /// <summary>Stores a whole value: one TLB lookup for address, permission and the check for overwritten code.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal OpResult StoreVector<T>(CpuState* c, ulong linear, T value) where T : unmanaged
    {
        TlbEntry* e = ProcessorMemory.Level1Of(c) + Tlb.Index(linear);
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

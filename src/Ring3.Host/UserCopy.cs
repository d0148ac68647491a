using System.Numerics;

namespace Ring3.Host;

/// <summary>
/// Accesses to memory that may not be there: a client's pointers, and host memory behind a guest. A page that is unmapped, protected, or beyond the end of its
/// file gives false, never a signal.
/// </summary>
/// <remarks>
/// After false, an unknown part of the bytes has been copied. Accesses of 1, 2, 4 and 8 bytes at a multiple of their size are one host access each.
/// The side that is ours (dst of a read, src of a write) must be valid: a fault there is reported the same way, and hides a defect.
/// SAFETY: (whole file) the routines touch exactly the bytes they are given, and their faults are fixed up by <see cref="FaultGuard"/>. Calls up to
/// <see cref="ShortCopy"/> bytes run without a GC transition; longer ones let the collector run.
/// </remarks>
public static class UserCopy
{
    /// <summary>Longest copy, in bytes, that may hold up a garbage collection.</summary>
    private const nuint ShortCopy = 4096;

    private static readonly nint s_copy = FaultGuard.Add(AccessorCode.Copy()), s_fill = FaultGuard.Add(AccessorCode.Fill()),
        s_touch = FaultGuard.Add(AccessorCode.Touch());
    private static readonly nint s_load1 = FaultGuard.Add(AccessorCode.Load(1)), s_load2 = FaultGuard.Add(AccessorCode.Load(2)),
        s_load4 = FaultGuard.Add(AccessorCode.Load(4)), s_load8 = FaultGuard.Add(AccessorCode.Load(8));
    private static readonly nint s_store1 = FaultGuard.Add(AccessorCode.Store(1)), s_store2 = FaultGuard.Add(AccessorCode.Store(2)),
        s_store4 = FaultGuard.Add(AccessorCode.Store(4)), s_store8 = FaultGuard.Add(AccessorCode.Store(8));
    private static readonly nint s_cas1 = FaultGuard.Add(AccessorCode.CompareExchange(1)), s_cas4 = FaultGuard.Add(AccessorCode.CompareExchange(4)),
        s_cas8 = FaultGuard.Add(AccessorCode.CompareExchange(8));
    private static readonly nint s_cas16 = FaultGuard.Add(AccessorCode.CompareExchange16(), AccessorCode.Failed16());

    private static readonly nint[] s_move =
        [.. from backward in (bool[])[false, true] from size in (int[])[1, 2, 4, 8] select FaultGuard.Add(AccessorCode.Move(size, backward),
        AccessorCode.Moved())];

    /// <summary>Copies <paramref name="n"/> bytes in from <paramref name="src"/>. False: EFAULT.</summary>
    public static unsafe bool TryRead(ulong src, void* dst, nuint n) => Copy(dst, (void*)src, n);

    /// <summary>Copies <paramref name="n"/> bytes out to <paramref name="dst"/>. False: EFAULT.</summary>
    public static unsafe bool TryWrite(ulong dst, void* src, nuint n) => Copy((void*)dst, src, n);

    /// <summary>Copies between two places of which neither needs to be there. Not for overlapping places.</summary>
    public static unsafe bool TryCopy(ulong dst, ulong src, nuint n) => Copy((void*)dst, (void*)src, n);

    /// <summary>
    /// Moves elements of 1, 2, 4 or 8 bytes one after the other, upwards or downwards from the given ones, which shows when the places overlap. Returns the
    /// number of elements that were not moved because memory is gone: the others were moved completely.
    /// </summary>
    public static unsafe ulong MoveElements(void* dst, void* src, ulong count, int size, bool backward)
    {
        nint move = s_move[BitOperations.Log2((uint)size) + (backward ? 4 : 0)];
        return ((delegate* unmanaged[SuppressGCTransition]<void*, void*, ulong, ulong>)move)(dst, src, count);
    }

    /// <summary>Reads a value without an atomicity promise. False: EFAULT, and <paramref name="value"/> is default.</summary>
    public static unsafe bool TryRead<T>(ulong src, out T value) where T : unmanaged
    {
        T v = default;
        bool ok = Copy(&v, (void*)src, (nuint)sizeof(T));
        value = ok ? v : default;
        return ok;
    }

    /// <summary>Writes a value without an atomicity promise. False: EFAULT.</summary>
    public static unsafe bool TryWrite<T>(ulong dst, in T value) where T : unmanaged
    {
        T v = value;
        return Copy((void*)dst, &v, (nuint)sizeof(T));
    }

    /// <summary>One load of 1 byte.</summary>
    public static unsafe bool TryRead1(ulong src, out byte value)
    {
        byte v = 0;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, void*, nint>)s_load1)(src, &v) == 0;
        value = v;
        return ok;
    }

    /// <summary>One load of 2 bytes.</summary>
    public static unsafe bool TryRead2(ulong src, out ushort value)
    {
        ushort v = 0;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, void*, nint>)s_load2)(src, &v) == 0;
        value = v;
        return ok;
    }

    /// <summary>One load of 4 bytes.</summary>
    public static unsafe bool TryRead4(ulong src, out uint value)
    {
        uint v = 0;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, void*, nint>)s_load4)(src, &v) == 0;
        value = v;
        return ok;
    }

    /// <summary>One load of 8 bytes.</summary>
    public static unsafe bool TryRead8(ulong src, out ulong value)
    {
        ulong v = 0;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, void*, nint>)s_load8)(src, &v) == 0;
        value = v;
        return ok;
    }

    /// <summary>One store of 1 byte.</summary>
    public static unsafe bool TryWrite1(ulong dst, byte value) => ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, nint>)s_store1)(dst, value) == 0;
    /// <summary>One store of 2 bytes.</summary>
    public static unsafe bool TryWrite2(ulong dst, ushort value) => ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, nint>)s_store2)(dst, value) == 0;
    /// <summary>One store of 4 bytes.</summary>
    public static unsafe bool TryWrite4(ulong dst, uint value) => ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, nint>)s_store4)(dst, value) == 0;
    /// <summary>One store of 8 bytes.</summary>
    public static unsafe bool TryWrite8(ulong dst, ulong value) => ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, nint>)s_store8)(dst, value) == 0;

    /// <summary>Reads one byte: is the page readable?</summary>
    public static bool ProbeRead(ulong address) => TryRead1(address, out _);

    /// <summary>Atomic read-modify-write of one byte that changes nothing: is the page writable? It breaks copy-on-write and marks the page dirty as a write
    /// does.</summary>
    public static unsafe bool ProbeWrite(ulong address) => ((delegate* unmanaged[SuppressGCTransition]<ulong, nint>)s_touch)(address) == 0;

    /// <summary>Sets <paramref name="n"/> bytes. False: EFAULT.</summary>
    public static unsafe bool Fill(ulong dst, byte value, nuint n) => n <= ShortCopy
        ? ((delegate* unmanaged[SuppressGCTransition]<ulong, uint, nuint, nint>)s_fill)(dst, value, n) == 0
        : ((delegate* unmanaged<ulong, uint, nuint, nint>)s_fill)(dst, value, n) == 0;

    /// <summary>Atomic compare-exchange; <paramref name="observed"/> is what was there. False: EFAULT, or an operand that crosses a cache line: no split lock
    /// of the host is ever made.</summary>
    public static unsafe bool CompareExchange(ulong address, byte value, byte comparand, out byte observed)
    {
        byte v = comparand;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, void*, nint>)s_cas1)(address, value, &v) == 0;
        observed = v;
        return ok;
    }

    /// <inheritdoc cref="CompareExchange(ulong, byte, byte, out byte)"/>
    public static unsafe bool CompareExchange(ulong address, uint value, uint comparand, out uint observed)
    {
        uint v = comparand;
        bool ok = !IsSplit(address, 4) && ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, void*, nint>)s_cas4)(address, value, &v) == 0;
        observed = v;
        return ok;
    }

    /// <inheritdoc cref="CompareExchange(ulong, byte, byte, out byte)"/>
    public static unsafe bool CompareExchange(ulong address, ulong value, ulong comparand, out ulong observed)
    {
        ulong v = comparand;
        bool ok = !IsSplit(address, 8) && ((delegate* unmanaged[SuppressGCTransition]<ulong, ulong, void*, nint>)s_cas8)(address, value, &v) == 0;
        observed = v;
        return ok;
    }

    /// <inheritdoc cref="CompareExchange(ulong, byte, byte, out byte)"/>
    /// <remarks><paramref name="address"/> is a multiple of 16; otherwise the access fails.</remarks>
    public static unsafe bool CompareExchange(ulong address, UInt128 value, UInt128 comparand, out UInt128 observed)
    {
        UInt128 v = comparand;
        bool ok = ((delegate* unmanaged[SuppressGCTransition]<ulong, void*, void*, nint>)s_cas16)(address, &value, &v) == 0;
        observed = v;
        return ok;
    }

    /// <summary>Whether an operand crosses a cache line.</summary>
    public static bool IsSplit(ulong address, int size) => (address & 63) + (ulong)size > 64;

    private static unsafe bool Copy(void* to, void* from, nuint n) => n <= ShortCopy
        ? ((delegate* unmanaged[SuppressGCTransition]<void*, void*, nuint, nint>)s_copy)(to, from, n) == 0
        : ((delegate* unmanaged<void*, void*, nuint, nint>)s_copy)(to, from, n) == 0;
}

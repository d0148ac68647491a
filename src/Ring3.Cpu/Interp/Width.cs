using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>
/// Operand width as a type parameter: every handler is compiled once for each width, with constants folded. Values are zero-extended 64-bit words everywhere.
/// </summary>
/// <remarks>SAFETY: pointers address at least <see cref="Bytes"/> bytes. interlocked operations are given only operands within one cache line.</remarks>
internal unsafe interface IWidth
{
    static abstract int Bytes { get; }
    /// <summary>Reads an operand from a register or from memory.</summary>
    static abstract ulong Get(byte* p);
    /// <summary>Writes to memory.</summary>
    static abstract void Put(byte* p, ulong value);
    /// <summary>Writes a register: 32 bits zero-extend, 8 and 16 bits leave the rest alone.</summary>
    static abstract void Set(byte* p, ulong value);
    static abstract ulong SignExtend(ulong value);
    /// <summary>Locked compare-exchange; returns the old value. Never across a cache line: see <see cref="LogicalProcessor.Change"/>.</summary>
    static abstract ulong CompareExchange(byte* p, ulong value, ulong comparand);
    static abstract ulong Exchange(byte* p, ulong value);
}

internal unsafe struct W8 : IWidth
{
    public static int Bytes => 1;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong Get(byte* p) => Volatile.Read(ref *p);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Put(byte* p, ulong value) => Volatile.Write(ref *p, (byte)value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Set(byte* p, ulong value) => *p = (byte)value;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong SignExtend(ulong value) => (ulong)(sbyte)value;
    public static ulong CompareExchange(byte* p, ulong value, ulong comparand) => Interlocked.CompareExchange(ref *p, (byte)value, (byte)comparand);
    public static ulong Exchange(byte* p, ulong value) => Interlocked.Exchange(ref *p, (byte)value);
}

internal unsafe struct W16 : IWidth
{
    public static int Bytes => 2;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong Get(byte* p) => Volatile.Read(ref *(ushort*)p);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Put(byte* p, ulong value) => Volatile.Write(ref *(ushort*)p, (ushort)value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Set(byte* p, ulong value) => *(ushort*)p = (ushort)value;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong SignExtend(ulong value) => (ulong)(short)value;
    public static ulong CompareExchange(byte* p, ulong value, ulong comparand) =>
        Interlocked.CompareExchange(ref *(ushort*)p, (ushort)value, (ushort)comparand);
    public static ulong Exchange(byte* p, ulong value) => Interlocked.Exchange(ref *(ushort*)p, (ushort)value);
}

internal unsafe struct W32 : IWidth
{
    public static int Bytes => 4;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong Get(byte* p) => Volatile.Read(ref *(uint*)p);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Put(byte* p, ulong value) => Volatile.Write(ref *(uint*)p, (uint)value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Set(byte* p, ulong value) => *(ulong*)p = (uint)value;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong SignExtend(ulong value) => (ulong)(int)value;
    public static ulong CompareExchange(byte* p, ulong value, ulong comparand) => Interlocked.CompareExchange(ref *(uint*)p, (uint)value, (uint)comparand);
    public static ulong Exchange(byte* p, ulong value) => Interlocked.Exchange(ref *(uint*)p, (uint)value);
}

internal unsafe struct W64 : IWidth
{
    public static int Bytes => 8;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong Get(byte* p) => Volatile.Read(ref *(ulong*)p);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Put(byte* p, ulong value) => Volatile.Write(ref *(ulong*)p, value);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static void Set(byte* p, ulong value) => *(ulong*)p = value;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong SignExtend(ulong value) => value;
    public static ulong CompareExchange(byte* p, ulong value, ulong comparand) => Interlocked.CompareExchange(ref *(ulong*)p, value, comparand);
    public static ulong Exchange(byte* p, ulong value) => Interlocked.Exchange(ref *(ulong*)p, value);
}

/// <summary>Constants of a width, and status flags of results of that width.</summary>
/// <remarks>SAFETY: the lazily kept flags are three fields of the state.</remarks>
internal static unsafe class Width
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static int Bits<W>() where W : IWidth => W.Bytes * 8;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static ulong Mask<W>() where W : IWidth => ulong.MaxValue >> (64 - W.Bytes * 8);
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Sign<W>(ulong value) where W : IWidth => (value >> (W.Bytes * 8 - 1) & 1) != 0;

    /// <summary>ZF, SF and PF of a result; CF, OF and AF from a carry vector of the width.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Flags<W>(CpuState* c, ulong result, ulong carry) where W : IWidth
    {
        ulong s = W.SignExtend(result);
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = W.Bytes == 8 ? carry : carry << (64 - W.Bytes * 8) | carry;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void FlagsAdd<W>(CpuState* c, ulong a, ulong b, ulong r) where W : IWidth => Flags<W>(c, r, a & b | (a | b) & ~r);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void FlagsSub<W>(CpuState* c, ulong a, ulong b, ulong r) where W : IWidth => Flags<W>(c, r, ~a & b | (~a | b) & r);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void FlagsLogic<W>(CpuState* c, ulong r) where W : IWidth
    {
        ulong s = W.SignExtend(r);
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = 0;
    }

    /// <summary>ZF, SF and PF of a result with explicit CF and OF; AF is cleared.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void FlagsShift<W>(CpuState* c, ulong r, bool cf, bool of) where W : IWidth
    {
        ulong s = W.SignExtend(r);
        c->FlagsZero = s;
        c->FlagsSign = s;
        c->FlagsCarry = (cf ? 1UL << 63 : 0) | (cf != of ? 1UL << 62 : 0);
    }
}

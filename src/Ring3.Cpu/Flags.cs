using System.Numerics;
using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// The six status flags, kept in the form in which an ALU operation produces them for free:
/// <list type="bullet">
/// <item>ZF: <c>FlagsZero == 0</c>.</item>
/// <item>SF: bit 63 of <c>FlagsSign</c>. PF: even parity of its low byte.</item>
/// <item>CF: bit 63 of <c>FlagsCarry</c>. OF: bit 63 xor bit 62. AF: bit 3. The other bits are meaningless: they are the carry-out vector of the addition or
/// subtraction.</item>
/// </list>
/// Results narrower than 64 bits are sign-extended into FlagsSign, and their carry vector of n bits is stored as <c>vector &lt;&lt; (64 - n) | vector</c>.
/// SAFETY: the pointers are the processor's own state.
/// </summary>
internal static unsafe class Flags
{
    public const ulong Status = Rflags.Status;

    /// <summary>RFLAGS with every bit materialised.</summary>
    public static ulong Get(CpuState* c) => c->Rflags | GetStatus(c);

    /// <summary>The six status flags only.</summary>
    public static ulong GetStatus(CpuState* c)
    {
        ulong x = c->FlagsCarry, s = c->FlagsSign;
        return x >> 63
            | (ulong)((BitOperations.PopCount((uint)s & 0xff) & 1) ^ 1) << 2
            | (x & 8) << 1
            | (c->FlagsZero == 0 ? Rflags.ZF : 0)
            | (s >> 56 & Rflags.SF)
            | ((x ^ x << 1) >> 63) << 11;
    }

    /// <summary>Replaces all of RFLAGS. Bit 1 is forced to one, reserved bits are the caller's business.</summary>
    public static void Set(CpuState* c, ulong value)
    {
        c->Rflags = value & ~Status | Rflags.Fixed1;
        SetStatus(c, value);
    }

    /// <summary>Replaces the six status flags by those of <paramref name="s"/>; other bits of it are ignored.</summary>
    public static void SetStatus(CpuState* c, ulong s)
    {
        c->FlagsZero = ~s & Rflags.ZF;
        c->FlagsSign = (s & Rflags.SF) << 56 | (~s & Rflags.PF) >> 2;
        c->FlagsCarry = s << 63 | ((s ^ s >> 11) & 1) << 62 | (s & Rflags.AF) >> 1;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool CF(CpuState* c) => (long)c->FlagsCarry < 0;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool ZF(CpuState* c) => c->FlagsZero == 0;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool SF(CpuState* c) => (long)c->FlagsSign < 0;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool PF(CpuState* c) => (BitOperations.PopCount((uint)c->FlagsSign & 0xff) & 1) == 0;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool AF(CpuState* c) => (c->FlagsCarry & 8) != 0;
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool OF(CpuState* c) => (long)(c->FlagsCarry ^ c->FlagsCarry << 1) < 0;
    /// <summary>SF != OF.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Less(CpuState* c) => (long)(c->FlagsSign ^ c->FlagsCarry ^ c->FlagsCarry << 1) < 0;

    /// <summary>Replaces CF and keeps the other five.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetCF(CpuState* c, bool value)
    {
        ulong x = c->FlagsCarry;
        ulong of = (x ^ x << 1) >> 63, cf = value ? 1UL : 0;
        c->FlagsCarry = x & 8 | cf << 63 | (cf ^ of) << 62;
    }

    /// <summary>Replaces OF and keeps the other five.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetOF(CpuState* c, bool value)
    {
        ulong x = c->FlagsCarry;
        c->FlagsCarry = x & (8 | 1UL << 63) | (x >> 63 ^ (value ? 1UL : 0)) << 62;
    }

    /// <summary>Replaces CF and OF and keeps the other four (rotates, multiplications).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetCFOF(CpuState* c, bool cf, bool of)
        => c->FlagsCarry = c->FlagsCarry & 8 | (cf ? 1UL << 63 : 0) | (cf != of ? 1UL << 62 : 0);

    /// <summary>Replaces AF and keeps the other five.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetAF(CpuState* c, bool value) => c->FlagsCarry = c->FlagsCarry & ~8UL | (value ? 8UL : 0);

    /// <summary>Replaces ZF and keeps the other five.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void SetZF(CpuState* c, bool value) => c->FlagsZero = value ? 0UL : 1;
}

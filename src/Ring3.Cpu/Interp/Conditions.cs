using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>A condition of Jcc, SETcc and CMOVcc as a type parameter, so that each is compiled into its handlers.</summary>
/// <remarks>SAFETY: reads the flags in the processor's own state.</remarks>
internal unsafe interface ICondition
{
    static abstract bool Holds(CpuState* c);
}

internal unsafe struct Overflow : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.OF(c);
}

internal unsafe struct Below : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.CF(c);
}

internal unsafe struct Equal : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.ZF(c);
}

internal unsafe struct BelowOrEqual : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.CF(c) || Flags.ZF(c);
}

internal unsafe struct Sign : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.SF(c);
}

internal unsafe struct Parity : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.PF(c);
}

internal unsafe struct Less : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.Less(c);
}

internal unsafe struct LessOrEqual : ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => Flags.Less(c) || Flags.ZF(c);
}

internal unsafe struct Not<C> : ICondition where C : struct, ICondition
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)] public static bool Holds(CpuState* c) => !C.Holds(c);
}

/// <summary>Instructions that depend on a condition.</summary>
internal interface IConditionalFamily
{
    /// <summary>Registers the handlers of one condition; <paramref name="cc"/> is the low four bits of the opcode.</summary>
    static abstract void Register<C>(int cc) where C : struct, ICondition;
}

internal static class Conditions
{
    /// <summary>Registers a family for all sixteen.</summary>
    public static void Register<F>() where F : IConditionalFamily
    {
        Both<F, Overflow>(0);
        Both<F, Below>(2);
        Both<F, Equal>(4);
        Both<F, BelowOrEqual>(6);
        Both<F, Sign>(8);
        Both<F, Parity>(10);
        Both<F, Less>(12);
        Both<F, LessOrEqual>(14);
    }

    private static void Both<F, C>(int cc) where F : IConditionalFamily where C : struct, ICondition
    {
        F.Register<C>(cc);
        F.Register<Not<C>>(cc + 1);
    }
}

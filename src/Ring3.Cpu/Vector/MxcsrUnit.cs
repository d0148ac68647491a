using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Guest MXCSR on the host's unit. Reading the host's MXCSR is the dearest part of a scalar operation, so with the default control bits (all masked, nearest,
/// no FTZ or DAZ — also what managed code runs with)
/// the guest's sticky status flags stay in the host's register ("live") until something needs them. With other control bits each operation loads and reads the
/// register: see <see cref="VectorSlow"/>.
/// The runtime may compile a method on this thread meanwhile, and its arithmetic is inexact: therefore the register goes live only when the guest's own
/// Precision flag is already set, as it is after the first rounded result.
/// INVARIANT: while live, <see cref="CpuState.MxcsrLive"/> is 1, the guest's control bits are <see cref="Default"/>, and PE is set; every exit from the guest
/// and every reader of Mxcsr parks first.
/// </summary>
/// <remarks>SAFETY: the thunks touch only the word they are given.</remarks>
internal static unsafe class MxcsrUnit
{
    public const uint Default = 0x1f80, StatusMask = 0x3f, MaskBits = 0x1f80, Precision = 0x20, Ftz = 0x8000;
    /// <summary>
    /// MM: misaligned operands are no #GP. AMD's, and never in the host's register: what executes there for the guest has an aligned operand.
    /// </summary>
    public const uint Misaligned = 1 << 17;
    /// <summary>The bits that every processor has.</summary>
    public const uint Common = 0xffff;
    private const int MaskShift = 7;

    private static readonly delegate* unmanaged[SuppressGCTransition]<uint*,
        void> s_load = (delegate* unmanaged[SuppressGCTransition]<uint*, void>)Emit(Code.Ldmxcsr_m32);
    private static readonly delegate* unmanaged[SuppressGCTransition]<uint*,
        void> s_store = (delegate* unmanaged[SuppressGCTransition]<uint*, void>)Emit(Code.Stmxcsr_m32);

    private static nint Emit(Code code)
    {
        ThunkAssembler a = new();
        a.Unary(code, Register.RDI);
        a.Plain(Code.Retnq);
        return a.Finish();
    }

    public static void LoadHost(uint value) => s_load(&value);

    public static uint ReadHost()
    {
        uint value;
        s_store(&value);
        return value;
    }

    /// <summary>Makes the guest's MXCSR live. False when the slow path is needed.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool TryEnter(CpuState* c)
    {
        if ((c->Mxcsr & (~StatusMask | Precision)) != (Default | Precision))
            return false;
        LoadHost(c->Mxcsr);
        c->MxcsrLive = 1;
        return true;
    }

    /// <summary>Brings <see cref="CpuState.Mxcsr"/> up to date and gives the host's register back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Park(CpuState* c)
    {
        if (c->MxcsrLive != 0)
            ParkLive(c);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void ParkLive(CpuState* c)
    {
        c->Mxcsr |= ReadHost() & StatusMask;
        c->MxcsrLive = 0;
    }

    /// <summary>As <see cref="Park"/>, when a fault has taken the guest's value off the host's register.</summary>
    public static void ParkFrom(CpuState* c, uint host)
    {
        if (c->MxcsrLive != 0)
            c->Mxcsr |= host & StatusMask;
        c->MxcsrLive = 0;
    }

    /// <summary>MXCSR_MASK: the bits that this guest can set.</summary>
    public static uint Writable(LogicalProcessor p) => p.CpuidFeatures.MisalignedSse ? Common | Misaligned : Common;

    /// <summary>Whether the host's register can hold the guest's value while the host's units execute for it.</summary>
    public static bool FitsHost(uint mxcsr) => (mxcsr & (MaskBits | Misaligned)) == MaskBits;

    /// <summary>Status bits of unmasked exceptions for this MXCSR.</summary>
    public static uint Unmasked(uint mxcsr) => ~(mxcsr >> MaskShift) & StatusMask;
}

using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Whether a class of instructions is enabled. SPEC: SDM volume 3, "System Programming for Instruction Set Extensions". #UD conditions come before #NM.
/// </summary>
internal unsafe interface IVectorGate
{
    static abstract bool IsOpen(CpuState* c);
    /// <summary>Raises what a closed gate raises.</summary>
    static abstract OpResult Refuse(LogicalProcessor p, CpuState* c);
}

/// <summary>Legacy SSE.</summary>
/// <remarks>SAFETY: looks at CR0 and CR4 in the state.</remarks>
internal readonly unsafe struct SseGate : IVectorGate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(CpuState* c) => ((uint)c->Cr0 & (uint)(Cr0.EM | Cr0.TS) | ~(uint)c->Cr4 & (uint)Cr4.OSFXSR) == 0;

    public static OpResult Refuse(LogicalProcessor p, CpuState* c)
        => Outcome.Raise(c, (c->Cr0 & Cr0.EM) != 0 || (c->Cr4 & Cr4.OSFXSR) == 0 ? Arch.Vector.UD : Arch.Vector.NM);
}

/// <summary>VEX-encoded: needs XSAVE-enabled AVX state and protected mode.</summary>
internal readonly unsafe struct AvxGate : IVectorGate
{
    private const ulong Components = Xcr0.Sse | Xcr0.Avx;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(CpuState* c)
        => ((c->Cr0 ^ Cr0.PE) & (Cr0.PE | Cr0.TS) | ~c->Cr4 & Cr4.OSXSAVE | ~c->Xcr0 & Components | c->Rflags & Rflags.VM) == 0;

    public static OpResult Refuse(LogicalProcessor p, CpuState* c)
    {
        bool undefined = (c->Cr0 & Cr0.PE) == 0 || (c->Rflags & Rflags.VM) != 0 || (c->Cr4 & Cr4.OSXSAVE) == 0 || (c->Xcr0 & Components) != Components;
        return Outcome.Raise(c, undefined ? Arch.Vector.UD : Arch.Vector.NM);
    }
}

/// <summary>MMX: the x87 unit's availability, and its pending exception. The x87 registers are parked, because MMX aliases them in the state.</summary>
internal readonly unsafe struct MmxGate : IVectorGate
{
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(CpuState* c) => ((uint)c->Cr0 & (uint)(Cr0.EM | Cr0.TS) | c->X87Live | c->Fsw & (uint)X87Status.ES) == 0;

    public static OpResult Refuse(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr0 & Cr0.EM) != 0)
            return Outcome.Raise(c, Arch.Vector.UD);
        if ((c->Cr0 & Cr0.TS) != 0)
            return Outcome.Raise(c, Arch.Vector.NM);
        X87Unit.Park(c);
        // With NE clear the exception goes to the external FERR# pin, which nothing is wired to.
        return (c->Fsw & X87Status.ES) != 0 && (c->Cr0 & Cr0.NE) != 0 ? Outcome.Raise(c, Arch.Vector.MF) : OpResult.Next;
    }
}

using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: reads the processor's state, a block that lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>What the parts of a vCPU ask the processor's state about the mode that it is in.</summary>
internal static unsafe class ProcessorMode
{
    public static bool Is64BitCode(CpuState* c) => (c->Efer & Efer.LMA) != 0 && (c->Cs.Access & Segment.L) != 0;

    /// <summary>Linear address of the next instruction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong LinearRip(CpuState* c) => Is64BitCode(c) ? c->Rip : (uint)(c->Cs.Base + c->Rip);

    /// <summary>Paging through the four page-directory pointers that the processor keeps.</summary>
    public static bool IsPaePaging(ulong cr0, ulong cr4, ulong efer) => (cr0 & Cr0.PG) != 0 && (cr4 & Cr4.PAE) != 0 && (efer & Efer.LMA) == 0;

    public static bool IsPaePaging(CpuState* c) => IsPaePaging(c->Cr0, c->Cr4, c->Efer);

    /// <summary>Address space of the memory slots that the processor sees: 1 in system management mode.</summary>
    public static int AddressSpace(CpuState* c) => c->InSmm;
}

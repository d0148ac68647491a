using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: reads and writes the processor's state, a block that lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>What several parts of a vCPU have to know of the processor's registers: the mode that they mean, and the values that they can have.</summary>
internal static class ProcessorMode
{
    /// <summary>Bits of RFLAGS that software can set.</summary>
    public const ulong RflagsWritable = Rflags.Status | Rflags.TF | Rflags.IF | Rflags.DF | Rflags.IOPL | Rflags.NT | Rflags.RF | Rflags.VM | Rflags.AC
        | Rflags.VIF | Rflags.VIP | Rflags.ID;

    /// <summary>Bits of DR6 that software can set.</summary>
    public const ulong Dr6Writable = Dr.Dr6BD | Dr.Dr6BS | Dr.Dr6BT | 15;

    public static unsafe bool Is64BitCode(CpuState* c) => (c->Efer & Efer.LMA) != 0 && (c->Cs.Access & Segment.L) != 0;

    /// <summary>Linear address of the next instruction.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static unsafe ulong LinearRip(CpuState* c) => Is64BitCode(c) ? c->Rip : (uint)(c->Cs.Base + c->Rip);

    /// <summary>Paging through the four page-directory pointers that the processor keeps.</summary>
    public static bool IsPaePaging(ulong cr0, ulong cr4, ulong efer) => (cr0 & Cr0.PG) != 0 && (cr4 & Cr4.PAE) != 0 && (efer & Efer.LMA) == 0;

    public static unsafe bool IsPaePaging(CpuState* c) => IsPaePaging(c->Cr0, c->Cr4, c->Efer);

    public static bool IsValidCr0(ulong cr0) => cr0 >> 32 == 0 && (cr0 & (Cr0.PG | Cr0.PE)) != Cr0.PG && (cr0 & (Cr0.NW | Cr0.CD)) != Cr0.NW;

    /// <summary>Address space of the memory slots that the processor sees: 1 in system management mode.</summary>
    public static unsafe int AddressSpace(CpuState* c) => c->InSmm;

    /// <summary>
    /// Interrupt shadow as KVM_VCPUEVENT spells it: KVM_X86_SHADOW_INT_MOV_SS is 1, KVM_X86_SHADOW_INT_STI is 2; the processor has them the other way round.
    /// </summary>
    public static unsafe byte KvmShadow(CpuState* c) => SwapShadow(c->InterruptShadow);

    /// <summary>Sets what <see cref="KvmShadow"/> tells.</summary>
    public static unsafe void SetKvmShadow(CpuState* c, byte shadow) => c->InterruptShadow = SwapShadow(shadow);

    private static byte SwapShadow(byte shadow) => (byte)((shadow & 1) << 1 | shadow >> 1 & 1);
}

using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>What control registers, EFER, CS and RFLAGS say together: the processor's mode, and what follows from it for addresses.</summary>
/// <remarks>SAFETY: reads fields of the state.</remarks>
internal static unsafe class CpuMode
{
    /// <summary>Decode mode of the next block: <see cref="CpuState.BlockMode"/>, with <see cref="BlockMode.Flat"/> when it applies.</summary>
    internal static uint CodeMode(CpuState* c) => c->BlockMode == BlockMode.Code32 && HasFlatSegments(c) ? BlockMode.Code32 | BlockMode.Flat : c->BlockMode;

    private static bool HasFlatSegments(CpuState* c)
    {
        const uint code = Segment.P | Segment.S | 8, data = Segment.P | Segment.S | 2, dataMask = Segment.P | Segment.S | Segment.Unusable | 0xe;
        return (c->Cs.Base | c->Ss.Base | c->Ds.Base | c->Es.Base) == 0
            && (c->Cs.Limit & c->Ss.Limit & c->Ds.Limit & c->Es.Limit) == uint.MaxValue
            && (c->Cs.Access & code) == code && (c->Ss.Access & (dataMask | Segment.DB)) == (data | Segment.DB) && (c->Ds.Access & dataMask) == data
                && (c->Es.Access & dataMask) == data;
    }

    /// <summary>Whether a segment can be read and written anywhere, so that an address in it is its base and an offset that goes round at 4 GiB.</summary>
    internal static bool IsUnlimited(Segment* s)
    {
        const uint data = Segment.P | Segment.S | 2, mask = Segment.P | Segment.S | Segment.Unusable | 0xe;
        return s->Limit == uint.MaxValue && (s->Access & mask) == data;
    }

    internal static PagingMode PagingModeOf(CpuState* c)
    {
        if ((c->Cr0 & Cr0.PG) == 0)
            return PagingMode.None;
        if ((c->Efer & Efer.LMA) != 0)
            return (c->Cr4 & Cr4.LA57) != 0 ? PagingMode.FiveLevel : PagingMode.FourLevel;
        return (c->Cr4 & Cr4.PAE) != 0 ? PagingMode.Pae : PagingMode.Legacy;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static AccessKind ExplicitAccess(CpuState* c) => c->Cpl == 3 ? AccessKind.User : 0;

    /// <summary>CS.L in long mode: 64-bit code.</summary>
    internal static bool Is64(CpuState* c) => (c->Efer & Efer.LMA) != 0 && (c->Cs.Access & Segment.L) != 0;

    /// <summary>Whether an address is canonical for the current number of linear-address bits.</summary>
    internal static bool IsCanonical(CpuState* c, ulong linear)
    {
        int unused = (c->Cr4 & Cr4.LA57) != 0 ? 64 - 57 : 64 - 48;
        return (ulong)((long)(linear << unused) >> unused) == linear;
    }

    internal static bool AlignmentChecked(CpuState* c) => c->Cpl == 3 && (c->Rflags & Rflags.AC) != 0 && (c->Cr0 & Cr0.AM) != 0;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static uint CurrentPcid(CpuState* c) => (c->Cr4 & Cr4.PCIDE) != 0 ? (uint)(c->Cr3 & Cr3.Pcid) : 0;

    internal static bool ProtectedMode(CpuState* c) => (c->Cr0 & Cr0.PE) != 0 && (c->Rflags & Rflags.VM) == 0;

    internal static bool LongMode(CpuState* c) => (c->Efer & Efer.LMA) != 0;

    internal static bool Virtual8086(CpuState* c) => (c->Rflags & Rflags.VM) != 0;

    /// <summary>Cuts an instruction pointer to the code size.</summary>
    internal static ulong WrapRip(CpuState* c, ulong rip) => c->BlockMode switch
    {
        BlockMode.Code64 => rip,
        _ => (uint)rip,
    };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static PrivilegeClass PrivilegeOf(CpuState* c, AccessKind access)
    {
        if ((access & AccessKind.User) != 0)
            return CpuMode.AlignmentChecked(c) ? PrivilegeClass.UserAligned : PrivilegeClass.User;
        return PrivilegeClass.Supervisor;
    }
}

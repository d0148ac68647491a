using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Which RDMSR and WRMSR of MSRs that the processor owns leave the guest: none, those that would be #GP, all.</summary>
public static class MsrIntercepts
{
    public const byte None = 0, Refused = 1, All = 2;
}

/// <summary>RDMSR and WRMSR of the MSRs that the processor itself uses; every other index is the owner's.</summary>
/// <remarks>SAFETY: <c>slot</c> points to the field of the state that holds the MSR, or is null for one that has none.</remarks>
internal sealed unsafe partial class ControlUnit
{
    /// <summary>Value of an MSR that the processor owns.</summary>
    public bool ReadMsr(uint index, out ulong value)
    {
        ulong* slot = MsrSlot(_state, index);
        value = slot != null ? *slot : 0;
        return slot != null;
    }

    /// <summary>Where the processor keeps an MSR, or null.</summary>
    private static ulong* MsrSlot(CpuState* c, uint index) => index switch
    {
        Msr.EFER => &c->Efer,
        Msr.STAR => &c->Star,
        Msr.LSTAR => &c->Lstar,
        Msr.CSTAR => &c->Cstar,
        Msr.SFMASK => &c->Sfmask,
        Msr.FS_BASE => &c->Fs.Base,
        Msr.GS_BASE => &c->Gs.Base,
        Msr.KERNEL_GS_BASE => &c->KernelGsBase,
        Msr.SYSENTER_CS => &c->SysenterCs,
        Msr.SYSENTER_ESP => &c->SysenterEsp,
        Msr.SYSENTER_EIP => &c->SysenterEip,
        Msr.TSC_AUX => &c->TscAux,
        Msr.PAT => &c->Pat,
        _ => null,
    };

    /// <summary>Whether this guest's CPUID has an MSR that the processor owns.</summary>
    public bool MsrExists(uint index) => index switch
    {
        Msr.STAR or Msr.LSTAR or Msr.CSTAR or Msr.SFMASK or Msr.FS_BASE or Msr.GS_BASE or Msr.KERNEL_GS_BASE => _identity.Features.LongMode,
        Msr.TSC_AUX => _identity.Features.Rdtscp || _identity.Features.Rdpid,
        Msr.SYSENTER_CS or Msr.SYSENTER_ESP or Msr.SYSENTER_EIP => _identity.Features.Sysenter,
        _ => true,
    };

    /// <summary>Whether the processor keeps this MSR itself.</summary>
    public bool OwnsMsr(uint index) => MsrSlot(_state, index) != null;

    /// <summary>What RDMSR of an MSR that the processor owns gives the guest; false: #GP(0).</summary>
    public bool TryReadGuestMsr(uint index, out ulong value) => ReadMsr(index, out value) && MsrExists(index);

    /// <summary>What WRMSR of an MSR that the processor owns does; false: #GP(0), and nothing has changed.</summary>
    public bool TryWriteGuestMsr(uint index, ulong value)
    {
        CpuState* c = _state;
        ulong* slot = MsrSlot(c, index);
        if (slot == null || !MsrExists(index) || !MsrValueValid(index, value))
            return false;
        if (index == Msr.EFER)
            return TryWriteEfer(c, value);
        *slot = index is Msr.SYSENTER_ESP or Msr.SYSENTER_EIP && !HasWideSysenter ? (uint)value : value;
        return true;
    }

    /// <summary>Whether SYSENTER works in long mode, with MSRs of 64 bits. KVM: a guest that sees Intel has that on AMD too.</summary>
    public bool HasWideSysenter => _identity.Model.HasWideSysenter || _identity.Features.Vendor == ProcessorVendor.Intel;

    internal static OpResult Rdmsr(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        uint index = (uint)c->Gpr[1];
        ulong* slot = MsrSlot(c, index);
        if (slot == null || c->InterceptMsrs == MsrIntercepts.All)
            return Operands.Leave(p, c, op, ExitReason.MsrRead);
        if (!p.MsrExists(index))
            return c->InterceptMsrs == MsrIntercepts.Refused ? Operands.Leave(p, c, op, ExitReason.MsrRead) : Outcome.Raise(c, Vector.GP, 0);
        SetEdxEax(c, *slot);
        return OpResult.Next;
    }

    internal static OpResult Wrmsr(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        uint index = (uint)c->Gpr[1];
        ulong value = (uint)c->Gpr[0] | c->Gpr[2] << 32;
        if (MsrSlot(c, index) == null || c->InterceptMsrs == MsrIntercepts.All)
            return Operands.Leave(p, c, op, ExitReason.MsrWrite);
        ulong next = Addressing.NextRip(c, op);
        if (!p.TryWriteGuestMsr(index, value))
            return c->InterceptMsrs == MsrIntercepts.Refused ? Operands.Leave(p, c, op, ExitReason.MsrWrite) : Outcome.Raise(c, Vector.GP, 0);
        c->Rip = next;
        return OpResult.EndBlock;
    }

    private bool MsrValueValid(uint index, ulong value) => index switch
    {
        Msr.LSTAR or Msr.CSTAR or Msr.FS_BASE or Msr.GS_BASE or Msr.KERNEL_GS_BASE => _paging.IsCanonicalForMsr(value),
        Msr.SYSENTER_ESP or Msr.SYSENTER_EIP => !HasWideSysenter || _paging.IsCanonicalForMsr(value),
        Msr.TSC_AUX => value >> 32 == 0,
        Msr.PAT => PatValid(value),
        _ => true,
    };

    private static bool PatValid(ulong value)
    {
        for (int i = 0; i < 8; i++)
            if ((value >> (8 * i) & 0xff) is 2 or 3 or > 7)
                return false;
        return true;
    }

    private static void SetEdxEax(CpuState* c, ulong value)
    {
        c->Gpr[0] = (uint)value;
        c->Gpr[2] = value >> 32;
    }

    /// <summary>
    /// Finishes the RDMSR or WRMSR of the last exit: with <paramref name="ok"/> it retires, otherwise the guest gets #GP(0) on the next Enter.
    /// </summary>
    public void CompleteMsr(bool ok, ulong value)
    {
        CpuState* c = _state;
        if (!ok)
        {
            c->Inject = new EventInjection { Valid = 1, Vector = Vector.GP, HasErrorCode = 1, Type = EventType.HardwareException };
            return;
        }
        if (c->Exit->Reason == ExitReason.MsrRead)
            SetEdxEax(c, value);
        Outcome.Retire(c, c->Exit->InstructionLength);
    }
}

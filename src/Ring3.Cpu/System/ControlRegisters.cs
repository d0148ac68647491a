using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Control registers and the MSRs that the processor itself uses. Here: writes of CR0, CR3, CR4 and EFER with their consistency rules, mode switches and
/// flushes. SPEC: SDM volume 3, "Control Registers", "Initializing IA-32e Mode".
/// </summary>
/// <remarks>SAFETY: control registers are fields of the state; the four PAE pointers are loaded through the checked walk.</remarks>
internal sealed unsafe partial class ControlUnit
{
    private readonly CpuState* _state;
    private readonly Identity _identity;
    private readonly PagingUnit _paging;
    private readonly EventUnit _events;

    public ControlUnit(CpuState* state, Identity identity, PagingUnit paging, EventUnit events)
    {
        _state = state;
        _identity = identity;
        _paging = paging;
        _events = events;
    }

    private const ulong Cr0Defined = Cr0.PE | Cr0.MP | Cr0.EM | Cr0.TS | Cr0.ET | Cr0.NE | Cr0.WP | Cr0.AM | Cr0.NW | Cr0.CD | Cr0.PG;

    /// <summary>MOV to CR0, LMSW, CLTS. False: #GP(0) or an exit is pending and nothing has changed.</summary>
    internal bool WriteCr0(CpuState* c, ulong value)
    {
        bool invalid = value >> 32 != 0 || ((value & Cr0.PG) != 0 && (value & Cr0.PE) == 0) || ((value & Cr0.NW) != 0 && (value & Cr0.CD) == 0);
        value = (value & Cr0Defined) | Cr0.ET;
        bool enable = (value & ~c->Cr0 & Cr0.PG) != 0, disable = (c->Cr0 & ~value & Cr0.PG) != 0;
        if (enable && (c->Efer & Efer.LME) != 0)
            invalid |= (c->Cr4 & Cr4.PAE) == 0 || (c->Cs.Access & Segment.L) != 0 || (c->Tr.Access & 0x9f) == 0x83;
        if (disable)
            invalid |= CpuMode.Is64(c) || (c->Cr4 & Cr4.PCIDE) != 0;
        if (invalid)
        {
            Outcome.Raise(c, Vector.GP, 0);
            return false;
        }
        bool pae = (value & Cr0.PG) != 0 && (c->Cr4 & Cr4.PAE) != 0 && (c->Efer & Efer.LME) == 0;
        if (pae && ((value ^ c->Cr0) & (Cr0.PG | Cr0.CD | Cr0.NW)) != 0 && !_paging.LoadPdptrs(c, c->Cr3))
            return false;
        if (enable && (c->Efer & Efer.LME) != 0)
            c->Efer |= Efer.LMA;
        if (disable)
            c->Efer &= ~Efer.LMA;
        bool leaveReal = (value & ~c->Cr0 & Cr0.PE) != 0, enterReal = (c->Cr0 & ~value & Cr0.PE) != 0;
        c->Cr0 = value;
        if (leaveReal || enterReal)
        {
            c->Cpl = 0;
            c->Ss.Access &= ~Segment.DplMask;
        }
        _paging.ControlsChanged(c);
        _events.ModeChanged(c);
        return true;
    }

    /// <summary>MOV to CR3.</summary>
    internal bool WriteCr3(CpuState* c, ulong value)
    {
        bool keep = false;
        if (CpuMode.LongMode(c))
        {
            if ((c->Cr4 & Cr4.PCIDE) != 0)
            {
                keep = (value & Cr3.NoFlush) != 0;
                value &= ~Cr3.NoFlush;
            }
            if (value >> _identity.Features.PhysicalAddressBits != 0)
            {
                Outcome.Raise(c, Vector.GP, 0);
                return false;
            }
        }
        else
        {
            value = (uint)value;
            if (CpuMode.PagingModeOf(c) == PagingMode.Pae && !_paging.LoadPdptrs(c, value))
                return false;
        }
        c->Cr3 = value;
        _paging.CachedCr3 = value;
        _paging.Tlb.Select(c->Asid, CpuMode.CurrentPcid(c));
        if (!keep)
            _paging.FlushCurrentPcid(GuestFlush.Cr3);
        _paging.UpdateContext(c);
        return true;
    }

    /// <summary>Whether CR4 has no bit that this guest's CPUID leaves undefined.</summary>
    public bool IsValidCr4(ulong value) => (value & ~Cr4Defined()) == 0;

    /// <summary>Whether EFER has no bit that this guest's CPUID leaves undefined.</summary>
    public bool IsValidEfer(ulong value) => (value & ~EferDefined()) == 0;

    private ulong Cr4Defined()
    {
        ref readonly CpuidFeatures f = ref _identity.Features;
        ulong defined = Cr4.TSD | Cr4.DE | Cr4.PCE;
        if (f.Vme) defined |= Cr4.VME | Cr4.PVI;
        if (f.Pse) defined |= Cr4.PSE;
        if (f.Pae) defined |= Cr4.PAE;
        if (f.Mce) defined |= Cr4.MCE;
        if (f.Pge) defined |= Cr4.PGE;
        if (f.Fxsr) defined |= Cr4.OSFXSR | Cr4.OSXMMEXCPT;
        if (f.Umip) defined |= Cr4.UMIP;
        if (f.La57) defined |= Cr4.LA57;
        if (f.FsGsBase) defined |= Cr4.FSGSBASE;
        if (f.Pcid) defined |= Cr4.PCIDE;
        if (f.Xsave) defined |= Cr4.OSXSAVE;
        if (f.Smep) defined |= Cr4.SMEP;
        if (f.Smap) defined |= Cr4.SMAP;
        if (f.Pku) defined |= Cr4.PKE;
        return defined;
    }

    /// <summary>MOV to CR4.</summary>
    internal bool WriteCr4(CpuState* c, ulong value)
    {
        ulong set = value & ~c->Cr4, changed = value ^ c->Cr4;
        bool invalid = (value & ~Cr4Defined()) != 0;
        if (CpuMode.LongMode(c))
            invalid |= (value & Cr4.PAE) == 0 || (changed & Cr4.LA57) != 0;
        if ((set & Cr4.PCIDE) != 0)
            invalid |= !CpuMode.LongMode(c) || (c->Cr3 & Cr3.Pcid) != 0;
        if (invalid)
        {
            Outcome.Raise(c, Vector.GP, 0);
            return false;
        }
        bool pae = (c->Cr0 & Cr0.PG) != 0 && !CpuMode.LongMode(c) && (value & Cr4.PAE) != 0;
        if (pae && (changed & (Cr4.PAE | Cr4.PGE | Cr4.PSE | Cr4.SMEP)) != 0 && !_paging.LoadPdptrs(c, c->Cr3))
            return false;
        c->Cr4 = value;
        _paging.ControlsChanged(c);
        if ((set & Cr4.SMEP) != 0)
        {
            _paging.FlushAllPcids(GuestFlush.Controls, true);
            _paging.UpdateContext(c);
        }
        return true;
    }

    private ulong EferDefined()
    {
        ref readonly CpuidFeatures f = ref _identity.Features;
        ulong defined = Efer.LMA;
        if (f.Syscall) defined |= Efer.SCE;
        if (f.LongMode) defined |= Efer.LME;
        if (f.Nx) defined |= Efer.NXE;
        if (f.Ffxsr) defined |= Efer.FFXSR;
        if (f.AutoIbrs) defined |= Efer.AUTOIBRS;
        return defined;
    }

    /// <summary>WRMSR to EFER; false: #GP(0).</summary>
    internal bool TryWriteEfer(CpuState* c, ulong value)
    {
        if (!IsValidEfer(value) || (((value ^ c->Efer) & Efer.LME) != 0 && (c->Cr0 & Cr0.PG) != 0))
            return false;
        c->Efer = (value & ~Efer.LMA) | (c->Efer & Efer.LMA);
        _paging.ControlsChanged(c);
        return true;
    }
}

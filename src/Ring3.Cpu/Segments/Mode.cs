using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>What follows from segments and control registers: decode mode, CPL, translation context.</summary>
/// <remarks>SAFETY: derives fields of the state from other fields of it.</remarks>
internal sealed unsafe partial class EventUnit
{
    /// <summary>
    /// Recomputes everything derived after the owner wrote segments, control registers, EFER, RFLAGS or debug registers directly. Drops translations that the
    /// difference makes invalid.
    /// </summary>
    public void RecomputeMode()
    {
        CpuState* c = _state;
        _unfinishedTask.Valid = false;
        c->HostStepDone = 0;
        if ((c->Cr0 & Cr0.PE) == 0)
            c->Cpl = 0;
        else
            c->Cpl = CpuMode.Virtual8086(c) ? 3 : (uint)c->Ss.Dpl;
        _paging.ControlsChanged(c);
        if (c->Cr3 != _paging.CachedCr3)
            _paging.FlushCurrentPcid(GuestFlush.StateWrite);
        _paging.CachedCr3 = c->Cr3;
        _paging.DebugRegistersChanged(c);
        ModeChanged(c);
    }

    /// <summary>Recomputes the decode mode and the privilege part of the translation context after CS, CPL or RFLAGS changed.</summary>
    internal void ModeChanged(CpuState* c)
    {
        c->BlockMode = CpuMode.Is64(c) ? BlockMode.Code64 : (c->Cs.Access & Segment.DB) != 0 ? BlockMode.Code32 : BlockMode.Code16;
        _paging.UpdatePrivilege(c);
    }

    /// <summary>Replaces RFLAGS and recomputes what depends on TF, RF, AC, VIF and VIP. The caller has masked the value.</summary>
    internal void SetRflags(CpuState* c, ulong value)
    {
        ulong changed = (Flags.Get(c) ^ value) & (Rflags.TF | Rflags.RF | Rflags.AC | Rflags.VM | VirtualInterrupts.Pending);
        Flags.Set(c, value);
        if (changed == 0)
            return;
        Breakpoints.UpdateStep(c);
        _paging.UpdatePrivilege(c);
    }
}

using Ring3.Arch;
using Ring3.Cpu;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// MSRs that live in the processor's own state. The guest reaches most of them without an exit; the client always comes this way.
public sealed unsafe partial class Vcpu
{
    private bool TryReadProcessorMsr(uint msr, out ulong value)
    {
        CpuState* c = _s;
        switch (msr)
        {
            case Msr.EFER: value = c->Efer; return true;
            case Msr.STAR: value = c->Star; return true;
            case Msr.LSTAR: value = c->Lstar; return true;
            case Msr.CSTAR: value = c->Cstar; return true;
            case Msr.SFMASK: value = c->Sfmask; return true;
            case Msr.FS_BASE: value = c->Fs.Base; return true;
            case Msr.GS_BASE: value = c->Gs.Base; return true;
            case Msr.KERNEL_GS_BASE: value = c->KernelGsBase; return true;
            case Msr.TSC_AUX: value = c->TscAux; return true;
            case Msr.SYSENTER_CS: value = c->SysenterCs; return true;
            case Msr.SYSENTER_ESP: value = c->SysenterEsp; return true;
            case Msr.SYSENTER_EIP: value = c->SysenterEip; return true;
            case Msr.PAT: value = c->Pat; return true;
            case Msr.DEBUGCTL: value = c->DebugCtl; return true;
            default: value = 0; return false;
        }
    }

    /// <summary>False: not one of these. <paramref name="ok"/> says whether the value was acceptable.</summary>
    private bool TryWriteProcessorMsr(uint msr, bool host, ulong value, out bool ok)
    {
        CpuState* c = _s;
        ok = true;
        switch (msr)
        {
            case Msr.EFER: ok = WriteEfer(value, host); return true;
            case Msr.STAR: c->Star = value; return true;
            case Msr.SFMASK: c->Sfmask = (uint)value; return true;
            case Msr.TSC_AUX:
                ok = value >> 32 == 0;
                if (ok)
                    c->TscAux = value;
                return true;
            case Msr.SYSENTER_CS: c->SysenterCs = value; return true;
            case Msr.LSTAR: return WriteCanonical(ref c->Lstar, value, out ok);
            case Msr.CSTAR: return WriteCanonical(ref c->Cstar, value, out ok);
            case Msr.FS_BASE: return WriteCanonical(ref c->Fs.Base, value, out ok);
            case Msr.GS_BASE: return WriteCanonical(ref c->Gs.Base, value, out ok);
            case Msr.KERNEL_GS_BASE: return WriteCanonical(ref c->KernelGsBase, value, out ok);
            case Msr.SYSENTER_ESP: return WriteSysenter(ref c->SysenterEsp, value, host, out ok);
            case Msr.SYSENTER_EIP: return WriteSysenter(ref c->SysenterEip, value, host, out ok);
            case Msr.PAT:
                ok = IsPat(value);
                if (ok)
                    c->Pat = value;
                return true;
            case Msr.DEBUGCTL:
                // Branch single-step and last-branch recording; the other bits belong to facilities that are not there.
                ok = (value & ~3UL) == 0;
                if (ok)
                    c->DebugCtl = value;
                return true;
            default: return false;
        }
    }

    private ulong SupportedEfer => Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | (IsAmd ? Efer.AUTOIBRS | Efer.FFXSR : 0);

    private bool WriteEfer(ulong value, bool host)
    {
        if ((value & ~SupportedEfer) != 0)
            return false;
        if (!host && (_s->Cr0 & Cr0.PG) != 0 && ((value ^ _s->Efer) & Efer.LME) != 0)
            return false;
        // LMA is the processor's own: KVM keeps it for the client as well (KVM_SET_SREGS sets it).
        _s->Efer = value & ~Efer.LMA | _s->Efer & Efer.LMA;
        // Drops what the new value makes invalid.
        Cpu.RecomputeMode();
        return true;
    }

    private bool WriteSysenter(ref ulong field, ulong value, bool host, out bool ok)
    {
        if (!Cpu.HasWideSysenter)
            value = (uint)value;
        // KVM: the client is never refused; a processor that does not check would have taken it.
        return WriteCanonical(ref field, host ? Canonical(value) : value, out ok);
    }

    private ulong Canonical(ulong value)
    {
        int shift = Cpu.CpuidFeatures.La57 ? 64 - 57 : 64 - 48;
        return (ulong)((long)value << shift >> shift);
    }

    private bool WriteCanonical(ref ulong field, ulong value, out bool ok)
    {
        ok = Canonical(value) == value;
        if (ok)
            field = value;
        return true;
    }

    /// <summary>Each byte a memory type: UC, WC, WT, WP, WB, UC-.</summary>
    private static bool IsPat(ulong value)
    {
        for (int i = 0; i < 8; i++)
            if ((byte)(value >> (8 * i)) is > 7 or 2 or 3)
                return false;
        return true;
    }
}

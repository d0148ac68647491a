using Ring3.Arch;

// SAFETY: _s lives as long as the vCPU, and the references are to its fields.
namespace Ring3.Kvm;

/// <summary>MSRs that live in the processor's own state. The guest reaches most of them without an exit; the client always comes this way.</summary>
internal sealed unsafe class ProcessorMsrs(VcpuCore core, VcpuCpuid cpuid) : VcpuPart(core)
{
    private readonly VcpuCpuid _cpuid = cpuid;

    public static MsrRegister[] Registers { get; } = MsrRegister<ProcessorMsrs>.Table(m => m.Processor,
    [
        new(Msr.SYSENTER_CS) { Listed = MsrListing.Always, Read = (p, _) => p._s->SysenterCs, Write = (p, _, v) => Set(ref p._s->SysenterCs, v) },
        new(Msr.SYSENTER_ESP)
        {
            Listed = MsrListing.Always,
            Read = (p, _) => p._s->SysenterEsp,
            Write = (p, a, v) => p.SetSysenter(ref p._s->SysenterEsp, v, a.Host),
        },
        new(Msr.SYSENTER_EIP)
        {
            Listed = MsrListing.Always,
            Read = (p, _) => p._s->SysenterEip,
            Write = (p, a, v) => p.SetSysenter(ref p._s->SysenterEip, v, a.Host),
        },
        new(Msr.STAR) { Listed = MsrListing.Always, Read = (p, _) => p._s->Star, Write = (p, _, v) => Set(ref p._s->Star, v) },
        new(Msr.CSTAR) { Listed = MsrListing.Always, Read = (p, _) => p._s->Cstar, Write = (p, _, v) => p.SetCanonical(ref p._s->Cstar, v) },
        new(Msr.KERNEL_GS_BASE)
        {
            Listed = MsrListing.Always,
            Read = (p, _) => p._s->KernelGsBase,
            Write = (p, _, v) => p.SetCanonical(ref p._s->KernelGsBase, v),
        },
        new(Msr.SFMASK) { Listed = MsrListing.Always, Read = (p, _) => p._s->Sfmask, Write = (p, _, v) => Set(ref p._s->Sfmask, (uint)v) },
        new(Msr.LSTAR) { Listed = MsrListing.Always, Read = (p, _) => p._s->Lstar, Write = (p, _, v) => p.SetCanonical(ref p._s->Lstar, v) },
        new(Msr.FS_BASE) { Read = (p, _) => p._s->Fs.Base, Write = (p, _, v) => p.SetCanonical(ref p._s->Fs.Base, v) },
        new(Msr.GS_BASE) { Read = (p, _) => p._s->Gs.Base, Write = (p, _, v) => p.SetCanonical(ref p._s->Gs.Base, v) },
        new(Msr.EFER) { Read = (p, _) => p._s->Efer, Write = (p, a, v) => p.SetEfer(v, a.Host) },
        new(Msr.PAT) { Listed = MsrListing.Always, Read = (p, _) => p._s->Pat, Write = (p, _, v) => IsPat(v) && Set(ref p._s->Pat, v) },
        new(Msr.TSC_AUX) { Listed = MsrListing.Always, Read = (p, _) => p._s->TscAux, Write = (p, _, v) => v >> 32 == 0 && Set(ref p._s->TscAux, v) },
        // No supervisor state component exists.
        new(Msr.XSS)
        {
            Listed = MsrListing.Always,
            Read = (p, a) => a.Host || p._cpuid.HasXsaves ? p._s->Xss : null,
            Write = (p, a, v) => v == 0 && (a.Host || p._cpuid.HasXsaves),
        },
        // Branch single-step and last-branch recording; the other bits belong to facilities that are not there.
        new(Msr.DEBUGCTL) { Listed = MsrListing.Always, Read = (p, _) => p._s->DebugCtl, Write = (p, _, v) => (v & ~3UL) == 0 && Set(ref p._s->DebugCtl, v) },
    ]);

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }

    private bool SetEfer(ulong value, bool host)
    {
        ulong supported = Efer.SCE | Efer.LME | Efer.LMA | Efer.NXE | (IsAmd ? Efer.AUTOIBRS | Efer.FFXSR : 0);
        if ((value & ~supported) != 0 || !host && (_s->Cr0 & Cr0.PG) != 0 && ((value ^ _s->Efer) & Efer.LME) != 0)
            return false;
        // LMA is the processor's own: KVM keeps it for the client as well (KVM_SET_SREGS sets it).
        _s->Efer = value & ~Efer.LMA | _s->Efer & Efer.LMA;
        // Drops what the new value makes invalid.
        Cpu.RecomputeMode();
        return true;
    }

    private bool SetSysenter(ref ulong field, ulong value, bool host)
    {
        if (!Cpu.HasWideSysenter)
            value = (uint)value;
        // KVM: the client is never refused; a processor that does not check would have taken it.
        return SetCanonical(ref field, host ? Canonical(value) : value);
    }

    private bool SetCanonical(ref ulong field, ulong value) => Canonical(value) == value && Set(ref field, value);

    private ulong Canonical(ulong value)
    {
        int shift = Cpu.CpuidFeatures.La57 ? 64 - 57 : 64 - 48;
        return (ulong)((long)value << shift >> shift);
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

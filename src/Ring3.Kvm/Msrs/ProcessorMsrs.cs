using Ring3.Arch;

// SAFETY: _s lives as long as the vCPU, and the references are to its fields.
namespace Ring3.Kvm;

/// <summary>MSRs that live in the processor's own state. The guest reaches most of them without an exit; the client always comes this way.</summary>
internal sealed class ProcessorMsrs(VcpuCore core, VcpuCpuid cpuid) : VcpuPart(core)
{
    private readonly VcpuCpuid _cpuid = cpuid;

    public static unsafe MsrRegister[] Registers { get; } =
    [
        new(Msr.SYSENTER_CS)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->SysenterCs,
            Write = (m, _, v) => Set(ref m.Processor._s->SysenterCs, v),
        },
        new(Msr.SYSENTER_ESP)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->SysenterEsp,
            Write = (m, a, v) => m.Processor.SetSysenter(ref m.Processor._s->SysenterEsp, v, a.Host),
        },
        new(Msr.SYSENTER_EIP)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->SysenterEip,
            Write = (m, a, v) => m.Processor.SetSysenter(ref m.Processor._s->SysenterEip, v, a.Host),
        },
        new(Msr.STAR) { Listed = MsrListing.Always, Read = (m, _) => m.Processor._s->Star, Write = (m, _, v) => Set(ref m.Processor._s->Star, v) },
        new(Msr.CSTAR)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->Cstar,
            Write = (m, _, v) => m.Processor.SetCanonical(ref m.Processor._s->Cstar, v),
        },
        new(Msr.KERNEL_GS_BASE)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->KernelGsBase,
            Write = (m, _, v) => m.Processor.SetCanonical(ref m.Processor._s->KernelGsBase, v),
        },
        new(Msr.SFMASK) { Listed = MsrListing.Always, Read = (m, _) => m.Processor._s->Sfmask, Write = (m, _, v) => Set(ref m.Processor._s->Sfmask, (uint)v) },
        new(Msr.LSTAR)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->Lstar,
            Write = (m, _, v) => m.Processor.SetCanonical(ref m.Processor._s->Lstar, v),
        },
        new(Msr.FS_BASE) { Read = (m, _) => m.Processor._s->Fs.Base, Write = (m, _, v) => m.Processor.SetCanonical(ref m.Processor._s->Fs.Base, v) },
        new(Msr.GS_BASE) { Read = (m, _) => m.Processor._s->Gs.Base, Write = (m, _, v) => m.Processor.SetCanonical(ref m.Processor._s->Gs.Base, v) },
        new(Msr.EFER) { Read = (m, _) => m.Processor._s->Efer, Write = (m, a, v) => m.Processor.SetEfer(v, a.Host) },
        new(Msr.PAT) { Listed = MsrListing.Always, Read = (m, _) => m.Processor._s->Pat, Write = (m, _, v) => IsPat(v) && Set(ref m.Processor._s->Pat, v) },
        new(Msr.TSC_AUX)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->TscAux,
            Write = (m, _, v) => v >> 32 == 0 && Set(ref m.Processor._s->TscAux, v),
        },
        // No supervisor state component exists.
        new(Msr.XSS)
        {
            Listed = MsrListing.Always,
            Read = (m, a) => a.Host || m.Processor._cpuid.HasXsaves ? m.Processor._s->Xss : null,
            Write = (m, a, v) => v == 0 && (a.Host || m.Processor._cpuid.HasXsaves),
        },
        // Branch single-step and last-branch recording; the other bits belong to facilities that are not there.
        new(Msr.DEBUGCTL)
        {
            Listed = MsrListing.Always,
            Read = (m, _) => m.Processor._s->DebugCtl,
            Write = (m, _, v) => (v & ~3UL) == 0 && Set(ref m.Processor._s->DebugCtl, v),
        },
    ];

    private static bool Set(ref ulong field, ulong value)
    {
        field = value;
        return true;
    }

    private unsafe bool SetEfer(ulong value, bool host)
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

namespace Ring3.Cpu;

/// <summary>
/// What CPUID reports to this guest, where the processor's own behaviour depends on it: reserved bits of control registers, MSRs and page tables, and #UD of
/// optional instructions. The owner sets it with the guest's CPUID; the default is everything the processor implements.
/// </summary>
public struct CpuidFeatures
{
    public CpuidFeatures() { }

    /// <summary>EAX of leaf 1: in EDX after reset.</summary>
    public uint Signature = 0x600;
    /// <summary>MAXPHYADDR, 32..52. Guest-physical addresses reach 48 bits; wider ones end in a nested fault.</summary>
    public int PhysicalAddressBits = 46;
    public bool Pse = true, Pae = true, Pge = true, Nx = true, LongMode = true, Pages1G = true, La57 = true, Pcid = true, Invpcid = true;
    public bool Smep = true, Smap = true, Umip = true, FsGsBase = true, Syscall = true, Sysenter = true, Rdtscp = true, Rdpid = true, Xsave = true;
    public bool Vme = true, Pse36 = true, Fxsr = true, Mce = true, Pku = true, Ffxsr;
    /// <summary>The vendor that the guest sees: KVM gives it that vendor's SYSCALL and SYSENTER where the processor has less.</summary>
    public ProcessorVendor Vendor;
    /// <summary>AMD's: SSE4a; MXCSR.MM; CLZERO. A processor of another vendor's model has none of them.</summary>
    public bool Sse4a, MisalignedSse, Clzero;
    /// <summary>EFER.AutoIBRS may be set. It has no effect: nothing here speculates.</summary>
    public bool AutoIbrs;
    /// <summary>MONITOR and MWAIT execute as no-ops instead of #UD.</summary>
    public bool Monitor;
    /// <summary>XCR0 bits that XSETBV may set.</summary>
    public ulong Xcr0Mask = Arch.Xcr0.X87 | Arch.Xcr0.Sse | Arch.Xcr0.Avx | Arch.Xcr0.Pkru;
}

namespace Ring3.Arch;

/// <summary>RFLAGS bits. SPEC: SDM volume 1, "EFLAGS Register".</summary>
public static class Rflags
{
    public const ulong CF = 1 << 0, Fixed1 = 1 << 1, PF = 1 << 2, AF = 1 << 4, ZF = 1 << 6, SF = 1 << 7, TF = 1 << 8, IF = 1 << 9, DF = 1 << 10, OF = 1 << 11;
    public const ulong IOPL = 3 << 12, NT = 1 << 14, RF = 1 << 16, VM = 1 << 17, AC = 1 << 18, VIF = 1 << 19, VIP = 1 << 20, ID = 1 << 21;

    /// <summary>The six arithmetic status flags.</summary>
    public const ulong Status = CF | PF | AF | ZF | SF | OF;
    public const int IoplShift = 12;
}

/// <summary>CR0 bits. SPEC: SDM volume 3, "Control Registers".</summary>
public static class Cr0
{
    public const ulong PE = 1 << 0, MP = 1 << 1, EM = 1 << 2, TS = 1 << 3, ET = 1 << 4, NE = 1 << 5;
    public const ulong WP = 1 << 16, AM = 1 << 18, NW = 1 << 29, CD = 1 << 30, PG = 1UL << 31;
}

/// <summary>CR4 bits. SPEC: SDM volume 3, "Control Registers".</summary>
public static class Cr4
{
    public const ulong VME = 1 << 0, PVI = 1 << 1, TSD = 1 << 2, DE = 1 << 3, PSE = 1 << 4, PAE = 1 << 5, MCE = 1 << 6, PGE = 1 << 7, PCE = 1 << 8;
    public const ulong OSFXSR = 1 << 9, OSXMMEXCPT = 1 << 10, UMIP = 1 << 11, LA57 = 1 << 12, VMXE = 1 << 13, SMXE = 1 << 14, FSGSBASE = 1 << 16;
    public const ulong PCIDE = 1 << 17, OSXSAVE = 1 << 18, SMEP = 1 << 20, SMAP = 1 << 21, PKE = 1 << 22, CET = 1 << 23, PKS = 1 << 24;
}

/// <summary>IA32_EFER bits.</summary>
public static class Efer
{
    public const ulong SCE = 1 << 0, LME = 1 << 8, LMA = 1 << 10, NXE = 1 << 11, SVME = 1 << 12, FFXSR = 1 << 14, AUTOIBRS = 1 << 21;
}

/// <summary>Exception vectors. SPEC: SDM volume 3, "Exception and Interrupt Reference".</summary>
public static class Vector
{
    public const byte DE = 0, DB = 1, NMI = 2, BP = 3, OF = 4, BR = 5, UD = 6, NM = 7, DF = 8;
    public const byte TS = 10, NP = 11, SS = 12, GP = 13, PF = 14, MF = 16, AC = 17, MC = 18, XM = 19;
}

/// <summary>Page-fault error-code bits. SPEC: SDM volume 3, "Page-Fault Exceptions".</summary>
public static class PageFaultError
{
    public const uint P = 1 << 0, W = 1 << 1, U = 1 << 2, RSVD = 1 << 3, I = 1 << 4, PK = 1 << 5;
}

/// <summary>Guest page-table entry bits. SPEC: SDM volume 3, "Paging".</summary>
public static class Pte
{
    public const ulong P = 1 << 0, W = 1 << 1, U = 1 << 2, PWT = 1 << 3, PCD = 1 << 4, A = 1 << 5, D = 1 << 6, PS = 1 << 7, G = 1 << 8, NX = 1UL << 63;
    public const ulong Address = 0x000f_ffff_ffff_f000;
    /// <summary>Lowest of the four bits of a protection key, in a leaf of 4-level and 5-level paging.</summary>
    public const int KeyShift = 59;
}

/// <summary>
/// Nested (TDP) page-table entry bits that the processor interprets, in the EPT format. SPEC: SDM volume 3, "EPT Translation Mechanism".
/// The "host physical" address field holds a host virtual address (hva): to a user-space hypervisor its own mappings are the physical memory.
/// Ring3.Mmu gives the ignored bits their software meaning.
/// </summary>
public static class NestedPte
{
    public const ulong R = 1 << 0, W = 1 << 1, X = 1 << 2, RWX = R | W | X, MemType = 7 << 3, PS = 1 << 7, A = 1 << 8, D = 1 << 9;
    public const ulong Address = 0x000f_ffff_ffff_f000;

    /// <summary>Writable but not readable: a misconfiguration by definition.
    /// The processor leaves with <c>NestedMisconfig</c>; KVM marks MMIO with it.</summary>
    public const ulong MmioValue = W | X;
    public const ulong MmioMask = RWX;

    /// <summary>Leaf of a read-only slot (the bit is ignored by EPT): a write is an MMIO access to its address, not a nested fault.</summary>
    public const ulong WriteIsMmio = 1 << 10;

    /// <summary>Leaf whose writes are logged (the bit is ignored by EPT): when the processor sets D, it appends the page to its dirty log. PML does so for
    /// every leaf; here the leaf says whether anybody wants to know.</summary>
    public const ulong LogDirty = 1UL << 56;
}

/// <summary>CR3 fields.</summary>
public static class Cr3
{
    public const ulong Pcid = 0xfff, NoFlush = 1UL << 63;
}

/// <summary>DR6 and DR7 bits.</summary>
public static class Dr
{
    public const ulong Dr6Fixed1 = 0xffff_0ff0, Dr6BD = 1 << 13, Dr6BS = 1 << 14, Dr6BT = 1 << 15, Dr7Fixed1 = 0x400, Dr7GD = 1 << 13;
}

/// <summary>XCR0 / XSAVE state components.</summary>
public static class Xcr0
{
    public const ulong X87 = 1 << 0, Sse = 1 << 1, Avx = 1 << 2, Pkru = 1 << 9;
}

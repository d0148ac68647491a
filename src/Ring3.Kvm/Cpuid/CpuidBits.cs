namespace Ring3.Kvm;

/// <summary>CPUID feature bits by leaf and register. SPEC: SDM volume 2, "CPUID";
/// APM volume 3, "Obtaining Processor Information Via the CPUID Instruction".</summary>
internal static class CpuidBits
{
    internal static class Leaf1Ecx
    {
        internal const uint SSE3 = 1 << 0, PCLMUL = 1 << 1, MONITOR = 1 << 3, SSSE3 = 1 << 9, FMA = 1 << 12, CX16 = 1 << 13, PCID = 1 << 17, SSE41 = 1 << 19;
        internal const uint SSE42 = 1 << 20, X2APIC = 1 << 21, MOVBE = 1 << 22, POPCNT = 1 << 23, TSC_DEADLINE = 1 << 24, AES = 1 << 25;
        internal const uint XSAVE = 1 << 26, OSXSAVE = 1 << 27, AVX = 1 << 28, F16C = 1 << 29, RDRAND = 1 << 30, HYPERVISOR = 1u << 31;
    }

    internal static class Leaf1Edx
    {
        internal const uint FPU = 1 << 0, VME = 1 << 1, DE = 1 << 2, PSE = 1 << 3, TSC = 1 << 4, MSR = 1 << 5, PAE = 1 << 6, MCE = 1 << 7, CX8 = 1 << 8;
        internal const uint APIC = 1 << 9, SEP = 1 << 11, MTRR = 1 << 12, PGE = 1 << 13, MCA = 1 << 14, CMOV = 1 << 15, PAT = 1 << 16, PSE36 = 1 << 17;
        internal const uint CLFLUSH = 1 << 19, MMX = 1 << 23, FXSR = 1 << 24, SSE = 1 << 25, SSE2 = 1 << 26, SS = 1 << 27, HT = 1 << 28;
    }

    internal static class Leaf7Ebx
    {
        internal const uint FSGSBASE = 1 << 0, TSC_ADJUST = 1 << 1, BMI1 = 1 << 3, AVX2 = 1 << 5, FDP_EXCPTN_ONLY = 1 << 6, SMEP = 1 << 7, BMI2 = 1 << 8;
        internal const uint ERMS = 1 << 9, INVPCID = 1 << 10, FCS_FDS = 1 << 13, RDSEED = 1 << 18, ADX = 1 << 19, SMAP = 1 << 20;
        internal const uint CLFLUSHOPT = 1 << 23, CLWB = 1 << 24, SHA = 1 << 29;
    }

    internal static class Leaf7Ecx
    {
        internal const uint UMIP = 1 << 2, PKU = 1 << 3, OSPKE = 1 << 4, GFNI = 1 << 8, VAES = 1 << 9;
        internal const uint VPCLMULQDQ = 1 << 10, LA57 = 1 << 16, RDPID = 1 << 22;
    }

    internal static class Leaf7Edx
    {
        internal const uint FSRM = 1 << 4, SPEC_CTRL = 1 << 26, STIBP = 1 << 27, FLUSH_L1D = 1 << 28, ARCH_CAPABILITIES = 1 << 29, SSBD = 1u << 31;
    }

    internal static class Leaf7Index2Edx { internal const uint BHI_CTRL = 1 << 4, MCDT_NO = 1 << 5; }

    internal static class LeafDEax { internal const uint XSAVEOPT = 1 << 0, XSAVEC = 1 << 1, XGETBV1 = 1 << 2, XSAVES = 1 << 3; }

    internal static class Ext1Ecx
    {
        internal const uint LAHF = 1 << 0, CMP_LEGACY = 1 << 1, CR8_LEGACY = 1 << 4, LZCNT = 1 << 5, SSE4A = 1 << 6, MISALIGNSSE = 1 << 7, PREFETCHW = 1 << 8;
        internal const uint OSVW = 1 << 9, TOPOEXT = 1 << 22;
    }

    internal static class Ext1Edx
    {
        internal const uint SYSCALL = 1 << 11, NX = 1 << 20, MMXEXT = 1 << 22, FXSR_OPT = 1 << 25, GBPAGES = 1 << 26;
        internal const uint RDTSCP = 1 << 27, LM = 1 << 29;
    }

    internal static class Ext7Edx { internal const uint INVARIANT_TSC = 1 << 8; }

    internal static class Ext8Ebx
    {
        internal const uint CLZERO = 1 << 0, XSAVEERPTR = 1 << 2, WBNOINVD = 1 << 9, IBPB = 1 << 12, IBRS = 1 << 14, STIBP = 1 << 15, SSBD = 1 << 24;
        internal const uint SSB_NO = 1 << 26, BTC_NO = 1 << 29;
    }

    internal static class Ext21Eax
    {
        internal const uint NO_NESTED_DATA_BP = 1 << 0, LFENCE_RDTSC = 1 << 2, NULL_SEL_CLR_BASE = 1 << 6, AUTOIBRS = 1 << 8, NO_SMM_CTL_MSR = 1 << 9;
        internal const uint SRSO_NO = 1 << 29;
    }

    internal static class Ext21Ecx { internal const uint TSA_SQ_NO = 1 << 1, TSA_L1_NO = 1 << 2; }
}

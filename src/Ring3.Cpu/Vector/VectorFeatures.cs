using System.Runtime.Intrinsics.X86;

namespace Ring3.Cpu;

/// <summary>
/// Optional vector extensions: a guest may be told of them only where the host has them. The x86-64-v3 set, AES, PCLMULQDQ and SHA are required.
/// </summary>
public static class VectorFeatures
{
    // SPEC: SDM volume 2, "CPUID", leaf 7.
    private static readonly uint s_leaf7Ecx = X86Base.IsSupported ? (uint)X86Base.CpuId(7, 0).Ecx : 0;

    public static bool Gfni => (s_leaf7Ecx >> 8 & 1) != 0;
    /// <summary>256-bit AES.</summary>
    public static bool Vaes => (s_leaf7Ecx >> 9 & 1) != 0;
    /// <summary>256-bit carry-less multiplication.</summary>
    public static bool Vpclmulqdq => (s_leaf7Ecx >> 10 & 1) != 0;
}

using System.Runtime.Intrinsics.X86;

namespace Ring3.Host;

/// <summary>What the host's processor has to have: translated code and the guests' vector instructions use its units as they are.</summary>
public static class HostUnits
{
    /// <exception cref="PlatformNotSupportedException">The processor is no x86-64-v3, or the runtime was told not to use what it has.</exception>
    public static void ThrowIfMissing()
    {
        if (!(Avx2.X64.IsSupported && Bmi1.X64.IsSupported && Bmi2.X64.IsSupported && Fma.X64.IsSupported && Lzcnt.X64.IsSupported))
            throw new PlatformNotSupportedException("this processor does not have AVX2, BMI2 and FMA (x86-64-v3), which Ring3 needs");
    }
}

using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>The vector and x87 registers as seen by the rest of the processor.</summary>
/// <remarks>SAFETY: registers are indexed by decoded numbers below 16; memory goes through the checked accessors.</remarks>
internal static unsafe class VectorUnit
{
    /// <summary>
    /// Brings Mxcsr, X87, Fsw and Ftw of the state up to date and gives the host's units back. To be called before Enter returns and before long slow paths;
    /// two predicted tests when nothing is live.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Park(CpuState* c)
    {
        MxcsrUnit.Park(c);
        X87Unit.Park(c);
    }
}

using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>The vector and x87 registers as seen by the rest of the processor.</summary>
internal static unsafe class VectorUnit
{
    /// <summary>
    /// Brings Mxcsr, X87, Fsw and Ftw of the state up to date and gives the host's units back. To be called before Enter returns and before long slow paths; two predicted tests when nothing is live.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Park(CpuState* c)
    {
        MxcsrUnit.Park(c);
        X87Unit.Park(c);
    }

    /// <summary>Power-on values (INIT leaves the vector registers alone, so <paramref name="init"/> does nothing). SPEC: SDM volume 3, "IA-32 and Intel 64 Processor States Following Power-up, Reset, or INIT".</summary>
    public static void Reset(CpuState* c, bool init)
    {
        Park(c);
        if (init)
            return;
        new Span<byte>(c->Ymm, 512).Clear();
        new Span<byte>(c->X87, 128).Clear();
        c->Mxcsr = MxcsrUnit.Default;
        c->Fcw = 0x40;
        c->Fsw = 0;
        c->Ftw = 0xff;
        c->Fop = 0;
        c->Fip = c->Fdp = 0;
        c->FipSelector = c->FdpSelector = 0;
    }
}

namespace Ring3.Cpu;

/// <summary>INVLPG and INVPCID. SPEC: SDM volume 2.</summary>
/// <remarks>SAFETY: works on the processor's own state and TLB.</remarks>
internal sealed unsafe partial class PagingUnit
{
    internal void InvalidatePage(CpuState* c, ulong linear)
    {
        if (CpuMode.IsCanonical(c, linear) || !CpuMode.Is64(c))
            FlushPage(GuestFlush.Invlpg, linear);
    }

    /// <summary>Types: 0 one address, 1 one PCID, 2 everything, 3 everything but global pages.</summary>
    internal void InvalidatePcid(CpuState* c, int type, uint pcid, ulong linear)
    {
        switch (type)
        {
            case 0: FlushPage(GuestFlush.Invpcid, linear); break;
            case 1: FlushPcid(GuestFlush.Invpcid, pcid); break;
            case 2: FlushAllPcids(GuestFlush.Invpcid, true); break;
            default: FlushAllPcids(GuestFlush.Invpcid, false); break;
        }
        UpdateContext(c);
    }
}

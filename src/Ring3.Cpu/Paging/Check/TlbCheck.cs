using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>The checked mode of the TLB, and the flushes that the guest causes.</summary>
/// <remarks>SAFETY: works on the processor's own state and TLB.</remarks>
internal sealed unsafe partial class PagingUnit
{
    /// <summary>Null unless translations are checked.</summary>
    internal TlbSanitizer? Sanitizer;

    /// <summary>Checks every use of a cached translation from now on. Before the first Enter; all processors of a machine alike.</summary>
    public void CheckTranslations(TlbReference reference) => Sanitizer = new TlbSanitizer(reference);

    /// <summary>Cached translations used and checked so far.</summary>
    public ulong TranslationChecks => Sanitizer?.Checks ?? 0;

    /// <summary>For the checks: the owner owes a flush of an ASID before the next entry. The flush itself is another call.</summary>
    public void ExpectFlush(uint asid) => Sanitizer?.FlushedAsid(GuestFlush.Owner, asid);

    private bool UseLevel2(CpuState* c, TlbLevel2.Entry* e, ulong linear, AccessKind access) =>
        Sanitizer!.AllowsLevel2(c, Tlb.Level2.IndexOf(e), new TlbUse { Linear = linear, Gpa = e->Gpa, Host = (ulong)e->Host, Access = access });

    private bool UseNested(CpuState* c, NestedTlb.Entry* e, ulong gpa, ulong linear, AccessKind access) =>
        Sanitizer!.AllowsNested(c, new TlbUse { Linear = linear, Gpa = gpa & ~0xfffUL, Host = (ulong)e->Host, Access = access });

    internal void FlushCurrentPcid(GuestFlush by)
    {
        Sanitizer?.FlushedPcid(by, _state->Asid, CpuMode.CurrentPcid(_state));
        Tlb.FlushCurrentPcid();
    }

    private void FlushPcid(GuestFlush by, uint pcid)
    {
        Sanitizer?.FlushedPcid(by, _state->Asid, pcid);
        Tlb.FlushPcid(pcid);
    }

    internal void FlushAllPcids(GuestFlush by, bool global)
    {
        Sanitizer?.FlushedSpaces(by, _state->Asid, global);
        Tlb.FlushAllPcids(global);
    }

    private void FlushPage(GuestFlush by, ulong linear)
    {
        Sanitizer?.FlushedPage(by, linear);
        Tlb.FlushPage(linear);
    }
}

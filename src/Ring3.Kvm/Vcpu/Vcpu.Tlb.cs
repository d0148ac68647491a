using Ring3.Mmu;

// SAFETY: _s is a block that lives as long as the vCPU (see Vcpu.cs).
namespace Ring3.Kvm;

// The vCPU's translations: the flushes it is asked for, and those it owes by itself.
public sealed unsafe partial class Vcpu : IVcpuTlb
{
    /// <summary>Ranges that the request TlbFlushRange is about.</summary>
    internal TlbRangeQueue TlbRanges { get; } = new();

    private void HandleFlushRequests()
    {
        VcpuRequests q = Requests;
        bool all = q.Check(VcpuRequest.TlbFlush);
        // Each flush comes after its request was taken: what was asked for in between is asked for again.
        all |= q.Check(VcpuRequest.TlbFlushCurrent) | q.Check(VcpuRequest.TlbFlushGuest);
        if (q.Check(VcpuRequest.TlbFlushRange))
            all |= FlushRanges(all);
        if (all)
            FlushTlb();
    }

    /// <summary>Flushes the ranges in the queue, or only empties it if everything is flushed anyway. True: too many, flush everything.</summary>
    private bool FlushRanges(bool drop)
    {
        Span<GfnSpan> ranges = stackalloc GfnSpan[TlbRangeQueue.Capacity];
        int n = TlbRanges.Take(ranges);
        if (n < 0 || drop)
            return n < 0;
        if (n != 0)
            Stats.tlb_flush_range++;
        for (int i = 0; i < n; i++)
            Cpu.FlushGfns(ranges[i].Start, ranges[i].End);
        return false;
    }

    private void FlushTlb()
    {
        Stats.tlb_flush++;
        for (uint asid = 1; asid <= Memory.MemorySlots.AddressSpaces; asid++)
            Cpu.FlushAsid(asid);
    }

    /// <summary>The vCPU owes itself a flush of everything before it next enters the guest.</summary>
    private void OweFlush(FlushSite site)
    {
        for (uint asid = 1; asid <= Memory.MemorySlots.AddressSpaces; asid++)
            Cpu.ExpectFlush(asid);
        Requests.MakeSelf(VcpuRequest.TlbFlushCurrent);
    }

    /// <summary>One ASID for each address space, flushed whenever it gets a root: a freed root needs no flush of its own.</summary>
    uint IVcpuTlb.AssignAsid(bool smm)
    {
        uint asid = smm ? 2u : 1;
        Stats.tlb_flush++;
        Stats.tlb_flush_root++;
        Cpu.FlushAsid(asid);
        return asid;
    }
}

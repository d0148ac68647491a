using Ring3.Mmu;

// SAFETY: _s is freed with the vCPU, after the last request; the ranges are a span on the stack.
namespace Ring3.Kvm;

/// <summary>
/// What the vCPU's processor translates with: its root in the VM's nested tables and its TLB; the flushes it is asked for, and those it owes by itself. See
/// docs/tlb.md.
/// </summary>
internal sealed class Translations : VcpuPart, IVcpuTlb
{
    public Translations(VcpuCore core) : base(core) => Mmu = new VcpuMmu(Vm.Mmu, this);

    public VcpuMmu Mmu { get; }

    /// <summary>Ranges that the request TlbFlushRange is about. Any thread.</summary>
    public TlbRangeQueue Ranges { get; } = new();

    /// <summary>
    /// The address space of memory slots that the processor sees has changed. Linear translations of either side mean nothing on the other, so both sets are
    /// dropped.
    /// </summary>
    public unsafe void AddressSpaceChanged()
    {
        Mmu.AsId = ProcessorMode.AddressSpace(_s);
        Requests.MakeSelf(VcpuRequest.TlbFlushCurrent);
    }

    // ---- Requests ----

    /// <summary>The requests that make translations or tables unusable.</summary>
    private static readonly ulong s_tableRequests = VcpuRequest.FreeObsoleteRoots.Bit | VcpuRequest.TlbFlush.Bit | VcpuRequest.TlbFlushCurrent.Bit
        | VcpuRequest.TlbFlushGuest.Bit | VcpuRequest.TlbFlushRange.Bit;

    /// <summary>Answers the requests about roots and translations.</summary>
    public void AnswerRequests()
    {
        if (Requests.Check(VcpuRequest.FreeObsoleteRoots))
            Mmu.FreeObsoleteRoots();
        AnswerFlushRequests();
    }

    private void AnswerFlushRequests()
    {
        VcpuRequests q = Requests;
        bool all = q.Check(VcpuRequest.TlbFlush);
        // Each flush comes after its request was taken: what was asked for in between is asked for again.
        all |= q.Check(VcpuRequest.TlbFlushCurrent) | q.Check(VcpuRequest.TlbFlushGuest);
        if (q.Check(VcpuRequest.TlbFlushRange))
            all |= FlushRanges(all);
        if (all)
            FlushAll();
    }

    /// <summary>Flushes the ranges in the queue, or only empties it if everything is flushed anyway. True: too many, flush everything.</summary>
    private bool FlushRanges(bool drop)
    {
        Span<GfnSpan> ranges = stackalloc GfnSpan[TlbRangeQueue.Capacity];
        int n = Ranges.Take(ranges);
        if (n < 0 || drop)
            return n < 0;
        if (n != 0)
            Stats.tlb_flush_range++;
        for (int i = 0; i < n; i++)
            Cpu.FlushGfns(ranges[i].Start, ranges[i].End);
        return false;
    }

    private void FlushAll()
    {
        Stats.tlb_flush++;
        for (uint asid = 1; asid <= Memory.MemorySlots.AddressSpaces; asid++)
            Cpu.FlushAsid(asid);
    }

    /// <summary>The vCPU owes itself a flush of everything before it next enters the guest.</summary>
    public void OweFlush(FlushSite site)
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

    // ---- Reading tables outside the guest ----

    /// <summary>
    /// From here to <see cref="VcpuRequests.LeaveGuestMode"/> this thread may follow cached translations and nested tables outside the guest, where no RCU
    /// section protects it: who frees them waits for it as for a guest. In between nothing is waited for. False when the host has no memory for a root.
    /// </summary>
    public unsafe bool BeginReadingTables()
    {
        for (; ; )
        {
            AnswerRequests();
            if (!Mmu.LoadRoot())
                return false;
            (_s->NestedRoot, _s->Asid) = (Mmu.RootHva, Mmu.Asid);
            Requests.BeginReadingShadowPageTables();
            // PAIRS-WITH: VcpuRequests.Post. A request that is not seen here finds the mode.
            if (!Requests.TestAny(s_tableRequests))
                return true;
            Requests.LeaveGuestMode();
        }
    }
}

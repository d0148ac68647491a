using Ring3.Arch;
using Ring3.Mmu;

namespace Ring3.Mmu.Tests;

/// <summary>
/// A vCPU with a processor that walks the nested tables as the real one does, with an ASID-tagged translation cache, and answers requests at
/// "instruction" boundaries only.
/// </summary>
internal sealed unsafe class FakeVcpu : IVcpuTlb, IDisposable
{
    private const int TlbSize = 64;
    public const int RequestFlush = 1, RequestFreeObsoleteRoots = 2;

    private struct TlbEntry
    {
        public bool Valid, Writable;
        public uint Asid;
        public ulong Gfn, Hva;
    }

    private readonly TlbEntry[] _tlb = new TlbEntry[TlbSize];
    private readonly List<ulong> _dirtyLog = [];
    private int _requests, _inGuest;
    private uint _nextAsid = 1;

    public FakeVcpu(TdpMmu tdp, FakeHost host)
    {
        Tdp = tdp;
        Mmu = new VcpuMmu(tdp, this);
        host.Add(this);
    }

    public TdpMmu Tdp { get; }
    public VcpuMmu Mmu { get; }
    public int FlushesDone { get; private set; }
    /// <summary>EPT with Accessed and Dirty flags.</summary>
    public bool AccessedAndDirty { get; init; } = true;

    uint IVcpuTlb.AssignAsid(bool smm) => _nextAsid++;

    public void MakeRequest(int request)
    {
        Interlocked.Or(ref _requests, request);
        Interlocked.MemoryBarrier();
    }

    /// <summary>Waits until the vCPU is not inside a stay in the guest that began before the call.</summary>
    public void WaitOutside()
    {
        int seen = Volatile.Read(ref _inGuest);
        var spin = new SpinWait();
        while (seen % 2 == 1 && Volatile.Read(ref _inGuest) == seen)
            spin.SpinOnce(-1);
    }

    private void Enter()
    {
        while (true)
        {
            HandleRequests();
            if (!Mmu.LoadRoot())
                throw new OutOfMemoryException();
            Interlocked.Increment(ref _inGuest);
            if (Volatile.Read(ref _requests) == 0)
                return;
            Leave();
        }
    }

    private void Leave()
    {
        if (!KeepDirtyLog && _dirtyLog.Count != 0)
        {
            Tdp.MarkLogged(Mmu, System.Runtime.InteropServices.CollectionsMarshal.AsSpan(_dirtyLog));
            _dirtyLog.Clear();
        }
        Interlocked.Increment(ref _inGuest);
    }

    /// <summary>Defect for controls: what the processor logs is never taken.</summary>
    public bool KeepDirtyLog { get; set; }

    public void HandleRequests()
    {
        int requests = Interlocked.Exchange(ref _requests, 0);
        if ((requests & RequestFlush) != 0)
        {
            Array.Clear(_tlb);
            FlushesDone++;
        }
        if ((requests & RequestFreeObsoleteRoots) != 0)
            Mmu.FreeObsoleteRoots();
    }

    /// <summary>Executes one memory access. <paramref name="body"/> runs inside the guest with the host address.</summary>
    public MmuResult Access(ulong gpa, bool write, Action<ulong>? body = null)
    {
        AccessKind kind = write ? AccessKind.Write : AccessKind.Read;
        long deadline = Environment.TickCount64 + 30_000;
        while (Environment.TickCount64 < deadline)
        {
            Enter();
            Walk walk = Translate(gpa, write, out ulong hva);
            if (walk == Walk.Ok)
                body?.Invoke(hva);
            Leave();
            if (walk == Walk.Ok)
                return MmuResult.Fixed;
            if (walk == Walk.Mmio && Tdp.IsMmio(Mmu, gpa, write))
                return MmuResult.Mmio;
            MmuResult result = walk == Walk.Mmio ? MmuResult.Retry : Tdp.Fault(Mmu, gpa, kind | (walk == Walk.Denied ? AccessKind.Present : 0));
            if (result is not (MmuResult.Fixed or MmuResult.Retry or MmuResult.Mmio))
                return result;
        }
        throw new InvalidOperationException($"no progress at gpa 0x{gpa:x}");
    }

    private enum Walk { Ok, Absent, Denied, Mmio }

    private Walk Translate(ulong gpa, bool write, out ulong hva)
    {
        ulong gfn = gpa >> 12;
        ref TlbEntry e = ref _tlb[gfn % TlbSize];
        hva = e.Hva + (gpa & 0xfff);
        if (e.Valid && e.Asid == Mmu.Asid && e.Gfn == gfn && (!write || e.Writable))
            return Walk.Ok;
        ulong* table = (ulong*)Mmu.RootHva;
        for (int level = 4; ; level--)
        {
            ulong* slot = table + PgLevel.Index(gfn, level);
            ulong entry = Volatile.Read(ref *slot);
            if ((entry & NestedPte.MmioMask) == NestedPte.MmioValue)
                return Walk.Mmio;
            if ((entry & NestedPte.RWX) == 0)
                return Walk.Absent;
            if (level > 1 && (entry & NestedPte.PS) == 0)
            {
                if (AccessedAndDirty && (entry & NestedPte.A) == 0 && Interlocked.CompareExchange(ref *slot, entry | NestedPte.A, entry) != entry)
                    level++;
                else
                    table = (ulong*)(entry & NestedPte.Address);
                continue;
            }
            if (write && (entry & NestedPte.W) == 0)
                return Walk.Denied;
            ulong set = !AccessedAndDirty ? 0 : write ? NestedPte.A | NestedPte.D : NestedPte.A;
            if ((entry & set) != set && Interlocked.CompareExchange(ref *slot, entry | set, entry) != entry)
            {
                level = 5;
                table = (ulong*)Mmu.RootHva;
                continue;
            }
            if (write && (entry & (NestedPte.LogDirty | NestedPte.D)) == NestedPte.LogDirty)
                _dirtyLog.Add(gpa & ~0xfffUL);
            ulong page = (entry & NestedPte.Address) + ((gfn & (PgLevel.Pages(level) - 1)) << 12);
            e = new TlbEntry { Valid = true, Writable = (((entry | set) & NestedPte.D) != 0 || !AccessedAndDirty) && (entry & NestedPte.W) != 0,
                Asid = Mmu.Asid, Gfn = gfn, Hva = page };
            hva = page + (gpa & 0xfff);
            return Walk.Ok;
        }
    }

    /// <summary>The leaf that maps a gpa in the current root.</summary>
    public ulong Leaf(ulong gpa, out int level)
    {
        ulong* table = (ulong*)Mmu.RootHva;
        for (level = 4; ; level--)
        {
            ulong entry = table[PgLevel.Index(gpa >> 12, level)];
            if (!Spte.IsTable(entry, level))
                return entry;
            table = (ulong*)Spte.Address(entry);
        }
    }

    /// <summary>Sets bits in the leaf that maps a gpa, without a walk.</summary>
    public void SetLeafBits(ulong gpa, ulong bits)
    {
        ulong* table = (ulong*)Mmu.RootHva;
        for (int level = 4; level > 1; level--)
            table = (ulong*)Spte.Address(table[PgLevel.Index(gpa >> 12, level)]);
        Interlocked.Or(ref table[PgLevel.Index(gpa >> 12, 1)], bits);
    }

    public void Dispose() => Mmu.Dispose();
}

/// <summary>Waiting requests to all fake vCPUs.</summary>
internal sealed class FakeHost : IMmuHost
{
    private readonly List<FakeVcpu> _vcpus = [];
    private int _flushes, _obsolete;

    /// <summary>Defect for controls: flushes are counted, not done.</summary>
    public bool IgnoreFlushes { get; set; }

    /// <summary>Runs inside a flush, before any processor has been flushed.</summary>
    public Action? OnFlush { get; set; }

    /// <summary>Runs inside the request to drop obsolete roots, under mmu_lock, before it has been sent.</summary>
    public Action? OnObsolete { get; set; }

    public int Flushes => _flushes;
    public int ObsoleteRequests => _obsolete;

    public void Add(FakeVcpu vcpu) => _vcpus.Add(vcpu);

    public void FlushRemoteTlbs()
    {
        Interlocked.Increment(ref _flushes);
        OnFlush?.Invoke();
        if (!IgnoreFlushes)
            All(FakeVcpu.RequestFlush);
    }

    public void FreeObsoleteRoots()
    {
        Interlocked.Increment(ref _obsolete);
        OnObsolete?.Invoke();
        All(FakeVcpu.RequestFreeObsoleteRoots);
    }

    public void SyncDirtyLogs()
    {
        foreach (FakeVcpu vcpu in _vcpus)
            vcpu.WaitOutside();
    }

    private void All(int request)
    {
        foreach (FakeVcpu vcpu in _vcpus)
            vcpu.MakeRequest(request);
        foreach (FakeVcpu vcpu in _vcpus)
            vcpu.WaitOutside();
    }
}

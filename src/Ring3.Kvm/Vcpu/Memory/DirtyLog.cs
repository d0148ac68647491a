using System.Runtime.CompilerServices;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: the log is mapped until Free; the ring lies in the area behind kvm_run, which lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>Pages that the vCPU's processor has written: its own log of them, as PML has, and the ring in which the client may ask for them.</summary>
internal sealed class DirtyLog : VcpuPart
{
    /// <summary>Entries of the processor's log: one page, as PML has.</summary>
    private const int LogEntries = 512;

    private readonly VcpuMmu _mmu;

    public unsafe DirtyLog(VcpuCore core, Translations translations) : base(core)
    {
        _mmu = translations.Mmu;
        _s->DirtyLog = (ulong*)HostMemory.Map(LogEntries * sizeof(ulong));
        _s->DirtyLogLimit = LogEntries;
        if (Vm.DirtyRingBytes == 0)
            return;
        var entries = (kvm_dirty_gfn*)((byte*)KvmRun + KVM_DIRTY_LOG_PAGE_OFFSET * Page.Size);
        VcpuRequests requests = Requests;
        Ring = new DirtyRing(entries, Vm.DirtyRingBytes / sizeof(kvm_dirty_gfn), () => requests.MakeSelf(VcpuRequest.DirtyRingSoftFull));
    }

    /// <summary>The client's ring, at page KVM_DIRTY_LOG_PAGE_OFFSET of the shared area; null when the VM has none.</summary>
    public DirtyRing? Ring { get; }

    /// <summary>What the log holds has to fit into the ring: the processor leaves at the ring's soft limit.</summary>
    public unsafe void LimitTo(DirtyRing ring) => _s->DirtyLogLimit = Math.Clamp(ring.RoomToSoftLimit, 1, LogEntries);

    /// <summary>Marks what is in the log. Before the vCPU says that it is outside: who waits for that finds the log empty.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void Take()
    {
        Vm.Mmu.MarkLogged(_mmu, new ReadOnlySpan<ulong>(_s->DirtyLog, (int)_s->DirtyLogCount));
        _s->DirtyLogCount = 0;
    }

    /// <summary>KVM_EXIT_DIRTY_RING_FULL: the ring has reached its soft limit, and the client has to collect and reset before the guest goes on.</summary>
    public unsafe bool FillExitIfFull()
    {
        if (!Requests.Check(VcpuRequest.DirtyRingSoftFull) || Ring is not { IsSoftFull: true })
            return false;
        Requests.MakeSelf(VcpuRequest.DirtyRingSoftFull);
        KvmRun->exit_reason = KVM_EXIT_DIRTY_RING_FULL;
        return true;
    }

    /// <summary>The processor logs no more.</summary>
    public unsafe void Free() => HostMemory.Unmap(_s->DirtyLog, LogEntries * sizeof(ulong));
}

using Ring3.Abi;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// The vCPU's answers to requests, and the translations they are mostly about.
public sealed unsafe partial class Vcpu : IVcpuTlb
{
    private uint _asid;

    private int HandleRequests()
    {
        VcpuRequests q = Requests;
        if (q.Check(VcpuRequest.VmDead) || Vm.IsDead)
            return -Errno.EIO;
        if (ExitIfDirtyRingFull())
            return ToClient;
        if (q.Check(VcpuRequest.UserKick))
            return ExitIntr();
        if (q.Check(VcpuRequest.FreeObsoleteRoots))
            _mmu.FreeObsoleteRoots();
        HandleClockRequests();
        if (q.Check(VcpuRequest.TlbFlush))
        {
            // Everything this flush covers, the narrower requests would flush again.
            q.Clear(VcpuRequest.TlbFlushCurrent);
            q.Clear(VcpuRequest.TlbFlushGuest);
            FlushTlb();
        }
        if (q.Check(VcpuRequest.TlbFlushCurrent) | q.Check(VcpuRequest.TlbFlushGuest))
            FlushTlb();
        if (q.Check(VcpuRequest.TripleFault))
            return ExitShutdown();
        if (q.Check(VcpuRequest.IoapicEoiExit))
        {
            KvmRun->exit_reason = KVM_EXIT_IOAPIC_EOI;
            KvmRun->eoi.vector = _eoiVector;
            return ToClient;
        }
        _ = q.Check(VcpuRequest.Unblock) | q.Check(VcpuRequest.ScanIoapic) | q.Check(VcpuRequest.McClockInProgress);
        if (q.Check(VcpuRequest.Event) | q.Check(VcpuRequest.Nmi) | q.Check(VcpuRequest.Smi))
        {
            Stats.req_event++;
            _eventsDirty = true;
            AcceptInitAndSipi();
        }
        return KeepRunning;
    }

    private int ExitIntr()
    {
        Stats.signal_exits++;
        KvmRun->exit_reason = KVM_EXIT_INTR;
        return -Errno.EINTR;
    }

    private void FlushTlb()
    {
        Stats.tlb_flush++;
        Cpu.FlushAsid(_asid);
    }

    /// <summary>One ASID for each address space, flushed whenever it gets a root: a freed root needs no flush of its own.</summary>
    uint IVcpuTlb.AssignAsid(bool smm)
    {
        _asid = smm ? 2u : 1;
        _s->Asid = _asid;
        FlushTlb();
        return _asid;
    }
}

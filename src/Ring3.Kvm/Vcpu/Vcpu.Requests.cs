using Ring3.Abi;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s belongs to the processor, which the vCPU disposes last; requests touch single fields of it.
namespace Ring3.Kvm;

// The vCPU's answers to requests.
public sealed partial class Vcpu
{
    /// <summary>Requests that would look at or change a state which is between two instructions.</summary>
    private static readonly VcpuRequest[] s_afterInstruction =
        [VcpuRequest.UserKick, VcpuRequest.TripleFault, VcpuRequest.IoapicEoiExit, VcpuRequest.ReportTprAccess, VcpuRequest.Event, VcpuRequest.Nmi,
        VcpuRequest.Smi];

    /// <summary>Requests that wait until the instruction whose MMIO access is done has retired.</summary>
    private ulong _heldRequests;
    /// <summary>This Run ends with the instruction in progress: immediate_exit was set.</summary>
    private bool _finishOnly;

    private unsafe int HandleRequests()
    {
        VcpuRequests q = Requests;
        if (q.Check(VcpuRequest.VmDead) || _health.IsDead)
            return -Errno.EIO;
        if (Cpu.IsInstructionInProgress)
            HoldRequests();
        else if (_finishOnly)
            return _mmio.IsPosted ? ToClient : ExitIntr();
        else if (_heldRequests != 0)
            ReleaseRequests();
        if (_dirtyLog.FillExitIfFull())
            return ToClient;
        if (q.Check(VcpuRequest.UserKick))
            return ExitIntr();
        _translations.AnswerRequests();
        HandleClockRequests();
        if (q.Check(VcpuRequest.TripleFault))
            return ExitShutdown();
        if (q.Check(VcpuRequest.IoapicEoiExit))
        {
            KvmRun->exit_reason = KVM_EXIT_IOAPIC_EOI;
            KvmRun->eoi.vector = Inbox.EoiVector;
            return ToClient;
        }
        if (q.Check(VcpuRequest.ReportTprAccess))
        {
            _apic.FillTprAccessExit();
            return ToClient;
        }
        _ = q.Check(VcpuRequest.Unblock) | q.Check(VcpuRequest.ScanIoapic) | q.Check(VcpuRequest.McClockInProgress);
        _smm.Collect();
        // An SMI that waits for the end of an instruction needs no look at the events before: they would ask for this again, and the instruction would not run.
        if (q.Check(VcpuRequest.Event) | q.Check(VcpuRequest.Nmi) | (_smm.IsPending && !Cpu.IsInstructionInProgress))
        {
            Stats.req_event++;
            _events.IsDirty = true;
            _activity.AcceptInitAndSipi();
        }
        return KeepRunning;
    }

    /// <summary>Waits until the vCPU may run again, or the client wants it back.</summary>
    private unsafe int Block()
    {
        _halting.Wait();
        if (Requests.Check(VcpuRequest.VmDead) || _health.IsDead)
            return -Errno.EIO;
        if (Requests.Check(VcpuRequest.UserKick) || KvmRun->immediate_exit != 0 || IsSignalled)
            return ExitIntr();
        _activity.AcceptInitAndSipi();
        _halting.EndIfDue();
        _events.IsDirty = true;
        return KeepRunning;
    }

    private void HandleClockRequests()
    {
        if (Requests.Check(VcpuRequest.MasterClockUpdate))
            Vm.Clock.UpdateMaster();
        if (Requests.Check(VcpuRequest.ClockUpdate))
        {
            _clock.WritePage();
            _xen.Side?.WriteClocks(_clock.Sample());
        }
        if (Requests.Check(VcpuRequest.StealUpdate) && _steal.IsEnabled)
            _steal.Record();
    }

    /// <summary>
    /// The client (or a device here) has answered an MMIO access of the instruction at RIP: only the instruction's end may come next, or the device would see
    /// the access again. Flushes are still done, the rest waits.
    /// </summary>
    private unsafe void HoldRequests()
    {
        foreach (VcpuRequest r in s_afterInstruction)
            if (Requests.Check(r))
                _heldRequests |= r.Bit;
        _s->FinishInstruction = _heldRequests != 0 || _finishOnly ? (byte)1 : (byte)0;
    }

    private unsafe void ReleaseRequests()
    {
        _s->FinishInstruction = 0;
        foreach (VcpuRequest r in s_afterInstruction)
            if ((_heldRequests & r.Bit) != 0)
                Requests.MakeSelf(r);
        _heldRequests = 0;
    }

    /// <summary>This Run began with immediate_exit set: the exit that it finished stays in kvm_run, where clients look at it afterwards.</summary>
    private bool _immediateExit;

    private unsafe int ExitIntr()
    {
        if (_immediateExit)
            return -Errno.EINTR;
        Stats.signal_exits++;
        KvmRun->exit_reason = KVM_EXIT_INTR;
        return -Errno.EINTR;
    }
}

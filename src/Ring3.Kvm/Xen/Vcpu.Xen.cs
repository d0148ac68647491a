using Ring3.Abi;
using Ring3.Arch;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Irqchip.Timers;
using Ring3.Xen;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// The vCPU of a Xen guest: events before an entry, hypercalls, run state, and what Ring3.Xen needs from a vCPU.
public sealed unsafe partial class Vcpu : IXenProcessor, ITimerCallback
{
    private HostTimer? _xenTimer;
    private ulong _xenHypercallRip;

    /// <summary>The Xen side, made on first use. Any thread.</summary>
    public XenVcpu Xen => _xen.SideFor(this);

    /// <summary>KVM_XEN_VCPU_SET_ATTR. See <see cref="XenVcpu.SetAttribute"/>.</summary>
    public int XenSetAttr(in kvm_xen_vcpu_attr attr) => Xen.SetAttribute(attr);

    /// <summary>KVM_XEN_VCPU_GET_ATTR. See <see cref="XenVcpu.GetAttribute"/>.</summary>
    public int XenGetAttr(ref kvm_xen_vcpu_attr attr) => Xen.GetAttribute(ref attr);

    private bool TryWriteXenMsr(uint msr, ulong value, out bool ok)
    {
        if (TryWriteHyperVMsr(msr, value, out ok))
            return true;
        ok = false;
        if (Vm.XenOrNull is not { } xen || xen.HypercallMsr != msr || msr == 0)
            return false;
        ok = Vm.WriteXenHypercallPage(value, (_s->Efer & Efer.LMA) != 0);
        return true;
    }

    // ---- Hypercalls ----

    private int HandleXenHypercall()
    {
        if (IsHyperVCall(_s->Gpr[0]))
            return HandleHyperVHypercall();
        Stats.hypercalls++;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong* g = _s->Gpr;
        Hypercall call = is64
            ? new(g[0], (byte)_s->Cpl, true, g[7], g[6], g[2], g[10], g[8], g[9])
            : new((uint)g[0], (byte)_s->Cpl, false, (uint)g[3], (uint)g[1], (uint)g[2], (uint)g[6], (uint)g[7], (uint)g[5]);
        if (Xen.TryHypercall(call, out long result))
        {
            g[0] = (ulong)result;
            Cpu.SkipInstruction();
            return KeepRunning;
        }
        kvm_run* run = KvmRun;
        run->exit_reason = KVM_EXIT_XEN;
        run->xen.type = KVM_EXIT_XEN_HCALL;
        run->xen.longmode = is64 ? 1u : 0;
        run->xen.cpl = call.Cpl;
        run->xen.input = call.Number;
        (run->xen.@params[0], run->xen.@params[1], run->xen.@params[2]) = (call.A0, call.A1, call.A2);
        (run->xen.@params[3], run->xen.@params[4], run->xen.@params[5]) = (call.A3, call.A4, call.A5);
        _xenHypercallRip = _s->Rip;
        _completion = Completion.XenHypercall;
        return ToClient;
    }

    /// <summary>The client has answered. If it has moved the vCPU meanwhile (a reset, a migration) there is nothing to finish.</summary>
    private void CompleteXenHypercall()
    {
        if (_s->Rip != _xenHypercallRip)
            return;
        _s->Gpr[0] = KvmRun->xen.result;
        Cpu.SkipInstruction();
    }

    // ---- For Ring3.Xen ----

    bool IXenProcessor.HasLapic => Lapic is not null;

    void IXenProcessor.KickForEvents() => Requests.Make(VcpuRequest.Unblock);

    void IXenProcessor.InjectVector(byte vector)
    {
        if (Lapic is not null)
            _ = ApicBus.DeliverTo(Lapic, new LapicInterrupt { Vector = vector, Mode = DeliveryMode.Fixed, Assert = true, Dest = Id });
    }

    void IXenProcessor.RequestClockUpdate() => Requests.Make(VcpuRequest.ClockUpdate);

    void IXenProcessor.ArmTimer(ulong deadlineClockNs)
    {
        long delta = (long)(deadlineClockNs - (ulong)Vm.Clock.NowNs), now = HostClock.MonotonicNs();
        long deadline = delta > long.MaxValue - now ? long.MaxValue : now + delta;
        _timers.XenDeadlineNs = deadline;
        TimerService.Shared.Arm(_xenTimer ??= new HostTimer(this) { Failed = e => Vm.BugOn(true, e.ToString()) }, deadline);
    }

    void IXenProcessor.CancelTimer()
    {
        _timers.XenDeadlineNs = long.MaxValue;
        if (_xenTimer is not null)
            TimerService.Shared.Cancel(_xenTimer);
    }

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs) => _xen.Side?.TimerExpired();

    long IXenProcessor.RunDelayNs => _runDelay.NowNs;

    /// <summary>Giving the processor up is a preemption: the vCPU is runnable until it comes back.</summary>
    void IXenProcessor.Yield()
    {
        Xen.UpdateRunstate(XenAbi.RUNSTATE_runnable);
        Thread.Yield();
        Xen.UpdateRunstate(XenAbi.RUNSTATE_running);
    }

    void IXenProcessor.WaitForEvent(Func<bool> ready, long timeoutNs)
    {
        long deadline = timeoutNs < 0 ? long.MaxValue : HostClock.MonotonicNs() + timeoutNs;
        _activity.State = MpState.Halted;
        int token = Requests.BeginBlock();
        while (!Requests.Check(VcpuRequest.Unblock) && !HasReasonToWake() && !ready())
        {
            long now = HostClock.MonotonicNs();
            if (now >= deadline)
                break;
            _timers.Poll(now);
            long until = Math.Min(deadline, _timers.NextNs);
            Requests.Sleep(token, until == long.MaxValue ? -1 : Math.Max(until - now, 0));
            token = Requests.WakeToken;
        }
        Requests.EndBlock();
        _activity.State = MpState.Runnable;
        _events.IsDirty = true;
        _xen.Arrives = true;
    }

    bool IXenProcessor.ReadVirtual(ulong gva, Span<byte> destination)
    {
        while (destination.Length != 0)
        {
            int n = (int)Math.Min((ulong)destination.Length, 4096 - (gva & 4095));
            if (!_tables.TryTranslate(gva, out ulong gpa, out _) || !Vm.Memory.Read(gpa, destination[..n]))
                return false;
            destination = destination[n..];
            gva += (ulong)n;
            if ((_s->Efer & Efer.LMA) == 0)
                gva = (uint)gva;
        }
        return true;
    }
}

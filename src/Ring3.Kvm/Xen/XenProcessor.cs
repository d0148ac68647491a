using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Irqchip;
using Ring3.Sync;
using Ring3.Xen;
using static Ring3.Abi.KvmApi;
using static Ring3.Kvm.RunStep;

// SAFETY: _s and KvmRun live as long as the vCPU; register numbers are constants.
namespace Ring3.Kvm;

/// <summary>The vCPU as Ring3.Xen needs it, and its hypercalls.</summary>
internal sealed class XenProcessor(
    VcpuCore core, XenPort port, VcpuTimers timers, RunDelay runDelay, GuestTables tables, Halting halting) : VcpuPart(core), IXenProcessor, ITimerCallback
{
    private HostTimer? _timer;
    /// <summary>RIP of the hypercall that the client has.</summary>
    private ulong _hypercallRip;

    public uint Id { get; } = core.Id;
    public int Index { get; } = core.Index;

    /// <summary>The Xen side, made on first use. Any thread.</summary>
    public XenVcpu Side => port.SideFor(this);

    // ---- Hypercalls ----

    public unsafe int HandleHypercall()
    {
        Stats.hypercalls++;
        bool is64 = ProcessorMode.Is64BitCode(_s);
        ulong* g = _s->Gpr;
        Hypercall call = is64
            ? new(g[0], (byte)_s->Cpl, true, g[7], g[6], g[2], g[10], g[8], g[9])
            : new((uint)g[0], (byte)_s->Cpl, false, (uint)g[3], (uint)g[1], (uint)g[2], (uint)g[6], (uint)g[7], (uint)g[5]);
        if (Side.TryHypercall(call, out long result))
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
        _hypercallRip = _s->Rip;
        return ExitToClient(Completion.XenHypercall);
    }

    /// <summary>The client has answered. If it has moved the vCPU meanwhile (a reset, a migration) there is nothing to finish.</summary>
    public unsafe void CompleteHypercall()
    {
        if (_s->Rip != _hypercallRip)
            return;
        _s->Gpr[0] = KvmRun->xen.result;
        Cpu.SkipInstruction();
    }

    // ---- For Ring3.Xen ----

    public bool HasLapic => Lapic is not null;

    public void KickForEvents() => Requests.Make(VcpuRequest.Unblock);

    public void InjectVector(byte vector)
    {
        if (Lapic is not null)
            _ = ApicBus.DeliverTo(Lapic, new LapicInterrupt { Vector = vector, Mode = DeliveryMode.Fixed, Assert = true, Dest = Id });
    }

    public void RequestClockUpdate() => Requests.Make(VcpuRequest.ClockUpdate);

    public void ArmTimer(ulong deadlineClockNs)
    {
        long delta = (long)(deadlineClockNs - (ulong)Vm.Clock.NowNs), now = HostClock.MonotonicNs();
        long deadline = delta > long.MaxValue - now ? long.MaxValue : now + delta;
        timers.XenDeadlineNs = deadline;
        EventLoop.Shared.Arm(_timer ??= new HostTimer(this) { Failed = e => Vm.BugOn(true, e.ToString()) }, deadline);
    }

    public void CancelTimer()
    {
        timers.XenDeadlineNs = long.MaxValue;
        if (_timer is not null)
            EventLoop.Shared.Cancel(_timer);
    }

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs) => port.Side?.TimerExpired();

    public long RunDelayNs => runDelay.NowNs;

    /// <summary>Giving the processor up is a preemption: the vCPU is runnable until it comes back.</summary>
    public void Yield()
    {
        Side.UpdateRunstate(XenAbi.RUNSTATE_runnable);
        Thread.Yield();
        Side.UpdateRunstate(XenAbi.RUNSTATE_running);
    }

    public void WaitForEvent(Func<bool> ready, long timeoutNs) => halting.WaitFor(ready, timeoutNs);

    public unsafe bool ReadVirtual(ulong gva, Span<byte> destination)
    {
        while (destination.Length != 0)
        {
            int n = (int)Math.Min((ulong)destination.Length, 4096 - (gva & 4095));
            if (!tables.TryTranslate(gva, out ulong gpa, out _) || !Vm.Memory.Read(gpa, destination[..n]))
                return false;
            destination = destination[n..];
            gva += (ulong)n;
            if ((_s->Efer & Efer.LMA) == 0)
                gva = (uint)gva;
        }
        return true;
    }
}

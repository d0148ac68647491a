using Ring3.Host;

// SAFETY: KvmRun lives as long as the vCPU.
namespace Ring3.Kvm;

/// <summary>
/// A vCPU that executes nothing: after HLT, waiting for INIT or SIPI, polling for Xen's events. How it waits, and what ends that. See docs/requests.md,
/// "Sleeping".
/// </summary>
internal sealed class Halting(
    VcpuCore core, VcpuActivity activity, VcpuEvents events, InterruptInbox inbox, SystemManagement smm, SignalWords signal, VcpuTimers timers, StealTime steal,
    XenPort xen) : VcpuPart(core)
{
    private const long PollStartNs = 10_000;

    /// <summary>For how long the next HLT is polled. Grows while waits are short.</summary>
    private long _pollNs;
    /// <summary>A paravirtual kick has come that no HLT has answered yet.</summary>
    private int _unhalted;

    /// <summary>MSR_KVM_POLL_CONTROL: with bit 0 clear the guest polls by itself, before its HLT.</summary>
    public ulong PollControl { get; set; } = 1;

    /// <summary>KVM_HC_KICK_CPU: wakes the vCPU from HLT; if it is not halted, its next HLT returns at once. Any thread.</summary>
    public void Unhalt()
    {
        Volatile.Write(ref _unhalted, 1);
        Requests.Make(VcpuRequest.Unblock);
    }

    /// <summary>HLT has retired. A paravirtual kick that came first is not slept through.</summary>
    public void Begin()
    {
        if (Interlocked.Exchange(ref _unhalted, 0) == 0)
            activity.State = MpState.Halted;
    }

    /// <summary>The guest may run again, if there is a reason.</summary>
    public void EndIfDue()
    {
        if (!activity.IsHalted || !HasReasonToWake())
            return;
        _ = Interlocked.Exchange(ref _unhalted, 0);
        activity.State = MpState.Runnable;
    }

    /// <summary>Why a vCPU that is not running guest code would stop waiting.</summary>
    private unsafe bool HasReasonToWake()
    {
        if (Requests.Test(VcpuRequest.UserKick) || Requests.Test(VcpuRequest.VmDead) || KvmRun->immediate_exit != 0 || signal.IsSignalled
            || inbox.HasInit && !smm.IsActive)
            return true;
        if (activity.State == MpState.InitReceived)
            return inbox.HasSipi;
        if (!activity.IsHalted)
            return false;
        if (Lapic is null && KvmRun->request_interrupt_window != 0)
            return true;
        return Volatile.Read(ref _unhalted) != 0 || events.EndsHalt || xen.Side is { HasPendingWork: true };
    }

    /// <summary>Waits until there is a reason to stop waiting.</summary>
    public void Wait()
    {
        if (activity.IsHalted && TryPoll())
            return;
        if (!HasReasonToWake())
            Sleep();
    }

    /// <summary>Spins for a while, because a wake-up through the host's scheduler costs more than the wait often lasts. KVM: halt-polling.rst.</summary>
    private bool TryPoll()
    {
        long limit = _pollNs;
        if (limit == 0 || (PollControl & 1) == 0)
            return false;
        Stats.halt_attempted_poll++;
        long start = HostClock.MonotonicNs(), now = start;
        do
        {
            if (Lapic is not null)
                timers.Poll(now);
            if (HasReasonToWake())
            {
                Stats.halt_successful_poll++;
                Stats.halt_poll_success_ns += (ulong)(now - start);
                Stats.halt_poll_success_hist.Add((ulong)(now - start));
                return true;
            }
            Thread.SpinWait(20);
            now = HostClock.MonotonicNs();
        }
        while (now - start < limit);
        Stats.halt_poll_fail_ns += (ulong)(now - start);
        Stats.halt_poll_fail_hist.Add((ulong)(now - start));
        return false;
    }

    private void Sleep()
    {
        if (steal.IsEnabled)
            steal.SetPreempted();
        long start = HostClock.MonotonicNs();
        int token = Requests.BeginBlock();
        while (!HasReasonToWake())
        {
            long deadline = activity.IsHalted && Lapic is not null ? timers.NextNs : long.MaxValue, now = HostClock.MonotonicNs();
            if (deadline <= now)
                timers.Poll(now);
            else if (deadline == long.MaxValue)
                Requests.Sleep(token);
            else
                SleepUntil(deadline, now, token);
            token = Requests.WakeToken;
        }
        Requests.EndBlock();
        long waited = HostClock.MonotonicNs() - start;
        Stats.halt_wakeup++;
        Stats.halt_wait_ns += (ulong)waited;
        Stats.halt_wait_hist.Add((ulong)waited);
        AdjustPolling(waited);
        _core.Arrives = true;
        if (steal.IsEnabled)
            steal.Record();
    }

    /// <summary>
    /// How late time-outs are: the thread's timer slack (50 us unless the client has changed it) and the way back to a processor. Falls at once and grows
    /// slowly, so that a busy host is not waited for. KVM's lapic_timer_advance is of the same kind.
    /// </summary>
    private long _timeoutLatenessNs = 50_000;
    private const long LatenessStepNs = 2_000, MaxLatenessNs = 100_000;

    /// <summary>Sleeps until about the deadline, or until somebody wakes the vCPU; the little that may be left is spun away by the caller's loop.</summary>
    private void SleepUntil(long deadlineNs, long nowNs, int token)
    {
        long until = deadlineNs - _timeoutLatenessNs;
        if (until <= nowNs)
        {
            Thread.SpinWait(20);
            return;
        }
        Requests.Sleep(token, until - nowNs);
        long late = HostClock.MonotonicNs() - until;
        if (late >= 0 && Requests.WakeToken == token)
            _timeoutLatenessNs = Math.Min(Math.Min(late, _timeoutLatenessNs + LatenessStepNs), MaxLatenessNs);
    }

    /// <summary>Short waits make the next poll longer, long ones turn polling off.</summary>
    private void AdjustPolling(long waitedNs)
    {
        long max = Vm.Settings.HaltPollNs;
        if (waitedNs > max || max == 0)
            _pollNs = 0;
        else if (_pollNs < max)
            _pollNs = Math.Min(max, Math.Max(PollStartNs, _pollNs * 2));
    }

    /// <summary>
    /// Xen's SCHEDOP_poll: waits as a halted vCPU would, until it has an event, a kick, or what it polls for. The guest runs again afterwards.
    /// </summary>
    /// <param name="timeoutNs">-1: none.</param>
    public void WaitFor(Func<bool> ready, long timeoutNs)
    {
        long deadline = timeoutNs < 0 ? long.MaxValue : HostClock.MonotonicNs() + timeoutNs;
        activity.State = MpState.Halted;
        int token = Requests.BeginBlock();
        while (!Requests.Check(VcpuRequest.Unblock) && !HasReasonToWake() && !ready())
        {
            long now = HostClock.MonotonicNs();
            if (now >= deadline)
                break;
            timers.Poll(now);
            long until = Math.Min(deadline, timers.NextNs);
            Requests.Sleep(token, until == long.MaxValue ? -1 : Math.Max(until - now, 0));
            token = Requests.WakeToken;
        }
        Requests.EndBlock();
        activity.State = MpState.Runnable;
        events.IsDirty = true;
        _core.Arrives = true;
    }
}

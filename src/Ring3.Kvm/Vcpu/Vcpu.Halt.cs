using Ring3.Abi;
using Ring3.Arch;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

// SAFETY: _s, _exit and KvmRun are blocks that live as long as the vCPU (see Vcpu.cs); indices into their arrays are constants or bounded by the caller.
namespace Ring3.Kvm;

// HLT, waiting for SIPI, and being woken.
public sealed unsafe partial class Vcpu
{
    private const long PollStartNs = 10_000;
    private long _haltPollNs;
    private bool _pollDisabled;
    private int _unhalted;

    private int HandleHlt()
    {
        Stats.halt_exits++;
        if (Lapic is null && !Vm.HaltsInGuest)
        {
            KvmRun->exit_reason = KVM_EXIT_HLT;
            return ToClient;
        }
        // A PV kick that came first is not slept through.
        if (Interlocked.Exchange(ref _unhalted, 0) == 0)
            _activity.State = MpState.Halted;
        if (_s->HostStepDone == 0)
            return KeepRunning;
        _s->HostStepDone = 0;
        return ExitDebug(Vector.DB, Dr.Dr6Fixed1 | Dr.Dr6BS | Cpu.TakePendingDebug());
    }

    /// <summary>KVM_HC_KICK_CPU: wakes the vCPU from HLT; if it is not halted, its next HLT returns at once. Any thread.</summary>
    internal void PvUnhalt()
    {
        Volatile.Write(ref _unhalted, 1);
        Requests.Make(VcpuRequest.Unblock);
    }

    /// <summary>Why a vCPU that is not running guest code would stop waiting.</summary>
    private bool HasReasonToWake()
    {
        if (Requests.Test(VcpuRequest.UserKick) || Requests.Test(VcpuRequest.VmDead) || KvmRun->immediate_exit != 0 || _signal.IsSignalled || _inbox.HasInit && !_smm.IsActive)
            return true;
        if (_activity.State == MpState.InitReceived)
            return _inbox.HasSipi;
        if (!_activity.IsHalted)
            return false;
        if (Lapic is null && KvmRun->request_interrupt_window != 0)
            return true;
        return Volatile.Read(ref _unhalted) != 0 || _events.EndHalt() || _xen.Side is { HasPendingWork: true };
    }

    /// <summary>Waits until the vCPU may run again, or the client wants it back.</summary>
    private int Block()
    {
        if (_activity.IsHalted && TryPoll())
            return Unblock();
        if (!HasReasonToWake())
            Sleep();
        return Unblock();
    }

    private int Unblock()
    {
        if (Requests.Check(VcpuRequest.VmDead) || Vm.IsDead)
            return -Errno.EIO;
        if (Requests.Check(VcpuRequest.UserKick))
            return ExitIntr();
        if (KvmRun->immediate_exit != 0 || _signal.IsSignalled)
            return ExitIntr();
        _activity.AcceptInitAndSipi();
        if (_activity.IsHalted && HasReasonToWake())
        {
            _ = Interlocked.Exchange(ref _unhalted, 0);
            _activity.State = MpState.Runnable;
        }
        _events.IsDirty = true;
        return KeepRunning;
    }

    /// <summary>Spins for a while, because a wake-up through the host's scheduler costs more than the wait often lasts. KVM: halt-polling.rst.</summary>
    private bool TryPoll()
    {
        long limit = _haltPollNs;
        if (limit == 0 || _pollDisabled)
            return false;
        Stats.halt_attempted_poll++;
        long start = HostClock.MonotonicNs(), now = start;
        do
        {
            if (Lapic is not null)
                _timers.Poll(now);
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
        if (_steal.IsEnabled)
            _steal.SetPreempted();
        long start = HostClock.MonotonicNs();
        int token = Requests.BeginBlock();
        while (!HasReasonToWake())
        {
            long deadline = _activity.IsHalted && Lapic is not null ? _timers.NextNs : long.MaxValue, now = HostClock.MonotonicNs();
            if (deadline <= now)
                _timers.Poll(now);
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
        _xen.Arrives = true;
        if (_steal.IsEnabled)
            _steal.Record();
    }

    /// <summary>
    /// How late time-outs are: the thread's timer slack (50 us unless the client has changed it) and the way back to a processor. Falls at once and grows slowly, so that a busy host is not waited for. KVM's lapic_timer_advance
    /// is of the same kind.
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
        long max = Vm.HaltPollNs;
        if (waitedNs > max || max == 0)
            _haltPollNs = 0;
        else if (_haltPollNs < max)
            _haltPollNs = Math.Min(max, Math.Max(PollStartNs, _haltPollNs * 2));
    }
}

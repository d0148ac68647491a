using Ring3.Abi;
using Ring3.Host;
using static Ring3.Abi.KvmApi;

namespace Ring3.Xen;

// The single-shot timer, whose expiry is an event.
public sealed partial class XenVcpu
{
    /// <summary>Orders changes of the timer with its expiry on another thread.</summary>
    private readonly RankedLock _timerLock = new(LockRank.XenTimer);
    private uint _timerPort;
    private ulong _timerExpires;
    private bool _timerArmed;
    private int _timerPending;

    /// <summary>Xen's workaround for guests whose timeouts have overflowed: deadlines in the negative or 2^50 ns away become 100 ms.</summary>
    private const int OverflowShift = 50;
    private const ulong OverflowDelayNs = 100_000_000;

    /// <summary>The client gave the timer an event channel: timer hypercalls are handled here.</summary>
    internal bool TimerEnabled => Volatile.Read(ref _timerPort) != 0;

    /// <summary>The timer has expired but its event could not be delivered without waiting. Any thread.</summary>
    public bool HasPendingTimer => Volatile.Read(ref _timerPending) != 0;

    private EventTarget TimerTarget => new(_timerPort, Processor.Id, KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL);

    /// <param name="deadline">kvmclock nanoseconds.</param>
    /// <param name="overflowWorkaround">Apply Xen's workaround, as set_timer_op does.</param>
    internal void StartTimer(ulong deadline, bool overflowWorkaround)
    {
        using (_timerLock.Enter())
        {
            ulong now = _vm.ClockNs;
            long delta = (long)(deadline - now);
            if (overflowWorkaround && ((long)deadline < 0 || delta > 0 && delta >> OverflowShift != 0))
            {
                deadline = now + OverflowDelayNs;
                delta = (long)OverflowDelayNs;
            }
            Processor.CancelTimer();
            Volatile.Write(ref _timerPending, 0);
            _timerExpires = deadline;
            _timerArmed = true;
            if (delta <= 0)
                ExpireLocked();
            else
                Processor.ArmTimer(deadline);
        }
    }

    internal void StopTimer()
    {
        using (_timerLock.Enter())
        {
            Processor.CancelTimer();
            (_timerArmed, _timerExpires) = (false, 0);
            Volatile.Write(ref _timerPending, 0);
        }
    }

    /// <summary>The deadline may have passed. The timer service's thread; late and spurious calls are harmless.</summary>
    public void TimerExpired()
    {
        using (_timerLock.Enter())
        {
            if (!_timerArmed)
                return;
            if ((long)(_timerExpires - _vm.ClockNs) > 0)
                Processor.ArmTimer(_timerExpires);
            else
                ExpireLocked();
        }
    }

    private void ExpireLocked()
    {
        _timerArmed = false;
        if (_vm.TrySend(TimerTarget) != XenVm.WouldBlock)
        {
            _timerExpires = 0;
            return;
        }
        Volatile.Write(ref _timerPending, 1);
        Processor.KickForEvents();
    }

    /// <summary>Delivers an expiry that had to wait. Owner thread.</summary>
    public void InjectPendingTimer()
    {
        if (!HasPendingTimer)
            return;
        _ = _vm.Send(TimerTarget);
        using (_timerLock.Enter())
        {
            // Armed again meanwhile: that deadline is not over.
            if (!_timerArmed)
                _timerExpires = 0;
            Volatile.Write(ref _timerPending, 0);
        }
    }

    private int SetTimer(in kvm_xen_vcpu_attr.timer_t timer)
    {
        if (timer.port != 0 && timer.priority != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL)
            return -Errno.EINVAL;
        StopTimer();
        Volatile.Write(ref _timerPort, timer.port);
        if (timer.port != 0 && timer.expires_ns != 0)
            StartTimer(timer.expires_ns, false);
        return 0;
    }

    /// <summary>A consistent picture: the timer is armed, or its event is in the guest's memory; never in between.</summary>
    private kvm_xen_vcpu_attr.timer_t GetTimer()
    {
        InjectPendingTimer();
        using (_timerLock.Enter())
            return new() { port = _timerPort, priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL, expires_ns = _timerExpires };
    }
}

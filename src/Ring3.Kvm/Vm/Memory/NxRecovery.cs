using Ring3.Host;
using Ring3.Mmu;
using Ring3.Sync;

namespace Ring3.Kvm;

/// <summary>Periodic recovery of what NX huge pages have split, on the VM's worker. KVM's kvm-nx-lpage-recovery thread.</summary>
internal sealed class NxRecovery : WorkItem, ITimerCallback, IDisposable
{
    private readonly TdpMmu _mmu;
    private readonly WorkQueue _queue;
    private readonly HostTimer _timer;
    private readonly RankedLock _lock = new(LockRank.NxRecovery);
    private readonly uint _ratio;
    private readonly long _periodNs;
    private bool _stopped;

    public NxRecovery(TdpMmu mmu, WorkQueue queue, VmHealth health, uint ratio, uint periodMs)
    {
        (_mmu, _queue, _ratio) = (mmu, queue, ratio);
        _periodNs = PeriodMs(ratio, periodMs) * 1_000_000L;
        _timer = new HostTimer(this) { Failed = e => health.Bug(e.ToString()) };
        Arm();
    }

    /// <summary>The period in force. KVM: an hour divided by the ratio when none is set, not less than a second.</summary>
    internal static uint PeriodMs(uint ratio, uint periodMs) => periodMs != 0 ? periodMs : 3_600_000 / Math.Min(ratio, 3600);

    private void Arm() => EventLoop.Shared.Arm(_timer, HostClock.MonotonicNs() + _periodNs);

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs)
    {
        using (_lock.Enter())
            if (!_stopped)
                _queue.Queue(this);
    }

    protected override void Run()
    {
        _mmu.RecoverNxSplits(_ratio);
        using (_lock.Enter())
            if (!_stopped)
                Arm();
    }

    /// <summary>Before the queue is disposed of: nothing is queued afterwards.</summary>
    public void Dispose()
    {
        using (_lock.Enter())
            _stopped = true;
        EventLoop.Shared.Cancel(_timer);
    }
}

using System.Runtime.CompilerServices;
using Ring3.Host;

// SAFETY: _s is a block that lives as long as the vCPU (see Vcpu.cs).
namespace Ring3.Kvm;

// The vCPU's own timers (local APIC, Xen): its thread expires them, in the guest, while halted and between the two, whatever other threads of the host are doing.
public sealed unsafe partial class Vcpu
{
    /// <summary>The deadline for which the processor's timer is set (CLOCK_MONOTONIC), or <see cref="long.MaxValue"/>.</summary>
    private long _timerNs = long.MaxValue;

    /// <summary>Deadline of the Xen timer; the timer service has it, too, because its event is the guest's memory, which others read while this vCPU is not running.</summary>
    private long _xenTimerNs = long.MaxValue;

    /// <summary>When the vCPU has to look at its timers, or <see cref="long.MaxValue"/>. Only with a local APIC.</summary>
    private long NextTimerNs
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Math.Min(Lapic!.TimerDeadlineNs, Volatile.Read(ref _xenTimerNs));
    }

    /// <summary>Expires what has come, and sets the processor's timer for the rest.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private void ArmTimer()
    {
        long now = HostClock.MonotonicNs();
        PollTimers(now);
        _timerNs = NextTimerNs;
        // A little early if the clocks drift apart: then the timer is set once more.
        UInt128 ticks = (UInt128)Math.Max(0, _timerNs - now) * HostTsc.Khz / 1_000_000;
        _s->TimerDeadline = _timerNs == long.MaxValue || ticks > long.MaxValue ? 0 : HostClock.Tsc() + (ulong)ticks;
    }

    /// <summary>The processor's timer has expired.</summary>
    private void TimerExit()
    {
        PollTimers(HostClock.MonotonicNs());
        _timerNs = 0;
    }

    /// <summary>Expires the timers that have come. Only with a local APIC.</summary>
    private void PollTimers(long nowNs)
    {
        Lapic!.PollTimer(nowNs);
        if (nowNs < Volatile.Read(ref _xenTimerNs))
            return;
        Volatile.Write(ref _xenTimerNs, long.MaxValue);
        _xen?.TimerExpired();
    }
}

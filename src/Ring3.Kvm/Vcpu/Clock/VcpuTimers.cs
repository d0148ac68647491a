using System.Runtime.CompilerServices;
using Ring3.Host;

// SAFETY: _s holds the deadline that is written here, as long as the vCPU has its processor.
namespace Ring3.Kvm;

/// <summary>
/// The vCPU's own timers (local APIC, Xen): its thread expires them, in the guest, while halted and between the two, whatever other threads of the host are
/// doing. Only with a local APIC. See docs/interrupts.md, "Timers".
/// </summary>
internal sealed class VcpuTimers(VcpuCore core, XenPort xen) : VcpuPart(core)
{
    /// <summary>The deadline for which the processor's timer is set (CLOCK_MONOTONIC), or <see cref="long.MaxValue"/>.</summary>
    private long _armedNs = long.MaxValue;
    private long _xenDeadlineNs = long.MaxValue;

    /// <summary>
    /// Deadline of the Xen timer (CLOCK_MONOTONIC), or <see cref="long.MaxValue"/>. Any thread. The timer service has it, too, because its event is the guest's
    /// memory, which others read while this vCPU is not running.
    /// </summary>
    public long XenDeadlineNs { get => Volatile.Read(ref _xenDeadlineNs); set => Volatile.Write(ref _xenDeadlineNs, value); }

    /// <summary>When the vCPU has to look at its timers, or <see cref="long.MaxValue"/>.</summary>
    public long NextNs
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => Math.Min(Lapic!.TimerDeadlineNs, XenDeadlineNs);
    }

    /// <summary>The processor's timer is set for another deadline than the next.</summary>
    public bool IsStale
    {
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        get => NextNs != _armedNs;
    }

    /// <summary>Expires what has come, and sets the processor's timer for the rest.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public unsafe void Arm()
    {
        long now = HostClock.MonotonicNs();
        Poll(now);
        _armedNs = NextNs;
        // A little early if the clocks drift apart: then the timer is set once more.
        UInt128 ticks = (UInt128)Math.Max(0, _armedNs - now) * HostTsc.Khz / 1_000_000;
        _s->TimerDeadline = _armedNs == long.MaxValue || ticks > long.MaxValue ? 0 : HostClock.Tsc() + (ulong)ticks;
    }

    /// <summary>The processor's timer has expired.</summary>
    public void Expired()
    {
        Poll(HostClock.MonotonicNs());
        _armedNs = 0;
    }

    /// <summary>Expires the timers that have come.</summary>
    public void Poll(long nowNs)
    {
        Lapic!.PollTimer(nowNs);
        if (nowNs < XenDeadlineNs)
            return;
        XenDeadlineNs = long.MaxValue;
        xen.Side?.TimerExpired();
    }
}

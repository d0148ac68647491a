using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Irqchip;

// The APIC timer. SPEC: SDM volume 3, "APIC Timer". All fields below are protected by _timerLock. Nothing expires the timer by itself: the vCPU's thread looks
// at the clock, and so does every register access whose result depends on whether the deadline has passed.
public sealed partial class Lapic
{
    private readonly ITimerService _timers;
    private readonly RankedLock _timerLock = new(LockRank.LapicTimer);
    private uint _timerMode;
    private uint _divider = 2;
    private long _periodNs;
    private long _deadlineNs = long.MaxValue;
    private ulong _tscDeadline;

    /// <summary>Shortest period of the periodic mode in nanoseconds; keeps a guest from drowning the host in timers. KVM's min_timer_period_us.</summary>
    public long MinimumPeriodNs { get; set; } = 200_000;

    /// <summary>
    /// When the timer fires next (CLOCK_MONOTONIC nanoseconds), or <see cref="long.MaxValue"/>. The owner calls <see cref="PollTimer"/> when it has come: no
    /// other thread does.
    /// </summary>
    public long TimerDeadlineNs => Volatile.Read(ref _deadlineNs);

    /// <summary>Whether the timer's LVT entry is unmasked, so that its expiry is an interrupt.</summary>
    public bool TimerUnmasked => HardwareEnabled && (Reg(ApicRegister.LVT_TIMER) & ApicBits.LvtMasked) == 0;

    /// <summary>Fires the timer if its deadline has passed. Any thread.</summary>
    public void PollTimer(long nowNs)
    {
        if (nowNs < Volatile.Read(ref _deadlineNs))
            return;
        using (_timerLock.Enter())
            if (!TryExpire(nowNs))
                return;
        _ = LocalDeliver(ApicRegister.LVT_TIMER);
    }

    /// <summary>The timer as it is now: what has expired is an interrupt before something that it depends on changes or is read.</summary>
    public void PollTimer()
    {
        if (Volatile.Read(ref _deadlineNs) != long.MaxValue)
            PollTimer(_timers.NowNs);
    }

    private bool TryExpire(long nowNs)
    {
        if (nowNs < _deadlineNs)
            return false;
        if (_timerMode == ApicBits.LvtTimerPeriodic && _periodNs > 0)
        {
            // Ticks missed while the host was busy are one interrupt, as IRR could not have counted them either.
            SetDeadline(_deadlineNs + _periodNs * ((nowNs - _deadlineNs) / _periodNs + 1));
            return true;
        }
        // The host's clock is not the guest's: no interrupt comes before the TSC that the guest asked for.
        if (_timerMode == ApicBits.LvtTimerDeadline)
            return ArmTscDeadline();
        Disarm();
        return true;
    }

    /// <summary>IA32_TSC_DEADLINE; zero when not armed or not in that mode. A value that has passed is pending when the setter returns.</summary>
    public ulong TscDeadline
    {
        get
        {
            PollTimer();
            using (_timerLock.Enter())
                return HardwareEnabled && _timerMode == ApicBits.LvtTimerDeadline ? _tscDeadline : 0;
        }
        set
        {
            PollTimer();
            using (_timerLock.Enter())
            {
                if (!HardwareEnabled || _timerMode != ApicBits.LvtTimerDeadline)
                    return;
                _tscDeadline = value;
                if (!ArmTscDeadline())
                    return;
            }
            _ = LocalDeliver(ApicRegister.LVT_TIMER);
        }
    }

    /// <summary>The guest's TSC was changed (offset or frequency): computes the host deadline of an armed TSC deadline again.</summary>
    public void RestartTscDeadline()
    {
        using (_timerLock.Enter())
            if (_timerMode != ApicBits.LvtTimerDeadline || !ArmTscDeadline())
                return;
        _ = LocalDeliver(ApicRegister.LVT_TIMER);
    }

    /// <summary>True: the deadline has passed and is disarmed; the caller delivers it without the lock.</summary>
    private bool ArmTscDeadline()
    {
        if (_tscDeadline == 0)
        {
            Disarm();
            return false;
        }
        ulong tsc = _sink.GuestTsc();
        if (_tscDeadline <= tsc)
        {
            _tscDeadline = 0;
            Disarm();
            return true;
        }
        UInt128 ns = ((UInt128)(_tscDeadline - tsc) * 1_000_000 + _sink.GuestTscKhz - 1) / _sink.GuestTscKhz;
        SetDeadline(ns > (UInt128)(long.MaxValue / 2) ? long.MaxValue / 2 : _timers.NowNs + (long)ns);
        return false;
    }

    private void WriteTimerLvt(uint value)
    {
        PollTimer();
        WriteLvt(ApicRegister.LVT_TIMER, value);
        UpdateTimerMode();
    }

    private void UpdateTimerMode()
    {
        using (_timerLock.Enter())
        {
            uint mode = Reg(ApicRegister.LVT_TIMER) & ApicBits.LvtTimerMode;
            if (mode == _timerMode)
                return;
            // Switching to or from TSC-deadline mode disarms the timer; between one-shot and periodic it counts on.
            if (mode == ApicBits.LvtTimerDeadline || _timerMode == ApicBits.LvtTimerDeadline)
            {
                Disarm();
                Reg(ApicRegister.TMICT) = 0;
                _periodNs = 0;
                _tscDeadline = 0;
            }
            _timerMode = mode;
            if (mode == ApicBits.LvtTimerPeriodic && _periodNs > 0)
                _periodNs = Math.Max(_periodNs, MinimumPeriodNs);
        }
    }

    private void WriteInitialCount(uint value)
    {
        PollTimer();
        using (_timerLock.Enter())
        {
            if (_timerMode == ApicBits.LvtTimerDeadline)
                return;
            Reg(ApicRegister.TMICT) = value;
            StartCounting(PeriodOf(value));
        }
    }

    private void StartCounting(long firstNs)
    {
        _periodNs = PeriodOf(Reg(ApicRegister.TMICT));
        if (_timerMode == ApicBits.LvtTimerPeriodic && _periodNs > 0 && _periodNs < MinimumPeriodNs)
            _periodNs = firstNs = MinimumPeriodNs;
        if (_periodNs == 0)
            Disarm();
        else
            SetDeadline(_timers.NowNs + firstNs);
    }

    private void WriteDivider(uint value)
    {
        PollTimer();
        using (_timerLock.Enter())
        {
            uint old = _divider;
            Reg(ApicRegister.TDCR) = value & 0xb;
            UpdateDivider();
            if (old == _divider || _deadlineNs == long.MaxValue || _periodNs == 0)
                return;
            // The count that remains is kept; its ticks get longer or shorter.
            long remaining = Math.Max(0, _deadlineNs - _timers.NowNs);
            _periodNs = PeriodOf(Reg(ApicRegister.TMICT));
            SetDeadline(_timers.NowNs + (long)((Int128)remaining * _divider / old));
        }
    }

    private void UpdateDivider()
    {
        uint tdcr = Reg(ApicRegister.TDCR), code = tdcr & 3 | tdcr >> 1 & 4;
        _divider = 1u << (int)(code + 1 & 7);
    }

    /// <summary>Duration of <paramref name="count"/> timer ticks in nanoseconds.</summary>
    private long PeriodOf(uint count) => (long)UInt128.Min((UInt128)count * _divider * _bus.BusPeriodNs, long.MaxValue / 4);

    /// <summary>Zero once the timer has expired, and not before: a tick that has begun is counted when it ends.</summary>
    private uint CurrentCount()
    {
        PollTimer();
        using (_timerLock.Enter())
        {
            if (_timerMode == ApicBits.LvtTimerDeadline || _periodNs == 0 || _deadlineNs == long.MaxValue)
                return 0;
            long tick = _divider * (long)_bus.BusPeriodNs, remaining = Math.Max(_deadlineNs - _timers.NowNs, 1);
            return (uint)Math.Min(uint.MaxValue, (remaining + tick - 1) / tick);
        }
    }

    private void StopTimer()
    {
        using (_timerLock.Enter())
        {
            Disarm();
            _periodNs = 0;
            _tscDeadline = 0;
        }
    }

    private void SetDeadline(long deadlineNs) => Volatile.Write(ref _deadlineNs, deadlineNs);

    private void Disarm() => Volatile.Write(ref _deadlineNs, long.MaxValue);
}

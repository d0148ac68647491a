using Ring3.Irqchip.Timers;

namespace Ring3.Irqchip;

// The APIC timer. SPEC: SDM volume 3, "APIC Timer". All fields below are protected by _timerLock: the owner programs, the timer thread expires.
public sealed partial class Lapic
{
    private readonly ITimerService _timers;
    private readonly HostTimer _timer;
    private readonly Lock _timerLock = new();
    private uint _timerMode;
    private uint _divider = 2;
    private long _periodNs;
    private long _deadlineNs = long.MaxValue;
    private ulong _tscDeadline;

    /// <summary>Shortest period of the periodic mode in nanoseconds; keeps a guest from drowning the host in timers. KVM's min_timer_period_us.</summary>
    public long MinimumPeriodNs { get; set; } = 200_000;

    /// <summary>When the timer fires next (CLOCK_MONOTONIC nanoseconds), or <see cref="long.MaxValue"/>. A halted vCPU may sleep until then and call <see cref="PollTimer"/>.</summary>
    public long TimerDeadlineNs => Volatile.Read(ref _deadlineNs);

    /// <summary>Whether the timer's LVT entry is unmasked, so that its expiry is an interrupt.</summary>
    public bool TimerUnmasked => HardwareEnabled && (Reg(ApicRegister.LVT_TIMER) & ApicBits.LvtMasked) == 0;

    /// <summary>Fires the timer if its deadline has passed. Any thread.</summary>
    public void PollTimer(long nowNs)
    {
        if (nowNs < Volatile.Read(ref _deadlineNs))
            return;
        lock (_timerLock)
        {
            if (nowNs < _deadlineNs)
                return;
            if (_timerMode == ApicBits.LvtTimerPeriodic && _periodNs > 0)
            {
                // Ticks missed while the host was busy are one interrupt, as IRR could not have counted them either.
                SetDeadline(_deadlineNs + _periodNs * ((nowNs - _deadlineNs) / _periodNs + 1));
            }
            else
            {
                Volatile.Write(ref _deadlineNs, long.MaxValue);
                _tscDeadline = 0;
            }
        }
        _ = LocalDeliver(ApicRegister.LVT_TIMER);
    }

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs) => PollTimer(nowNs);

    /// <summary>IA32_TSC_DEADLINE; zero when not armed or not in that mode.</summary>
    public ulong TscDeadline
    {
        get
        {
            lock (_timerLock)
                return HardwareEnabled && _timerMode == ApicBits.LvtTimerDeadline ? _tscDeadline : 0;
        }
        set
        {
            lock (_timerLock)
            {
                if (!HardwareEnabled || _timerMode != ApicBits.LvtTimerDeadline)
                    return;
                _tscDeadline = value;
                ArmTscDeadline();
            }
        }
    }

    /// <summary>The guest's TSC was changed (offset or frequency): computes the host deadline of an armed TSC deadline again.</summary>
    public void RestartTscDeadline()
    {
        lock (_timerLock)
            if (_timerMode == ApicBits.LvtTimerDeadline && _tscDeadline != 0)
                ArmTscDeadline();
    }

    private void ArmTscDeadline()
    {
        if (_tscDeadline == 0)
        {
            Disarm();
            return;
        }
        ulong tsc = _sink.GuestTsc();
        long now = _timers.NowNs;
        if (_tscDeadline <= tsc)
        {
            SetDeadline(now);
            return;
        }
        UInt128 ns = ((UInt128)(_tscDeadline - tsc) * 1_000_000 + _sink.GuestTscKhz - 1) / _sink.GuestTscKhz;
        SetDeadline(ns > (UInt128)(long.MaxValue / 2) ? long.MaxValue / 2 : now + (long)ns);
    }

    private void UpdateTimerMode()
    {
        lock (_timerLock)
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
        lock (_timerLock)
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
        lock (_timerLock)
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

    private uint CurrentCount()
    {
        lock (_timerLock)
        {
            if (_timerMode == ApicBits.LvtTimerDeadline || _periodNs == 0 || _deadlineNs == long.MaxValue)
                return 0;
            long remaining = _deadlineNs - _timers.NowNs;
            if (_timerMode == ApicBits.LvtTimerPeriodic)
                remaining = (remaining % _periodNs + _periodNs) % _periodNs;
            return remaining <= 0 ? 0 : (uint)Math.Min(uint.MaxValue, remaining / (_divider * (long)_bus.BusPeriodNs));
        }
    }

    private void StopTimer()
    {
        lock (_timerLock)
        {
            Disarm();
            _periodNs = 0;
            _tscDeadline = 0;
        }
    }

    private void SetDeadline(long deadlineNs)
    {
        Volatile.Write(ref _deadlineNs, deadlineNs);
        _timers.Arm(_timer, deadlineNs);
    }

    private void Disarm()
    {
        if (_deadlineNs == long.MaxValue)
            return;
        Volatile.Write(ref _deadlineNs, long.MaxValue);
        _timers.Cancel(_timer);
    }
}

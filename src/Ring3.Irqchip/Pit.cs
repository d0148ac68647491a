using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Irqchip;

/// <summary>
/// The 8254 interval timer with port 61h. Channel 0 drives GSI 0 from a host timer; with reinjection, ticks that the guest has not acknowledged are kept and
/// delivered later, one per acknowledgement, so that a tick-counting guest keeps time. SPEC: 8254 data sheet.
/// </summary>
public sealed class Pit : ITimerCallback
{
    private const int Channels = 3;

    private readonly RankedLock _lock = new(LockRank.Pit);
    private readonly VmIrqchip _irqchip;
    private readonly ITimerService _timers;
    private readonly HostTimer _timer;
    private readonly PitChannel[] _channels = [new(), new(), new()];
    private readonly Action _acked;
    private uint _flags;
    private long _deadlineNs = long.MaxValue, _periodNs;

    /// <summary>Ticks to deliver, and whether the last one was acknowledged; protected by _lock.</summary>
    private long _pending;
    private bool _irqAcked = true;
    private bool _reinject;
    private bool _pulsing, _pulseAgain;

    internal Pit(VmIrqchip irqchip, ITimerService timers, bool speaker)
    {
        (_irqchip, _timers, HasSpeakerPort) = (irqchip, timers, speaker);
        _timer = new HostTimer(this) { Failed = irqchip.Fail };
        _acked = OnAcked;
        for (int i = 0; i < Channels; i++)
            _channels[i].Reset(gate: i != 2);
        SetReinject(true);
    }

    /// <summary>KVM_PIT_SPEAKER_DUMMY: port 61h is answered here.</summary>
    public bool HasSpeakerPort { get; }

    /// <summary>Shortest period of channel 0 in nanoseconds.</summary>
    public long MinimumPeriodNs { get; set; } = 200_000;

    /// <summary>KVM_REINJECT_CONTROL.</summary>
    public void SetReinject(bool reinject)
    {
        using (_lock.Enter())
        {
            if (_reinject == reinject)
                return;
            _reinject = reinject;
            (_pending, _irqAcked) = (0, true);
        }
        if (reinject)
        {
            _irqchip.AddAckNotifier(0, _acked);
            _irqchip.SetMaskNotifier(0, OnMaskChanged);
        }
        else
        {
            _irqchip.RemoveAckNotifier(0, _acked);
            _irqchip.SetMaskNotifier(0, null);
        }
    }

    /// <summary>Whether ticks are kept for an unacknowledged guest.</summary>
    public bool Reinject
    {
        get
        {
            using (_lock.Enter())
                return _reinject;
        }
    }

    /// <summary>Whether a port belongs to the PIT.</summary>
    public bool ClaimsPort(ushort port) => port is >= 0x40 and <= 0x43 || port == 0x61 && HasSpeakerPort;

    /// <summary>Guest read of port 40h-43h or 61h.</summary>
    public byte Read(ushort port)
    {
        long now = _timers.NowNs;
        using (_lock.Enter())
        {
            if (port == 0x61)
                return (byte)((_channels[2].Gate ? 1 : 0) | ((_flags & KvmApi.KVM_PIT_FLAGS_SPEAKER_DATA_ON) != 0 ? 2 : 0) | (int)(now >> 14 & 1) << 4
                    | (_channels[2].Out(now) ? 1 << 5 : 0));
            return port == 0x43 ? (byte)0 : _channels[port & 3].Read(now);
        }
    }

    /// <summary>Guest write to port 40h-43h or 61h.</summary>
    public void Write(ushort port, byte value)
    {
        long now = _timers.NowNs;
        using (_lock.Enter())
        {
            if (port == 0x61)
            {
                _flags = _flags & ~KvmApi.KVM_PIT_FLAGS_SPEAKER_DATA_ON | ((value & 2) != 0 ? KvmApi.KVM_PIT_FLAGS_SPEAKER_DATA_ON : 0);
                _channels[2].SetGate((value & 1) != 0, now);
            }
            else if (port == 0x43)
            {
                WriteControl(value, now);
            }
            else if (_channels[port & 3].Write(value, now) && (port & 3) == 0)
            {
                StartChannel0(now);
            }
        }
    }

    private void WriteControl(byte value, long now)
    {
        int channel = value >> 6;
        if (channel < Channels)
        {
            if ((value & 0x30) == 0)
                _channels[channel].LatchCount(now);
            else
                _channels[channel].WriteControl(value);
            return;
        }
        // Read-back: bits 5 and 4 are active low, count before status.
        for (int i = 0; i < Channels; i++)
        {
            if ((value >> 1 + i & 1) == 0)
                continue;
            if ((value & 0x20) == 0)
                _channels[i].LatchCount(now);
            if ((value & 0x10) == 0)
                _channels[i].LatchStatus(now);
        }
    }

    private void StartChannel0(long now)
    {
        PitChannel channel = _channels[0];
        (_pending, _irqAcked, _periodNs) = (0, true, 0);
        if ((_flags & KvmApi.KVM_PIT_FLAGS_HPET_LEGACY) != 0 || channel.Mode is 5)
        {
            Disarm();
            return;
        }
        long period = channel.PeriodNs;
        if (channel.Mode is 2 or 3)
            _periodNs = period = Math.Max(period, MinimumPeriodNs);
        _deadlineNs = now + period;
        _timers.Arm(_timer, _deadlineNs);
    }

    /// <summary>Stops ticking for good: the VM goes away.</summary>
    internal void Stop()
    {
        using (_lock.Enter())
        {
            (_pending, _periodNs) = (0, 0);
            Disarm();
        }
    }

    private void Disarm()
    {
        _deadlineNs = long.MaxValue;
        _timers.Cancel(_timer);
    }

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs)
    {
        using (_lock.Enter())
        {
            if (nowNs < _deadlineNs)
                return;
            long ticks = 1;
            if (_periodNs > 0)
            {
                ticks += (nowNs - _deadlineNs) / _periodNs;
                _deadlineNs += ticks * _periodNs;
                _timers.Arm(_timer, _deadlineNs);
            }
            else
            {
                _deadlineNs = long.MaxValue;
            }
            if (_reinject)
                _pending += ticks;
        }
        Inject();
    }

    /// <summary>
    /// Delivers a tick, unless reinjection still waits for the acknowledgement of the last one. Pulses of the line do not overlap: a second one, made by the
    /// acknowledgement of the first while that is still high, would be no edge, its tick never acknowledged, and the PIT silent for ever.
    /// </summary>
    private void Inject()
    {
        using (_lock.Enter())
        {
            if (_pulsing)
            {
                _pulseAgain = true;
                return;
            }
            if (_reinject && !_irqAcked)
                return;
            (_pulsing, _irqAcked) = (true, false);
        }
        do
            Pulse();
        while (ContinuesPulsing());
    }

    private bool ContinuesPulsing()
    {
        using (_lock.Enter())
        {
            _pulsing = _pulseAgain && (!_reinject || _irqAcked && _pending > 0);
            _pulseAgain = false;
            if (_pulsing)
                _irqAcked = false;
            return _pulsing;
        }
    }

    private void Pulse()
    {
        // Not under the lock: the controllers may tell the acknowledgement of this very tick.
        _ = _irqchip.SetIrq(VmIrqchip.PitSourceId, 0, true);
        _ = _irqchip.SetIrq(VmIrqchip.PitSourceId, 0, false);
        // The NMI watchdog of old Linux kernels: the tick also reaches every LINT0 that is programmed as NMI.
        foreach (Lapic apic in _irqchip.Bus.Members)
            if (apic.Lint0IsNmi)
                _ = apic.LocalDeliver(ApicRegister.LVT_LINT0);
    }

    private void OnAcked()
    {
        bool more;
        using (_lock.Enter())
        {
            if (_pending > 0)
                _pending--;
            _irqAcked = true;
            more = _reinject && _pending > 0;
        }
        if (more)
            Inject();
    }

    private void OnMaskChanged(bool masked)
    {
        if (masked)
            return;
        using (_lock.Enter())
            (_pending, _irqAcked) = (0, true);
    }

    /// <summary>KVM_GET_PIT2.</summary>
    public kvm_pit_state2 GetState()
    {
        using (_lock.Enter())
        {
            var state = new kvm_pit_state2 { flags = _flags };
            for (int i = 0; i < Channels; i++)
                state.channels[i] = _channels[i].GetState();
            return state;
        }
    }

    /// <summary>KVM_SET_PIT2: counting starts anew from now.</summary>
    public void SetState(in kvm_pit_state2 state)
    {
        long now = _timers.NowNs;
        using (_lock.Enter())
        {
            _flags = state.flags & (KvmApi.KVM_PIT_FLAGS_HPET_LEGACY | KvmApi.KVM_PIT_FLAGS_SPEAKER_DATA_ON);
            for (int i = 0; i < Channels; i++)
                _channels[i].SetState(state.channels[i], now);
            StartChannel0(now);
        }
    }
}

using Ring3.Abi;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Irqchip;

/// <summary>Told when the guest acknowledges or masks an interrupt of a controller pin. Called without the controller's lock, on a vCPU's thread.</summary>
internal interface IPinObserver
{
    /// <summary>EOI for the pin of chip <paramref name="chip"/> (KVM_IRQCHIP_*).</summary>
    void PinAcked(uint chip, uint pin);
    void PinMaskChanged(uint chip, uint pin, bool masked);
    /// <summary>Whether somebody waits for acknowledgements of the pin.</summary>
    bool PinHasAckNotifier(uint chip, uint pin);
    /// <summary>An exception escaped on the timers' thread.</summary>
    void Fail(Exception e);
}

/// <summary>
/// The I/O APIC: 24 pins with a redirection table. SPEC: 82093AA data sheet; the EOI register of version 0x20 from the ICH data sheets.
/// </summary>
/// <remarks>All state is under <c>_lock</c>, except the set of vectors that need an EOI, which local APICs read without it.</remarks>
public sealed partial class Ioapic
{
    public const int PinCount = 24, RtcPin = 8;
    public const ulong DefaultAddress = 0xfec0_0000, MmioSize = 0x100;

    /// <summary>After this many EOIs of a level interrupt that stays asserted, the next delivery is delayed, so that a storm cannot stop the guest.</summary>
    private const int StormThreshold = 10_000;
    private const long StormDelayNs = 10_000_000;

    private readonly RankedLock _lock = new(LockRank.Ioapic);
    private readonly ApicBus _bus;
    private readonly IPinObserver _observer;
    private readonly ITimerService _timers;
    private readonly HostTimer _stormTimer;
    private readonly byte _version;
    private readonly RedirectionEntry[] _table = new RedirectionEntry[PinCount];
    private readonly ulong[] _lines = new ulong[PinCount];
    private readonly int[] _eoiStreak = new int[PinCount];
    private readonly DeliveryMap _rtcMap;
    private Bits256 _eoiVectors;
    private uint _irr, _irrDelivered, _select, _id;
    private int _rtcPendingEoi;

    internal Ioapic(ApicBus bus, IPinObserver observer, ITimerService timers, int maxVcpus, byte version)
    {
        (_bus, _observer, _timers, _version) = (bus, observer, timers, version);
        _rtcMap = new DeliveryMap(maxVcpus);
        _stormTimer = new HostTimer(new StormCallback(this)) { Failed = observer.Fail };
        Reset();
    }

    /// <summary>Guest physical address of the register page.</summary>
    public ulong BaseAddress { get; private set; } = DefaultAddress;

    /// <summary>Power-on state: all pins masked. Line levels driven by devices stay.</summary>
    public void Reset()
    {
        using (_lock.Enter())
        {
            _timers.Cancel(_stormTimer);
            Array.Fill(_table, RedirectionEntry.Reset);
            (_irr, _irrDelivered, _select, _id, BaseAddress) = (0, 0, 0, 0, DefaultAddress);
            Array.Clear(_eoiStreak);
            ForgetRtc();
            UpdateEoiVectors();
        }
    }

    /// <summary>Drives the line of a pin for one source; the pin sees the OR of all sources.</summary>
    /// <returns>1 or more: delivered (or lowered); 0: coalesced with one that is pending; -1: masked or already in service.</returns>
    public int SetIrq(int pin, int sourceId, bool level, bool lineStatus = false)
    {
        using (_lock.Enter())
        {
            ref ulong sources = ref _lines[pin];
            sources = level ? sources | 1UL << sourceId : sources & ~(1UL << sourceId);
            return SetLevel(pin, sources != 0, lineStatus);
        }
    }

    /// <summary>Withdraws a source from every pin (its id is given back).</summary>
    internal void ClearSource(int sourceId)
    {
        for (int pin = 0; pin < PinCount; pin++)
            if ((_lines[pin] >> sourceId & 1) != 0)
                _ = SetIrq(pin, sourceId, false);
    }

    private int SetLevel(int pin, bool level, bool lineStatus)
    {
        uint bit = 1u << pin;
        if (!level)
        {
            _irr &= ~bit;
            return 1;
        }
        if (pin == RtcPin && lineStatus && _rtcPendingEoi > 0)
            return 0;
        bool wasHigh = (_irr & bit) != 0;
        _irr |= bit;
        if (!_table[pin].Level)
        {
            _irrDelivered &= ~bit;
            if (wasHigh)
                return 0;
        }
        return Service(pin, lineStatus);
    }

    /// <summary>Sends the pin's message if its entry allows it.</summary>
    private int Service(int pin, bool lineStatus)
    {
        ref RedirectionEntry entry = ref _table[pin];
        if (entry.Masked || entry.Level && entry.RemoteIrr)
            return -1;
        if (!entry.Level)
            _irrDelivered |= 1u << pin;
        LapicInterrupt message = entry.ToMessage(_bus.ExtendedDestinationId);
        int result;
        if (pin == RtcPin && lineStatus)
        {
            _rtcMap.Clear();
            result = _bus.Deliver(null, message, _rtcMap);
            _rtcPendingEoi = Math.Max(result, 0);
        }
        else
        {
            result = _bus.Deliver(null, message);
        }
        if (result > 0 && entry.Level)
            entry.RemoteIrr = true;
        return result;
    }

    /// <summary>Whether an EOI of the vector concerns this IOAPIC. Lock-free.</summary>
    internal bool HandlesVector(byte vector) => _eoiVectors.Test(vector);

    /// <summary>EOI message from a local APIC.</summary>
    internal void Eoi(Lapic apic, byte vector, bool level, bool suppressed)
    {
        uint pins = 0;
        using (_lock.Enter())
        {
            if (_rtcPendingEoi > 0 && _rtcMap.Remove(apic.Index, vector))
                _rtcPendingEoi--;
            for (int pin = 0; pin < PinCount; pin++)
                if (_table[pin].Vector == vector)
                    pins |= 1u << pin;
        }
        for (int pin = 0; pin < PinCount; pin++)
        {
            if ((pins >> pin & 1) == 0)
                continue;
            // Without the lock: a notifier may lower the line, or raise it again.
            _observer.PinAcked(KvmApi.KVM_IRQCHIP_IOAPIC, (uint)pin);
            if (level && !suppressed)
                using (_lock.Enter())
                    EndLevel(pin);
        }
    }

    private void EndLevel(int pin)
    {
        ref RedirectionEntry entry = ref _table[pin];
        if (!entry.Level)
            return;
        entry.RemoteIrr = false;
        if (entry.Masked || (_irr >> pin & 1) == 0)
        {
            _eoiStreak[pin] = 0;
            return;
        }
        if (++_eoiStreak[pin] < StormThreshold)
        {
            _ = Service(pin, false);
            return;
        }
        _eoiStreak[pin] = 0;
        _timers.Arm(_stormTimer, _timers.NowNs + StormDelayNs);
    }

    private sealed class StormCallback(Ioapic owner) : ITimerCallback
    {
        public void TimerExpired(HostTimer timer, long nowNs) => owner.ServicePendingLevels();
    }

    private void ServicePendingLevels()
    {
        using (_lock.Enter())
            for (int pin = 0; pin < PinCount; pin++)
                if (_table[pin].Level && (_irr >> pin & 1) != 0 && !_table[pin].RemoteIrr)
                    _ = Service(pin, false);
    }

    /// <summary>
    /// Vectors whose EOI is wanted: level-triggered pins, the RTC pin and what it has delivered, and pins with acknowledgement notifiers.
    /// BENIGN-RACE: bits are only added word by word, so a reader may see an old set once; an interrupt delivered after this returns sees the new one.
    /// </summary>
    internal void UpdateEoiVectors()
    {
        using (_lock.Enter())
        {
            var next = default(Bits256);
            for (int pin = 0; pin < PinCount; pin++)
                if (_table[pin].Level || pin == RtcPin || _observer.PinHasAckNotifier(KvmApi.KVM_IRQCHIP_IOAPIC, (uint)pin))
                    next.Set(_table[pin].Vector);
            // An RTC interrupt whose handler has given the pin another vector still has its EOI to come.
            if (_rtcPendingEoi > 0)
                _rtcMap.AddVectorsTo(ref next);
            for (int i = 0; i < 4; i++)
                Volatile.Write(ref _eoiVectors[i], next[i]);
        }
    }

    private void ForgetRtc()
    {
        _rtcPendingEoi = 0;
        _rtcMap.Clear();
    }

    /// <summary>A local APIC's state was loaded: an RTC interrupt that it holds has an EOI to come.</summary>
    internal void Restored(Lapic apic)
    {
        using (_lock.Enter())
        {
            RedirectionEntry rtc = _table[RtcPin];
            if (rtc.Masked || !apic.IsPendingOrInService(rtc.Vector) || !_bus.Reaches(apic, rtc.ToMessage(_bus.ExtendedDestinationId))
                || _rtcMap.Contains(apic.Index, rtc.Vector))
                return;
            _rtcMap.Set(apic.Index, rtc.Vector);
            _rtcPendingEoi++;
        }
    }
}

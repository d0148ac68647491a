using Ring3.Host;
using Ring3.Kvm;
using Ring3.Sync;

namespace Ring3.Vmm;

/// <summary>
/// CMOS memory and MC146818 real-time clock at ports 0x70 (index) and 0x71 (data): time in UTC, alarm, update-ended and periodic interrupts on IRQ 8, 128 bytes
/// of NVRAM with the memory sizes that PC firmware leaves there. SPEC: Motorola MC146818A data sheet; the NVRAM layout is the AT's.
/// </summary>
public sealed class CmosRtc : IBusDevice, ITimerCallback
{
    public const ushort Base = 0x70;
    public const int Ports = 2, Irq = 8;

    private const int SecondsAlarm = 1, MinutesAlarm = 3, HoursAlarm = 5, RegA = 0xa, RegB = 0xb, RegC = 0xc, RegD = 0xd, Century = 0x32;
    private const byte UpdateInProgress = 0x80, ValidRam = 0x80;
    private const byte Set = 0x80, PeriodicFlag = 0x40, AlarmFlag = 0x20, UpdateFlag = 0x10, Binary = 0x04, Hour24 = 0x02;
    private const byte InterruptRequest = 0x80, AnyFlag = PeriodicFlag | AlarmFlag | UpdateFlag;
    private const long SecondNs = 1_000_000_000, UpdateWindowNs = 244_000;

    private readonly RankedLock _lock = new(LockRank.CmosRtc);
    private readonly IInterruptLine _interrupt;
    private readonly ITimerService _timers;
    private readonly HostTimer _timer;
    private readonly byte[] _ram = new byte[128];
    private byte _index;

    /// <summary>Guest wall clock minus the monotonic clock, in nanoseconds.</summary>
    private long _offsetNs;

    /// <summary>The second up to which flags have been computed, and the monotonic time of the last periodic edge that has been.</summary>
    private long _seenSecond, _periodicBaseNs;

    /// <summary>Broken-down time while the guest holds the clock (SET, or divider in reset).</summary>
    private RtcTime _held;
    private bool _level;

    /// <param name="interrupt">IRQ 8.</param>
    /// <param name="timers">Timers and the monotonic clock.</param>
    /// <param name="realtimeNs">Wall clock at creation, nanoseconds since 1970 UTC.</param>
    /// <param name="failed">Told of an exception on the timers' thread.</param>
    public CmosRtc(IInterruptLine interrupt, ITimerService timers, long realtimeNs, Action<Exception> failed)
    {
        (_interrupt, _timers) = (interrupt, timers);
        _timer = new HostTimer(this) { Failed = failed };
        _offsetNs = realtimeNs - timers.NowNs;
        _ram[RegA] = 0x26;
        _ram[RegB] = Hour24;
        _ram[RegD] = ValidRam;
        _ram[0x14] = 0x06; // equipment: FPU, 80-column display
        _seenSecond = SecondOf(timers.NowNs);
        _periodicBaseNs = timers.NowNs;
    }

    /// <summary>Fills in the memory sizes as firmware would: base memory, extended memory in KiB, above 16 MiB and above 4 GiB in 64 KiB units; and the number
    /// of processors.</summary>
    public void SetMachine(ulong bytesBelow4G, ulong bytesAbove4G, int cpus)
    {
        using (_lock.Enter())
        {
            ulong extendedKib = Math.Min(bytesBelow4G > 0x10_0000 ? (bytesBelow4G - 0x10_0000) >> 10 : 0, 0xffff);
            ulong above16M = Math.Min(bytesBelow4G > 0x100_0000 ? (bytesBelow4G - 0x100_0000) >> 16 : 0, 0xffff);
            Put(0x15, 640, 2);
            Put(0x17, extendedKib, 2);
            Put(0x30, extendedKib, 2);
            Put(0x34, above16M, 2);
            Put(0x5b, bytesAbove4G >> 16, 3);
            _ram[0x5f] = (byte)Math.Min(cpus - 1, 255);
            int sum = 0;
            for (int i = 0x10; i < 0x2e; i++)
                sum += _ram[i];
            (_ram[0x2e], _ram[0x2f]) = ((byte)(sum >> 8), (byte)sum);
        }
    }

    /// <summary>Registers of a snapshot. The clock goes on as if it had run meanwhile.</summary>
    /// <param name="state">Where to, or from.</param>
    /// <param name="realtimeNs">The host's wall clock now.</param>
    public void Transfer(StateTransfer state, long realtimeNs)
    {
        using (_lock.Enter())
        {
            state.Section("rtc");
            state.Value(ref _index);
            state.Bytes(_ram);
            state.Value(ref _held);
            // What the guest has set the clock ahead of the host's.
            long ahead = state.Keep(_offsetNs + _timers.NowNs - realtimeNs);
            if (!state.IsLoading)
                return;
            _offsetNs = realtimeNs + ahead - _timers.NowNs;
            _seenSecond = SecondOf(_timers.NowNs);
            _periodicBaseNs = _timers.NowNs;
            Drive();
        }
    }

    private void Put(int at, ulong value, int bytes)
    {
        for (int i = 0; i < bytes; i++)
            _ram[at + i] = (byte)(value >> (8 * i));
    }

    public void Read(ulong offset, Span<byte> data)
    {
        data.Fill(0xff);
        if (offset != 1)
            return;
        using (_lock.Enter())
            data[0] = ReadRegister(_index);
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
        {
            // A 16-bit write to the index port also writes the data port.
            for (int i = 0; i < data.Length && (int)offset + i < Ports; i++)
            {
                if (offset + (ulong)i == 0)
                    _index = (byte)(data[i] & 0x7f);
                else
                    WriteRegister(_index, data[i]);
            }
        }
    }

    private bool Held => (_ram[RegB] & Set) != 0 || (_ram[RegA] & 0x60) == 0x60;

    private long SecondOf(long nowNs) => Math.DivRem(nowNs + _offsetNs, SecondNs, out _);

    private RtcTime Now => Held ? _held : RtcTime.FromSeconds(SecondOf(_timers.NowNs));

    private byte ReadRegister(int index)
    {
        switch (index)
        {
            case 0 or 2 or 4 or 6 or 7 or 8 or 9 or Century:
                return ReadTime(Now, index);
            case RegA:
                bool updating = !Held && (_timers.NowNs + _offsetNs) % SecondNs >= SecondNs - UpdateWindowNs;
                return (byte)(_ram[RegA] & ~UpdateInProgress | (updating ? UpdateInProgress : 0));
            case RegC:
                Advance();
                byte flags = (byte)(_ram[RegC] | ((_ram[RegC] & _ram[RegB] & AnyFlag) != 0 ? InterruptRequest : 0));
                _ram[RegC] = 0;
                Drive();
                return flags;
            default:
                return _ram[index];
        }
    }

    private byte ReadTime(RtcTime t, int index) => index switch
    {
        0 => Encode(t.Second),
        2 => Encode(t.Minute),
        4 => EncodeHour(t.Hour),
        6 => Encode(t.DayOfWeek),
        7 => Encode(t.Day),
        8 => Encode(t.Month),
        9 => Encode(t.Year % 100),
        _ => Encode(t.Year / 100),
    };

    private void WriteRegister(int index, byte value)
    {
        switch (index)
        {
            case 0 or 2 or 4 or 6 or 7 or 8 or 9 or Century:
                WriteTime(index, value);
                break;
            case RegA:
                Advance();
                ChangeHold(() => _ram[RegA] = (byte)(value & ~UpdateInProgress));
                _periodicBaseNs = _timers.NowNs;
                Drive();
                break;
            case RegB:
                Advance();
                // SET clears update interrupts.
                ChangeHold(() => _ram[RegB] = (byte)((value & Set) != 0 ? value & ~UpdateFlag : value));
                Drive();
                break;
            case RegC or RegD:
                break;
            case SecondsAlarm or MinutesAlarm or HoursAlarm:
                Advance();
                _ram[index] = value;
                Drive();
                break;
            default:
                _ram[index] = value;
                break;
        }
    }

    private void WriteTime(int index, byte value)
    {
        Advance();
        RtcTime t = Now;
        t = index switch
        {
            0 => t with { Second = Decode(value) },
            2 => t with { Minute = Decode(value) },
            4 => t with { Hour = DecodeHour(value) },
            6 => t with { DayOfWeek = Decode(value) },
            7 => t with { Day = Decode(value) },
            8 => t with { Month = Decode(value) },
            9 => t with { Year = t.Year / 100 * 100 + Decode(value) % 100 },
            _ => t with { Year = Decode(value) * 100 + t.Year % 100 },
        };
        if (Held)
            _held = t;
        else
            StartFrom(t, keepFraction: true);
        Drive();
    }

    /// <summary>Applies a register write that may stop or start the clock.</summary>
    private void ChangeHold(Action write)
    {
        bool was = Held;
        RtcTime now = Now;
        write();
        if (!was && Held)
            _held = now;
        else if (was && !Held)
            StartFrom(_held, keepFraction: false);
    }

    private void StartFrom(RtcTime t, bool keepFraction)
    {
        long now = _timers.NowNs, fraction = keepFraction ? (now + _offsetNs) % SecondNs : SecondNs / 2;
        _offsetNs = t.ToSeconds() * SecondNs + fraction - now;
        _seenSecond = SecondOf(now);
    }

    private byte Encode(int v) => (byte)((_ram[RegB] & Binary) != 0 ? v : v / 10 << 4 | v % 10);

    private int Decode(byte v) => (_ram[RegB] & Binary) != 0 ? v : (v >> 4) * 10 + (v & 15);

    private byte EncodeHour(int hour)
    {
        if ((_ram[RegB] & Hour24) != 0)
            return Encode(hour);
        return (byte)(Encode(hour % 12 == 0 ? 12 : hour % 12) | (hour >= 12 ? 0x80 : 0));
    }

    private int DecodeHour(byte v) => (_ram[RegB] & Hour24) != 0 ? Decode(v) : Decode((byte)(v & 0x7f)) % 12 + ((v & 0x80) != 0 ? 12 : 0);

    /// <summary>Sets the flags of what has happened since the last call.</summary>
    private void Advance()
    {
        long now = _timers.NowNs;
        if (!Held)
        {
            long second = SecondOf(now);
            if (second > _seenSecond)
            {
                _ram[RegC] |= UpdateFlag;
                if (AlarmMatches(_seenSecond + 1, second))
                    _ram[RegC] |= AlarmFlag;
            }
            _seenSecond = second;
        }
        long period = PeriodNs;
        if (period != 0 && now - _periodicBaseNs >= period)
        {
            _ram[RegC] |= PeriodicFlag;
            _periodicBaseNs += (now - _periodicBaseNs) / period * period;
        }
    }

    /// <summary>Whether the alarm matches in a range of seconds. Values 0xc0-0xff match always.</summary>
    private bool AlarmMatches(long from, long to)
    {
        for (long s = Math.Max(from, to - 86_399); s <= to; s++)
        {
            RtcTime t = RtcTime.FromSeconds(s);
            if (Matches(_ram[SecondsAlarm], Encode(t.Second)) && Matches(_ram[MinutesAlarm], Encode(t.Minute)) && Matches(_ram[HoursAlarm], EncodeHour(t.Hour)))
                return true;
        }
        return false;
    }

    private static bool Matches(byte alarm, byte value) => alarm >= 0xc0 || alarm == value;

    /// <summary>Nanoseconds between periodic edges, by the rate selection; 0: off.</summary>
    private long PeriodNs
    {
        get
        {
            int rate = _ram[RegA] & 15;
            if (rate == 0 || (_ram[RegA] & 0x60) == 0x60)
                return 0;
            int shift = rate <= 2 ? rate + 6 : rate - 1; // rates 1 and 2 repeat 8 and 9
            return (SecondNs << shift) / 32768;
        }
    }

    /// <summary>Drives the interrupt line from the flags and arms the timer for the next event that an interrupt is enabled for.</summary>
    private void Drive()
    {
        bool level = (_ram[RegC] & _ram[RegB] & AnyFlag) != 0;
        if (level != _level)
        {
            _level = level;
            _interrupt.Set(level);
        }
        long next = long.MaxValue, now = _timers.NowNs;
        if (!Held && (_ram[RegB] & (UpdateFlag | AlarmFlag)) != 0)
            next = (_seenSecond + 1) * SecondNs - _offsetNs;
        if ((_ram[RegB] & PeriodicFlag) != 0 && PeriodNs is not 0 and long period)
            next = Math.Min(next, _periodicBaseNs + period);
        if (next == long.MaxValue)
            _timers.Cancel(_timer);
        else
            _timers.Arm(_timer, Math.Max(next, now));
    }

    void ITimerCallback.TimerExpired(HostTimer timer, long nowNs)
    {
        using (_lock.Enter())
        {
            Advance();
            Drive();
        }
    }
}

/// <summary>Broken-down time of the clock chip; fields may hold whatever the guest wrote.</summary>
internal readonly record struct RtcTime(int Year, int Month, int Day, int DayOfWeek, int Hour, int Minute, int Second)
{
    internal static RtcTime FromSeconds(long seconds)
    {
        DateTime t = DateTime.UnixEpoch.AddSeconds(Math.Clamp(seconds, -62_135_596_800, 253_402_300_799));
        return new RtcTime(t.Year, t.Month, t.Day, (int)t.DayOfWeek + 1, t.Hour, t.Minute, t.Second);
    }

    /// <summary>Seconds since 1970; fields out of range carry over.</summary>
    internal long ToSeconds()
    {
        int month = Math.Clamp(Month, 1, 12), year = Math.Clamp(Year, 1, 9998);
        long day = (new DateTime(year, month, 1, 0, 0, 0, DateTimeKind.Utc) - DateTime.UnixEpoch).Days + Math.Clamp(Day, 1, 31) - 1;
        return (day * 24 + Hour) * 3600 + Minute * 60 + Second;
    }
}

using Ring3.Abi;

namespace Ring3.Irqchip;

/// <summary>One counter of an 8254, computed from the time of its last load. SPEC: 8254 data sheet. Not thread-safe.</summary>
internal sealed class PitChannel
{
    internal const long FrequencyHz = 1_193_182;
    private const byte Lsb = 1, Msb = 2, Word0 = 3, Word1 = 4;
    /// <summary>KVM: the mode before the first control word, as KVM_GET_PIT2 shows it. Counts like mode 2, drives OUT like mode 0.</summary>
    private const byte NoMode = 0xff;

    private uint _count = 0x10000;
    private ushort _latchedCount;
    private byte _statusLatch, _readState = Word0, _writeState = Word0, _writeLatch, _rwMode = Word0, _mode, _bcd, _gate;
    private bool _countLatched, _statusLatched, _nullCount = true;
    private long _loadTimeNs;

    /// <summary>When the gate stopped the count, or -1.</summary>
    private long _pausedNs = -1;

    internal int Mode => _mode;
    internal bool Gate => _gate != 0;

    /// <summary>The divisor: 1 to 65536.</summary>
    internal uint Count => _count;
    internal long LoadTimeNs { get => _loadTimeNs; set => _loadTimeNs = value; }

    /// <summary>Whether a count was loaded since the control word.</summary>
    internal bool Loaded => !_nullCount;

    internal void Reset(bool gate)
    {
        (_count, _mode, _bcd, _rwMode, _readState, _writeState) = (0x10000, NoMode, 0, Word0, Word0, Word0);
        (_countLatched, _statusLatched, _nullCount, _pausedNs) = (false, false, true, -1);
        _gate = gate ? (byte)1 : (byte)0;
        _loadTimeNs = 0;
    }

    /// <summary>Duration of one full count in nanoseconds.</summary>
    internal long PeriodNs => (long)((UInt128)_count * 1_000_000_000 / FrequencyHz);

    private ulong Ticks(long nowNs)
    {
        long elapsed = Math.Max(0, (_pausedNs >= 0 ? _pausedNs : nowNs) - _loadTimeNs);
        return (ulong)((UInt128)(ulong)elapsed * FrequencyHz / 1_000_000_000);
    }

    /// <summary>The current count, 16 bits.</summary>
    internal ushort CurrentCount(long nowNs)
    {
        ulong d = Ticks(nowNs);
        return (ushort)(_mode switch
        {
            0 or 1 or 4 or 5 => _count - d,
            3 => _count - 2 * d % _count,
            _ => _count - d % _count,
        });
    }

    /// <summary>The OUT pin.</summary>
    internal bool Out(long nowNs)
    {
        ulong d = Ticks(nowNs);
        if (_nullCount)
            return _mode is not (0 or NoMode);
        return _mode switch
        {
            0 or 1 or NoMode => d >= _count,
            // Low for the last cycle of each period only; the gate forces it high.
            2 => _gate == 0 || d % _count != _count - 1,
            3 => _gate == 0 || d % _count < (_count + 1) >> 1,
            _ => d != _count,
        };
    }

    /// <summary>Control word with a read/write mode for this channel.</summary>
    internal void WriteControl(byte value)
    {
        byte rw = (byte)(value >> 4 & 3), mode = (byte)(value >> 1 & 7);
        _rwMode = rw;
        _readState = _writeState = rw == 3 ? Word0 : rw;
        _mode = mode > 5 ? (byte)(mode & 3) : mode;
        _bcd = (byte)(value & 1);
        _countLatched = _statusLatched = false;
        _nullCount = true;
    }

    internal void LatchCount(long nowNs)
    {
        if (_countLatched)
            return;
        _latchedCount = ToGuest(CurrentCount(nowNs));
        _countLatched = true;
        _readState = _rwMode == 3 ? Word0 : _rwMode;
    }

    internal void LatchStatus(long nowNs)
    {
        if (_statusLatched)
            return;
        _statusLatch = (byte)((Out(nowNs) ? 0x80 : 0) | (_nullCount ? 0x40 : 0) | _rwMode << 4 | _mode << 1 | _bcd);
        _statusLatched = true;
    }

    /// <summary>Reads the data port.</summary>
    internal byte Read(long nowNs)
    {
        if (_statusLatched)
        {
            _statusLatched = false;
            return _statusLatch;
        }
        ushort value = _countLatched ? _latchedCount : ToGuest(CurrentCount(nowNs));
        switch (_readState)
        {
            case Msb:
                _countLatched = false;
                return (byte)(value >> 8);
            case Word0:
                _readState = Word1;
                return (byte)value;
            case Word1:
                _readState = Word0;
                _countLatched = false;
                return (byte)(value >> 8);
            default:
                _countLatched = false;
                return (byte)value;
        }
    }

    /// <summary>Writes the data port. True when a complete count was loaded.</summary>
    internal bool Write(byte value, long nowNs)
    {
        switch (_writeState)
        {
            case Msb:
                return Load((uint)value << 8, nowNs);
            case Word0:
                _writeLatch = value;
                _writeState = Word1;
                return false;
            case Word1:
                _writeState = Word0;
                return Load(_writeLatch | (uint)value << 8, nowNs);
            default:
                return Load(value, nowNs);
        }
    }

    private bool Load(uint value, long nowNs)
    {
        if (_bcd != 0)
            value = (value >> 12 & 15) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15);
        _count = value != 0 ? value : _bcd != 0 ? 10_000u : 0x10000u;
        _loadTimeNs = nowNs;
        _pausedNs = _gate == 0 && _mode is 0 or 4 ? nowNs : -1;
        _nullCount = false;
        return true;
    }

    private ushort ToGuest(ushort count) => _bcd == 0 ? count : (ushort)(count / 1000 % 10 << 12 | count / 100 % 10 << 8 | count / 10 % 10 << 4 | count % 10);

    /// <summary>Drives the gate input (channel 2: port 61h bit 0).</summary>
    internal void SetGate(bool gate, long nowNs)
    {
        bool was = _gate != 0;
        _gate = gate ? (byte)1 : (byte)0;
        if (was == gate)
            return;
        switch (_mode)
        {
            case 0 or 4 when gate && _pausedNs >= 0:
                _loadTimeNs += nowNs - _pausedNs;
                _pausedNs = -1;
                break;
            case 0 or 4 when !gate:
                _pausedNs = nowNs;
                break;
            case 1 or 2 or 3 or 5 when gate:
                _loadTimeNs = nowNs;
                break;
        }
    }

    internal kvm_pit_channel_state GetState() => new()
    {
        count = _count,
        latched_count = _latchedCount,
        count_latched = _countLatched ? _rwMode : (byte)0,
        status_latched = _statusLatched ? (byte)1 : (byte)0,
        status = _statusLatch,
        read_state = _readState,
        write_state = _writeState,
        write_latch = _writeLatch,
        rw_mode = _rwMode,
        mode = _mode,
        bcd = _bcd,
        gate = _gate,
        count_load_time = _loadTimeNs,
    };

    internal void SetState(in kvm_pit_channel_state s, long nowNs)
    {
        _count = s.count is 0 or > 0x10000 ? 0x10000 : s.count;
        _latchedCount = s.latched_count;
        _countLatched = s.count_latched != 0;
        _statusLatched = s.status_latched != 0;
        _statusLatch = s.status;
        _readState = s.read_state;
        _writeState = s.write_state;
        _writeLatch = s.write_latch;
        _rwMode = (byte)(s.rw_mode & 3);
        _mode = s.mode is > 5 and not NoMode ? (byte)(s.mode & 3) : s.mode;
        _bcd = (byte)(s.bcd & 1);
        _gate = (byte)(s.gate & 1);
        _loadTimeNs = nowNs;
        _pausedNs = -1;
        _nullCount = false;
    }
}

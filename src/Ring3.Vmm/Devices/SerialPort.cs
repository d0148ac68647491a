using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>Where a serial port's transmitted bytes go. Called under the port's lock; it may wait when the reader is slow.</summary>
public interface ISerialSink
{
    void Transmit(byte value);
}

/// <summary>
/// 16550A UART. Transmission takes no time: a written byte is in the sink when the write returns, and the transmitter is always empty. Received bytes wait in a
/// backlog behind the 16-byte FIFO, so that a fast host cannot overrun a slow guest; they enter the FIFO only while the guest listens (receive interrupts on
/// and let through by OUT2, or <see cref="PolledInput"/>), because drivers empty the FIFO when they probe and open a port. SPEC: National Semiconductor
/// PC16550D data sheet.
/// </summary>
public sealed class SerialPort(IInterruptLine interrupt, ISerialSink sink) : IBusDevice
{
    public const int Ports = 8;
    private const int FifoBytes = 16, QueueLimit = 1 << 16;
    private const byte IerReceive = 1, IerTransmit = 2, IerLine = 4, IerModem = 8;
    private const byte IirNone = 1, IirModem = 0, IirTransmit = 2, IirReceive = 4, IirLine = 6, IirTimeout = 12, IirFifo = 0xc0;
    private const byte LcrDivisor = 0x80, McrOut2 = 8, McrLoop = 0x10;
    private const byte LsrData = 1, LsrOverrun = 2, LsrBreak = 0x10, LsrTransmitEmpty = 0x60;
    private const byte MsrReady = 0xb0; // carrier, data set ready, clear to send

    private readonly RankedLock _lock = new(LockRank.SerialPort);
    private readonly ManualResetEventSlim _arrived = new(false);
    private readonly Queue<byte> _receive = new(), _backlog = new();
    private byte _ier, _fcr, _lcr = 3, _mcr, _lsrErrors, _scratch, _msrDelta, _msr = MsrReady;
    private ushort _divisor = 12;
    private bool _transmitPending, _level;

    /// <summary>The guest may poll for input without receive interrupts (boot sectors, simple kernels).</summary>
    public bool PolledInput { get; init; }

    /// <summary>Bytes accepted by <see cref="Receive"/> and not yet read by the guest.</summary>
    public int Pending
    {
        get { using (_lock.Enter()) return _receive.Count + _backlog.Count; }
    }

    /// <summary>Gives the guest input; returns how many bytes were taken (the rest does not fit now). Any thread.</summary>
    public int Receive(ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
        {
            int n = Math.Min(data.Length, QueueLimit - _backlog.Count);
            for (int i = 0; i < n; i++)
                _backlog.Enqueue(data[i]);
            _arrived.Set();
            Update();
            return n;
        }
    }

    /// <summary>Registers and input of a snapshot.</summary>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Value(ref _ier);
            state.Value(ref _fcr);
            state.Value(ref _lcr);
            state.Value(ref _mcr);
            state.Value(ref _lsrErrors);
            state.Value(ref _scratch);
            state.Value(ref _msrDelta);
            state.Value(ref _msr);
            state.Value(ref _divisor);
            state.Value(ref _transmitPending);
            foreach (byte b in state.Block([.. _receive]))
                _receive.Enqueue(b);
            foreach (byte b in state.Block([.. _backlog]))
                _backlog.Enqueue(b);
            Update();
        }
    }

    /// <summary>Byte of input that waits behind <paramref name="at"/> others, or -1. With <see cref="Discard"/> for firmware that reads the port on the guest's
    /// behalf.</summary>
    public int Peek(int at)
    {
        using (_lock.Enter())
            return at < _receive.Count ? _receive.ElementAt(at) : at - _receive.Count < _backlog.Count ? _backlog.ElementAt(at - _receive.Count) : -1;
    }

    /// <summary>Removes input that the guest shall not see any more.</summary>
    public void Discard(int bytes)
    {
        using (_lock.Enter())
        {
            for (; bytes > 0; bytes--)
            {
                if (!_receive.TryDequeue(out _))
                    _ = _backlog.TryDequeue(out _);
            }
            Update();
        }
    }

    /// <summary>Returns when there is input, at the latest after <paramref name="timeoutMs"/>.</summary>
    public void WaitForInput(int timeoutMs)
    {
        _arrived.Reset();
        if (Pending == 0)
            _arrived.Wait(timeoutMs);
    }

    public void Read(ulong offset, Span<byte> data)
    {
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length; i++)
                data[i] = offset + (ulong)i < Ports ? ReadRegister((int)offset + i) : (byte)0xff;
            Update();
        }
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length && offset + (ulong)i < Ports; i++)
                WriteRegister((int)offset + i, data[i]);
            Update();
        }
    }

    private bool DivisorAccess => (_lcr & LcrDivisor) != 0;

    private byte ReadRegister(int register)
    {
        switch (register)
        {
            case 0 when DivisorAccess: return (byte)_divisor;
            case 0: return _receive.TryDequeue(out byte b) ? b : (byte)0;
            case 1 when DivisorAccess: return (byte)(_divisor >> 8);
            case 1: return _ier;
            case 2:
                byte iir = Identify();
                if (iir == IirTransmit)
                    _transmitPending = false;
                return (byte)(iir | ((_fcr & 1) != 0 ? IirFifo : 0));
            case 3: return _lcr;
            case 4: return _mcr;
            case 5:
                byte lsr = (byte)(LsrTransmitEmpty | _lsrErrors | (_receive.Count != 0 ? LsrData : 0));
                _lsrErrors = 0;
                return lsr;
            case 6:
                byte msr = (byte)(_msr | _msrDelta);
                _msrDelta = 0;
                return msr;
            default: return _scratch;
        }
    }

    private void WriteRegister(int register, byte value)
    {
        switch (register)
        {
            case 0 when DivisorAccess: _divisor = (ushort)(_divisor & 0xff00 | value); break;
            case 0: Transmit(value); break;
            case 1 when DivisorAccess: _divisor = (ushort)(_divisor & 0xff | value << 8); break;
            case 1:
                // Enabling the transmit interrupt while the transmitter is empty raises it at once: drivers rely on it.
                if ((value & IerTransmit) != 0 && (_ier & IerTransmit) == 0)
                    _transmitPending = true;
                _ier = (byte)(value & 15);
                break;
            case 2:
                if ((value & 2) != 0 || ((value ^ _fcr) & 1) != 0)
                    ClearReceived();
                _fcr = (byte)(value & 0xc9);
                break;
            case 3: _lcr = value; break;
            case 4: WriteModemControl(value); break;
            case 7: _scratch = value; break;
        }
    }

    /// <summary>Empties the FIFO. Input of the host goes back to the backlog: drivers reset the FIFO while they open the port, and the sender cannot send
    /// again.</summary>
    private void ClearReceived()
    {
        if ((_mcr & McrLoop) == 0)
        {
            for (int n = _backlog.Count; n > 0; n--)
                _receive.Enqueue(_backlog.Dequeue());
            foreach (byte b in _receive)
                _backlog.Enqueue(b);
        }
        _receive.Clear();
    }

    private void Transmit(byte value)
    {
        if ((_mcr & McrLoop) == 0)
            sink.Transmit(value);
        else if (_receive.Count < FifoBytes)
            _receive.Enqueue(value);
        else
            _lsrErrors |= LsrOverrun;
        _transmitPending = true;
    }

    /// <summary>In loopback mode the four modem outputs drive the four modem inputs.</summary>
    private void WriteModemControl(byte value)
    {
        _mcr = (byte)(value & 0x1f);
        byte msr = MsrReady;
        if ((value & McrLoop) != 0)
            msr = (byte)((value & 2) << 3 | (value & 1) << 5 | (value & 4) << 4 | (value & 8) << 4);
        byte changed = (byte)(msr ^ _msr);
        _msrDelta |= (byte)(changed >> 4 & 0xb | (changed & _msr & 0x40) >> 4); // the ring indicator counts its trailing edge only
        _msr = msr;
    }

    /// <summary>Highest-priority enabled source.</summary>
    private byte Identify()
    {
        if ((_ier & IerLine) != 0 && (_lsrErrors & (LsrOverrun | LsrBreak)) != 0)
            return IirLine;
        if ((_ier & IerReceive) != 0 && _receive.Count != 0)
            return (_fcr & 1) != 0 && _receive.Count < TriggerLevel ? IirTimeout : IirReceive;
        if ((_ier & IerTransmit) != 0 && _transmitPending)
            return IirTransmit;
        if ((_ier & IerModem) != 0 && _msrDelta != 0)
            return IirModem;
        return IirNone;
    }

    private int TriggerLevel => (_fcr >> 6) switch { 0 => 1, 1 => 4, 2 => 8, _ => 14 };

    private void Update()
    {
        bool interrupts = (_mcr & (McrOut2 | McrLoop)) == McrOut2;
        bool listening = (_ier & IerReceive) != 0 && interrupts || PolledInput && (_mcr & McrLoop) == 0;
        while (listening && _receive.Count < FifoBytes && _backlog.TryDequeue(out byte b))
            _receive.Enqueue(b);
        bool level = interrupts && Identify() != IirNone;
        if (level == _level)
            return;
        _level = level;
        interrupt.Set(level);
    }
}

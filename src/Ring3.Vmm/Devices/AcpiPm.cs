using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>
/// ACPI fixed hardware: PM1 event and control blocks, the 3.579545 MHz PM timer, and a GPE block with two events: the machine is another one than
/// before, and PCI devices come or go. Writing SLP_EN with the S5 type powers off.
/// SPEC: ACPI 6.4, "ACPI Hardware Specification".
/// </summary>
public sealed class AcpiPm(IMachineControl machine, IInterruptLine sci) : IBusDevice
{
    /// <summary>First port; PM1 status +0, enable +2, control +4, timer +8, GPE0 status +0x20, enable +0x22.</summary>
    public const ushort Base = 0x600;
    public const int Ports = 0x40, ControlOffset = 4, TimerOffset = 8, GpeOffset = 0x20;
    /// <summary>SLP_TYP of S5 in the DSDT.</summary>
    public const int S5Type = 5;
    /// <summary>Numbers of the events in the GPE block.</summary>
    public const int GenerationEvent = 5, HotplugEvent = 6;
    private const ushort PowerButton = 1 << 8, SleepEnable = 1 << 13, SciEnable = 1;
    private const long TimerHz = 3_579_545;

    private readonly RankedLock _lock = new(LockRank.AcpiPm);
    private long _start = HostClock.MonotonicNs();
    private ushort _status, _enable, _control = SciEnable, _gpeStatus, _gpeEnable;

    /// <summary>Presses the power button: an operating system that handles it shuts down.</summary>
    public void PressPowerButton()
    {
        using (_lock.Enter())
        {
            _status |= PowerButton;
            Update();
        }
    }

    /// <summary>The machine's generation has changed: an operating system looks at the identifier (<see cref="AcpiTables"/>).</summary>
    public void NotifyGeneration() => Raise(GenerationEvent);

    /// <summary>PCI devices have come, or are to go: an operating system looks at <see cref="PciHotplug"/>.</summary>
    public void NotifyHotplug() => Raise(HotplugEvent);

    private void Raise(int number)
    {
        using (_lock.Enter())
        {
            _gpeStatus |= (ushort)(1 << number);
            Update();
        }
    }

    /// <summary>Registers of a snapshot, and the timer's count.</summary>
    public void Transfer(StateTransfer state)
    {
        using (_lock.Enter())
        {
            state.Section("acpi");
            state.Value(ref _status);
            state.Value(ref _enable);
            state.Value(ref _control);
            state.Value(ref _gpeStatus);
            state.Value(ref _gpeEnable);
            _start = HostClock.MonotonicNs() - state.Keep(HostClock.MonotonicNs() - _start);
            Update();
        }
    }

    public void Read(ulong offset, Span<byte> data)
    {
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length; i++)
            {
                ulong at = offset + (ulong)i;
                data[i] = at switch
                {
                    < 2 => (byte)(_status >> (int)(8 * at)),
                    < 4 => (byte)(_enable >> (int)(8 * (at - 2))),
                    < 6 => (byte)(_control >> (int)(8 * (at - ControlOffset))),
                    >= TimerOffset and < TimerOffset + 4 => (byte)(Timer >> (int)(8 * (at - TimerOffset))),
                    GpeOffset or GpeOffset + 1 => (byte)(_gpeStatus >> (int)(8 * (at - GpeOffset))),
                    GpeOffset + 2 or GpeOffset + 3 => (byte)(_gpeEnable >> (int)(8 * (at - GpeOffset - 2))),
                    _ => 0,
                };
            }
        }
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        using (_lock.Enter())
        {
            for (int i = 0; i < data.Length; i++)
                WriteByte(offset + (ulong)i, data[i]);
            Update();
        }
    }

    /// <summary>24-bit counter.</summary>
    private uint Timer => (uint)((UInt128)(ulong)(HostClock.MonotonicNs() - _start) * TimerHz / 1_000_000_000) & 0xff_ffff;

    private void WriteByte(ulong at, byte value)
    {
        int shift = (int)(8 * (at & 1));
        switch (at)
        {
            case < 2: _status &= (ushort)~(value << shift); break;
            case < 4: Put(ref _enable, value, shift); break;
            case < 6:
                Put(ref _control, value, shift);
                if ((_control & SleepEnable) != 0 && (_control >> 10 & 7) == S5Type)
                    machine.End(MachineEnd.PowerOff);
                _control = (ushort)(_control & ~SleepEnable | SciEnable);
                break;
            case GpeOffset or GpeOffset + 1: _gpeStatus &= (ushort)~(value << shift); break;
            case GpeOffset + 2 or GpeOffset + 3: Put(ref _gpeEnable, value, shift); break;
        }
    }

    private static void Put(ref ushort register, byte value, int shift) => register = (ushort)(register & ~(0xff << shift) | value << shift);

    private void Update() => sci.Set((_status & _enable & PowerButton) != 0 || (_gpeStatus & _gpeEnable) != 0);
}

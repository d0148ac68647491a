using Ring3.Host;
using Ring3.Kvm;

namespace Ring3.Vmm;

/// <summary>Port 0x92, "fast A20 and reset": bit 0 resets the machine on its rising edge, bit 1 is the A20 gate (always open here, but remembered).</summary>
public sealed class Port92(IMachineControl machine) : IBusDevice
{
    private byte _value = 2;

    /// <summary>The register of a snapshot.</summary>
    public void Transfer(StateTransfer state) => state.Value(ref _value);

    public void Read(ulong offset, Span<byte> data)
    {
        data.Fill(0xff);
        data[0] = Volatile.Read(ref _value);
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        byte old = Interlocked.Exchange(ref _value, (byte)(data[0] & ~1));
        if ((data[0] & 1) != 0 && (old & 1) == 0)
            machine.End(MachineEnd.Reset, detail: "port 0x92");
    }
}

/// <summary>Port 0xcf9, the chipset's reset control: bit 2 resets on its rising edge. Also the ACPI reset register.</summary>
public sealed class ResetControl(IMachineControl machine) : IBusDevice
{
    public const ushort Port = 0xcf9;
    /// <summary>Value that the FADT gives to operating systems: full reset.</summary>
    public const byte ResetValue = 6;
    private byte _value;

    public void Read(ulong offset, Span<byte> data)
    {
        data.Fill(0xff);
        data[0] = Volatile.Read(ref _value);
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        byte old = Interlocked.Exchange(ref _value, data[0]);
        if ((data[0] & 4) != 0 && (old & 4) == 0)
            machine.End(MachineEnd.Reset, detail: "port 0xcf9");
    }
}

/// <summary>Port 0xf4: ends the machine; the process exits with value * 2 + 1 (QEMU's isa-debug-exit).</summary>
public sealed class DebugExit(IMachineControl machine) : IBusDevice
{
    public const ushort Port = 0xf4;

    public void Read(ulong offset, Span<byte> data) => data.Clear();

    public void Write(ulong offset, ReadOnlySpan<byte> data) => machine.End(MachineEnd.DebugExit, (int)BusData.Get(data));
}

/// <summary>Port 0x80, the POST code: remembered for diagnosis; also the port that operating systems write to pass a microsecond.</summary>
public sealed class PostCode : IBusDevice
{
    private byte _value;

    /// <summary>Last code written.</summary>
    public byte Value => Volatile.Read(ref _value);

    public void Read(ulong offset, Span<byte> data)
    {
        data.Fill(0xff);
        data[0] = Value;
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data) => Volatile.Write(ref _value, data[0]);
}

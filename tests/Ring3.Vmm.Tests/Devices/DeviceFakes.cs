using Ring3.Kvm;
using Ring3.Sync;

namespace Ring3.Vmm.Tests.Devices;

/// <summary>Records the level of an interrupt line and counts its rising edges.</summary>
internal sealed class FakeLine : IInterruptLine
{
    internal bool Level;
    internal int Edges;

    public void Set(bool level)
    {
        if (level && !Level)
            Edges++;
        Level = level;
    }
}

internal sealed class FakeMachine : IMachineControl
{
    internal (MachineEnd End, int Value)? Ended;
    public void End(MachineEnd end, int value = 0, string? detail = null) => Ended ??= (end, value);
}

internal sealed class FakeSerial : ISerialSink
{
    internal readonly List<byte> Bytes = [];
    public void Transmit(byte value) => Bytes.Add(value);
}

internal sealed class FakeMemory(int bytes) : IDmaMemory
{
    internal readonly byte[] Bytes = new byte[bytes];

    public bool TryRead(ulong gpa, Span<byte> data)
    {
        if (gpa > (ulong)Bytes.Length || (ulong)data.Length > (ulong)Bytes.Length - gpa)
            return false;
        Bytes.AsSpan((int)gpa, data.Length).CopyTo(data);
        return true;
    }

    public bool TryWrite(ulong gpa, ReadOnlySpan<byte> data)
    {
        if (gpa > (ulong)Bytes.Length || (ulong)data.Length > (ulong)Bytes.Length - gpa)
            return false;
        data.CopyTo(Bytes.AsSpan((int)gpa));
        return true;
    }
}

internal static class Access
{
    internal static byte In8(this IBusDevice device, ulong offset) => (byte)In(device, offset, 1);
    internal static uint In(this IBusDevice device, ulong offset, int bytes)
    {
        Span<byte> data = stackalloc byte[bytes];
        device.Read(offset, data);
        return (uint)BusData.Get(data);
    }

    internal static void Out8(this IBusDevice device, ulong offset, byte value) => device.Write(offset, [value]);

    internal static void Out(this IBusDevice device, ulong offset, int bytes, ulong value)
    {
        Span<byte> data = stackalloc byte[bytes];
        BusData.Set(data, value);
        device.Write(offset, data);
    }
}

using Ring3.Vmm.Bus;

namespace Ring3.Vmm.Devices;

/// <summary>
/// A port that prints: 0xe9 (Bochs) or 0x402 (SeaBIOS, OVMF). A read returns 0xe9, by which firmware detects it.
/// </summary>
public sealed class DebugConsole(ISerialSink sink) : IBusDevice
{
    public const ushort BochsPort = 0xe9, FirmwarePort = 0x402;
    private const byte Signature = 0xe9;
    private readonly Lock _lock = new();

    public void Read(ulong offset, Span<byte> data)
    {
        data.Fill(0xff);
        data[0] = Signature;
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        lock (_lock)
            sink.Transmit(data[0]);
    }
}

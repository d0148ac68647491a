using Ring3.Host;
using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>Two ports of the PIC pair: a chip's, or its ELCR. Wider accesses than a byte are not decoded by the chip.</summary>
internal sealed class PicPorts(PicPair pic, ushort first) : IBusDevice
{
    public static void AddTo(IoBus ports, PicPair pic)
    {
        foreach (ushort first in (ReadOnlySpan<ushort>)[0x20, 0xa0, 0x4d0])
            ports.Add(first, 2, new PicPorts(pic, first));
    }

    public void Read(ulong offset, Span<byte> data)
    {
        data.Clear();
        if (data.Length == 1)
            data[0] = pic.Read((ushort)(first + offset));
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data)
    {
        if (data.Length == 1)
            pic.Write((ushort)(first + offset), data[0]);
    }
}

/// <summary>The PIT's ports 0x40-0x43, or 0x61 (speaker, channel 2 gate).</summary>
internal sealed class PitPorts(Pit pit, ushort first) : IBusDevice
{
    private const ushort Counters = 0x40, Speaker = 0x61;

    public static void AddTo(IoBus ports, Pit pit, bool speaker)
    {
        ports.Add(Counters, 4, new PitPorts(pit, Counters));
        if (speaker)
            ports.Add(Speaker, 1, new PitPorts(pit, Speaker));
    }

    public void Read(ulong offset, Span<byte> data)
    {
        data.Clear();
        data[0] = pit.Read((ushort)(first + offset));
    }

    public void Write(ulong offset, ReadOnlySpan<byte> data) => pit.Write((ushort)(first + offset), data[0]);
}

/// <summary>The I/O APIC's register window, wherever the client has put it.</summary>
internal sealed class IoapicMmio : IBusDevice
{
    private readonly RankedLock _lock = new(LockRank.IoapicMmio);
    private readonly IoBus _mmio;
    private readonly Ioapic _ioapic;

    public IoapicMmio(IoBus mmio, Ioapic ioapic)
    {
        (_mmio, _ioapic) = (mmio, ioapic);
        Place();
    }

    /// <summary>After a change of its base address.</summary>
    public void Place()
    {
        using (_lock.Enter())
            _mmio.Move(this, _ioapic.BaseAddress, Ioapic.MmioSize);
    }

    public void Read(ulong offset, Span<byte> data) => _ioapic.MmioRead((int)offset, data);

    public void Write(ulong offset, ReadOnlySpan<byte> data) => _ioapic.MmioWrite((int)offset, data);
}

using Ring3.Irqchip;

namespace Ring3.Kvm;

/// <summary>A device in the hypervisor that has registers in guest-physical memory. Any vCPU thread.</summary>
internal interface IMmioDevice
{
    /// <summary>False: the access is not this device's.</summary>
    bool Read(ulong gpa, Span<byte> data);
    bool Write(ulong gpa, ReadOnlySpan<byte> data);
}

/// <summary>Memory-mapped devices of the hypervisor besides the local APICs.</summary>
internal sealed class MmioBus
{
    private readonly Lock _lock = new();
    private IMmioDevice[] _devices = [];

    public void Add(IMmioDevice device)
    {
        lock (_lock)
            Volatile.Write(ref _devices, [.. _devices, device]);
    }

    public void Remove(IMmioDevice device)
    {
        lock (_lock)
            Volatile.Write(ref _devices, Array.FindAll(_devices, d => d != device));
    }

    public bool TryRead(ulong gpa, Span<byte> data)
    {
        foreach (IMmioDevice d in Volatile.Read(ref _devices))
            if (d.Read(gpa, data))
                return true;
        return false;
    }

    public bool TryWrite(ulong gpa, ReadOnlySpan<byte> data)
    {
        foreach (IMmioDevice d in Volatile.Read(ref _devices))
            if (d.Write(gpa, data))
                return true;
        return false;
    }
}

/// <summary>The I/O APIC's register window.</summary>
internal sealed class IoapicMmio(Ioapic ioapic) : IMmioDevice
{
    public bool Read(ulong gpa, Span<byte> data)
    {
        if (!ioapic.ClaimsMmio(gpa))
            return false;
        ioapic.MmioRead((int)(gpa - ioapic.BaseAddress), data);
        return true;
    }

    public bool Write(ulong gpa, ReadOnlySpan<byte> data)
    {
        if (!ioapic.ClaimsMmio(gpa))
            return false;
        ioapic.MmioWrite((int)(gpa - ioapic.BaseAddress), data);
        return true;
    }
}

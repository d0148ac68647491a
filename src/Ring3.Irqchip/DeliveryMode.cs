using System.Numerics;

namespace Ring3.Irqchip;

/// <summary>APIC delivery modes as encoded in ICR, LVT, redirection entries and MSI data bits 10:8. SPEC: SDM volume 3, "Interrupt Command Register
/// (ICR)".</summary>
public enum DeliveryMode : byte { Fixed = 0, LowestPriority = 1, Smi = 2, RemoteRead = 3, Nmi = 4, Init = 5, Startup = 6, ExtInt = 7 }

/// <summary>Destination shorthand of an IPI, ICR bits 19:18.</summary>
public enum DestinationShorthand : byte { None = 0, Self = 1, AllIncludingSelf = 2, AllExcludingSelf = 3 }

/// <summary>A message on the APIC bus.</summary>
public readonly record struct LapicInterrupt
{
    public byte Vector { get; init; }
    public DeliveryMode Mode { get; init; }
    public DestinationShorthand Shorthand { get; init; }
    /// <summary>Logical destination mode; else physical.</summary>
    public bool Logical { get; init; }
    /// <summary>Level-triggered; else edge.</summary>
    public bool Level { get; init; }
    /// <summary>False only for a level de-assert, which is accepted and ignored.</summary>
    public bool Assert { get; init; }
    /// <summary>MSI redirection hint: deliver to one processor of the set.</summary>
    public bool RedirectionHint { get; init; }
    /// <summary>Physical APIC id or logical destination (8 bits, or 32 bits in x2APIC format).</summary>
    public uint Dest { get; init; }

    /// <summary>Whether one processor of the destination set is to be chosen.</summary>
    public bool LowestPriority => Mode == DeliveryMode.LowestPriority || RedirectionHint;
}

/// <summary>Records which vCPUs accepted an interrupt, and with which vector.</summary>
public sealed class DeliveryMap(int maxVcpus)
{
    private readonly ulong[] _bits = new ulong[(maxVcpus + 63) / 64];
    private readonly byte[] _vectors = new byte[maxVcpus];

    public void Set(int vcpuIndex, byte vector)
    {
        _bits[vcpuIndex >> 6] |= 1UL << (vcpuIndex & 63);
        _vectors[vcpuIndex] = vector;
    }

    public bool Contains(int vcpuIndex, byte vector) => (_bits[vcpuIndex >> 6] >> (vcpuIndex & 63) & 1) != 0 && _vectors[vcpuIndex] == vector;

    /// <summary>Forgets the vCPU; true if it was present with this vector.</summary>
    public bool Remove(int vcpuIndex, byte vector)
    {
        bool present = Contains(vcpuIndex, vector);
        if (present)
            _bits[vcpuIndex >> 6] &= ~(1UL << (vcpuIndex & 63));
        return present;
    }

    /// <summary>Adds the vectors of all present vCPUs to a set.</summary>
    internal void AddVectorsTo(ref Bits256 vectors)
    {
        for (int word = 0; word < _bits.Length; word++)
            for (ulong rest = _bits[word]; rest != 0; rest &= rest - 1)
                vectors.Set(_vectors[word * 64 + BitOperations.TrailingZeroCount(rest)]);
    }

    public void Clear() => Array.Clear(_bits);
}

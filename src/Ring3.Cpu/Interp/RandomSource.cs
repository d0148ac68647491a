using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>What RDRAND and RDSEED give.</summary>
/// <remarks>SAFETY: a span over one local number.</remarks>
internal sealed unsafe class RandomSource
{
    private SeededRandom? _seeded;

    /// <summary>Makes RDRAND and RDSEED repeatable.</summary>
    public void Seed(ulong seed) => _seeded = new SeededRandom(seed);

    /// <summary>Next value of RDRAND: the host's generator, or a SplitMix64 sequence when seeded.</summary>
    internal ulong Next()
    {
        if (_seeded is { } random)
        {
            ulong next = random.Next();
            _seeded = random;
            return next;
        }
        ulong value;
        HostRandom.Fill(new Span<byte>(&value, sizeof(ulong)));
        return value;
    }
}

using System.Security.Cryptography;

namespace Ring3.Cpu;

/// <summary>What RDRAND and RDSEED give.</summary>
/// <remarks>SAFETY: a span over one local number.</remarks>
internal sealed unsafe class RandomSource
{
    private ulong _state;

    private bool _seeded;

    /// <summary>Makes RDRAND and RDSEED repeatable.</summary>
    public void Seed(ulong seed)
    {
        _state = seed;
        _seeded = true;
    }

    /// <summary>Next value of RDRAND: the host's generator, or a SplitMix64 sequence when seeded.</summary>
    internal ulong Next()
    {
        ulong value;
        if (!_seeded)
        {
            RandomNumberGenerator.Fill(new Span<byte>(&value, sizeof(ulong)));
            return value;
        }
        value = _state += 0x9e3779b97f4a7c15;
        value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
        value = (value ^ value >> 27) * 0x94d049bb133111eb;
        return value ^ value >> 31;
    }
}

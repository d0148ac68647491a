using System.Numerics;
using System.Runtime.CompilerServices;

namespace Ring3.Differential;

/// <summary>xoshiro256**: small, seedable, the same everywhere. A batch has its own, so that any batch can be repeated alone.</summary>
internal struct FuzzRandom
{
    private ulong _a, _b, _c, _d;

    internal FuzzRandom(ulong seed)
    {
        _a = Mix(ref seed);
        _b = Mix(ref seed);
        _c = Mix(ref seed);
        _d = Mix(ref seed);
    }

    private static ulong Mix(ref ulong x)
    {
        ulong z = x += 0x9e3779b97f4a7c15;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
        z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
        return z ^ (z >> 31);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal ulong Next()
    {
        ulong result = BitOperations.RotateLeft(_b * 5, 7) * 9, t = _b << 17;
        _c ^= _a;
        _d ^= _b;
        _b ^= _c;
        _a ^= _d;
        _c ^= t;
        _d = BitOperations.RotateLeft(_d, 45);
        return result;
    }

    /// <summary>Uniform in [0, n).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal int Below(int n) => (int)((Next() >> 32) * (ulong)n >> 32);

    /// <summary>True in <paramref name="percent"/> of the calls.</summary>
    internal bool Chance(int percent) => Below(100) < percent;

    internal T Pick<T>(ReadOnlySpan<T> values) => values[Below(values.Length)];
}

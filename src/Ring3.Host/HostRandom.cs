using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>The kernel's random numbers. The runtime's own are OpenSSL's, which a minimal system does not have.</summary>
/// <remarks>SAFETY: the kernel writes into the span's own memory, which is pinned for the call.</remarks>
public static class HostRandom
{
    /// <exception cref="HostCallException">The kernel has no random numbers, or they are refused by a filter.</exception>
    public static unsafe void Fill(Span<byte> bytes)
    {
        while (!bytes.IsEmpty)
        {
            nint n;
            fixed (byte* p = bytes)
                n = Libc.getrandom(p, (nuint)bytes.Length, 0);
            if (n > 0)
                bytes = bytes[(int)n..];
            else if (Marshal.GetLastPInvokeError() != Libc.EINTR)
                throw new HostCallException("getrandom");
        }
    }
}

/// <summary>A repeatable sequence of a seed: SplitMix64.</summary>
public struct SeededRandom(ulong seed)
{
    private ulong _state = seed;

    /// <summary>The sequence's next value.</summary>
    public ulong Next()
    {
        ulong value = _state += 0x9e3779b97f4a7c15;
        value = (value ^ value >> 30) * 0xbf58476d1ce4e5b9;
        value = (value ^ value >> 27) * 0x94d049bb133111eb;
        return value ^ value >> 31;
    }

    /// <summary>The next values as bytes; what is left of the last one is lost.</summary>
    public void Fill(Span<byte> bytes)
    {
        while (!bytes.IsEmpty)
        {
            ulong value = Next();
            int n = Math.Min(sizeof(ulong), bytes.Length);
            MemoryMarshal.AsBytes(new ReadOnlySpan<ulong>(ref value))[..n].CopyTo(bytes);
            bytes = bytes[n..];
        }
    }
}

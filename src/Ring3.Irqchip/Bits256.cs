using System.Numerics;
using System.Runtime.CompilerServices;

namespace Ring3.Irqchip;

/// <summary>A set of 256 vectors. Methods named Atomic may race with each other; the others belong to the owner.</summary>
[InlineArray(4)]
public struct Bits256
{
    private ulong _word0;

    /// <summary>Sets the bit; true if it was clear. A full barrier.</summary>
    public bool SetAtomic(int bit) => (Interlocked.Or(ref this[bit >> 6], 1UL << (bit & 63)) & 1UL << (bit & 63)) == 0;

    /// <summary>Clears the bit. A full barrier.</summary>
    public void ClearAtomic(int bit) => Interlocked.And(ref this[bit >> 6], ~(1UL << (bit & 63)));

    public void Set(int bit) => this[bit >> 6] |= 1UL << (bit & 63);
    public void Clear(int bit) => this[bit >> 6] &= ~(1UL << (bit & 63));

    /// <summary>Tests one bit with an acquiring load.</summary>
    public bool Test(int bit) => (Volatile.Read(ref this[bit >> 6]) >> (bit & 63) & 1) != 0;

    /// <summary>The highest bit that is set, or -1.</summary>
    public int Highest()
    {
        for (int i = 3; i >= 0; i--)
        {
            ulong w = Volatile.Read(ref this[i]);
            if (w != 0)
                return i * 64 + 63 - BitOperations.LeadingZeroCount(w);
        }
        return -1;
    }

    public void ClearAll() => this = default;

    /// <summary>32-bit word <paramref name="i"/> (0-7), as in the registers ISR, TMR and IRR.</summary>
    public uint Word(int i) => (uint)(Volatile.Read(ref this[i >> 1]) >> ((i & 1) * 32));

    public void SetWord(int i, uint value)
    {
        int shift = (i & 1) * 32;
        this[i >> 1] = this[i >> 1] & ~(0xffff_ffffUL << shift) | (ulong)value << shift;
    }
}

namespace Ring3.Cpu;

/// <summary>What a locked access does to its operand.</summary>
internal interface ISplitChange
{
    /// <summary>
    /// The result depends on every bit of the operand, and nothing is written unless <see cref="Apply"/> says so. False: no bit of the result depends on a
    /// higher bit of the operand.
    /// </summary>
    static abstract bool IsComparison { get; }

    /// <summary>
    /// The new value of the operand; bits above its width are ignored. False: it stays. Called more than once when the owner's threads write to the operand;
    /// the last call counts.
    /// </summary>
    bool Apply(ulong old, out ulong value);
}

/// <summary>
/// An operand of 2 to 8 bytes on both sides of the end of a cache line, as the two aligned words that hold it. Each is changed by a compare-exchange of its
/// own, so the owner's threads never meet a torn or lost word;
/// the machine's processors never see one half without the other, because the bus is taken.
/// </summary>
/// <remarks>
/// SAFETY: both words lie in pages that the access has translated for writing; a line's first and last eight bytes are in the page of any other of its bytes.
/// </remarks>
internal readonly unsafe ref struct SplitAccess(byte* low, byte* high, int lowBytes, int size)
{
    private readonly ulong* _low = (ulong*)(low + lowBytes - 8), _high = (ulong*)high;
    private readonly int _lowBits = 8 * lowBytes;
    private readonly ulong _highMask = (1UL << 8 * (size - lowBytes)) - 1;

    private ulong Join(ulong lowWord, ulong highWord) => lowWord >> 64 - _lowBits | (highWord & _highMask) << _lowBits;
    private ulong WithLow(ulong word, ulong value) => word & ulong.MaxValue >> _lowBits | value << 64 - _lowBits;
    private ulong WithHigh(ulong word, ulong value) => word & ~_highMask | value >> _lowBits & _highMask;

    /// <summary>Changes the operand and returns what it was. The bus is taken.</summary>
    public ulong Change<F>(ref F change) where F : struct, ISplitChange => F.IsComparison ? Compare(ref change) : Compute(ref change);

    private ulong Compute<F>(ref F change) where F : struct, ISplitChange
    {
        // Host memory that is not there is found before anything is written.
        ulong high = Interlocked.CompareExchange(ref *_high, 0, 0), low = Volatile.Read(ref *_low);
        while (true)
        {
            change.Apply(Join(low, high), out ulong value);
            ulong seen = Interlocked.CompareExchange(ref *_low, WithLow(low, value), low);
            if (seen == low)
                break;
            low = seen;
        }
        // The lower half is written. What the upper half becomes follows from it and from what the upper half is now.
        while (true)
        {
            change.Apply(Join(low, high), out ulong value);
            ulong seen = Interlocked.CompareExchange(ref *_high, WithHigh(high, value), high);
            if (seen == high)
                return Join(low, high);
            high = seen;
        }
    }

    private ulong Compare<F>(ref F change) where F : struct, ISplitChange
    {
        while (true)
        {
            ulong high = Interlocked.CompareExchange(ref *_high, 0, 0), low = Interlocked.CompareExchange(ref *_low, 0, 0), old = Join(low, high);
            if (!change.Apply(old, out ulong value))
                return old;
            ulong written = WithLow(low, value);
            if (Interlocked.CompareExchange(ref *_low, written, low) != low)
                continue;
            if (Interlocked.CompareExchange(ref *_high, WithHigh(high, value), high) == high)
                return old;
            // A thread of the owner has written to the upper half meanwhile: the comparison is made again.
            TakeBack(written, old);
        }
    }

    /// <summary>
    /// Makes the lower half that of <paramref name="old"/> again, whatever has been written beside it. If a thread of the owner has built on it, that stays.
    /// </summary>
    private void TakeBack(ulong written, ulong old)
    {
        for (ulong word = written; word >> 64 - _lowBits == written >> 64 - _lowBits;)
        {
            ulong seen = Interlocked.CompareExchange(ref *_low, WithLow(word, old), word);
            if (seen == word)
                return;
            word = seen;
        }
    }
}

namespace Ring3.Mmu;

/// <summary>A bit for each page of a range, in the caller's memory.</summary>
internal static class PageBitmap
{
    /// <summary>Sets bit <paramref name="first"/> + n for each bit n of <paramref name="bits"/>.</summary>
    public static void Or(Span<ulong> bitmap, ulong first, ulong bits)
    {
        int word = (int)(first >> 6), shift = (int)(first & 63);
        bitmap[word] |= bits << shift;
        if (shift != 0 && bits >> (64 - shift) is var rest && rest != 0)
            bitmap[word + 1] |= rest;
    }

    /// <summary>Sets the bits [first, end).</summary>
    public static void SetRange(Span<ulong> bitmap, ulong first, ulong end)
    {
        while (first < end)
        {
            int n = (int)Math.Min(64 - (first & 63), end - first);
            bitmap[(int)(first >> 6)] |= ulong.MaxValue >> (64 - n) << (int)(first & 63);
            first += (ulong)n;
        }
    }
}

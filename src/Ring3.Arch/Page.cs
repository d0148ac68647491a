namespace Ring3.Arch;

/// <summary>x86 page geometry.</summary>
public static class Page
{
    public const int Shift = 12;
    public const ulong Size = 1UL << Shift, OffsetMask = Size - 1, Mask = ~OffsetMask;
    public const ulong Size2M = 1UL << 21, Size1G = 1UL << 30;
}

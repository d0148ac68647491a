namespace Ring3.Arch;

/// <summary>x86 page geometry.</summary>
public static class Page
{
    public const int Shift = 12;
    public const ulong Size = 1UL << Shift, OffsetMask = Size - 1, Mask = ~OffsetMask;
    public const ulong Size2M = 1UL << 21, Size1G = 1UL << 30;
}

/// <summary>Guest physical address, in bytes.</summary>
public readonly record struct Gpa(ulong Value)
{
    public Gfn Gfn => new(Value >> Page.Shift);
    public override string ToString() => $"gpa 0x{Value:x}";
}

/// <summary>Guest frame number: guest physical address in pages.</summary>
public readonly record struct Gfn(ulong Value)
{
    public Gpa Gpa => new(Value << Page.Shift);
    public override string ToString() => $"gfn 0x{Value:x}";
}

/// <summary>Host virtual address, in bytes.</summary>
public readonly record struct Hva(ulong Value)
{
    public override string ToString() => $"hva 0x{Value:x}";
}

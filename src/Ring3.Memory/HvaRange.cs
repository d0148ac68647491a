namespace Ring3.Memory;

/// <summary>A range of host virtual addresses: [Start, End).</summary>
public readonly record struct HvaRange(ulong Start, ulong End)
{
    public ulong Bytes => End - Start;
}

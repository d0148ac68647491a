namespace Ring3.Memory;

/// <summary>A range of guest frames inside one slot: [Start, End).</summary>
public readonly record struct GfnRange(Memslot Slot, ulong Start, ulong End)
{
    public int AsId => Slot.AsId;
    public ulong Pages => End - Start;
}

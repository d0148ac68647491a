using Ring3.Arch;

namespace Ring3.Memory;

/// <summary>Guest frames of one address space: [Start, End).</summary>
public readonly record struct FrameRange(int AsId, ulong Start, ulong End);

/// <summary>
/// What an unmapping takes away: the frames of every slot, in every address space, whose memory lies in ranges of host addresses; or given frames of every
/// address space, with or without a slot. Enumerated in an RCU section.
/// </summary>
public readonly ref struct FrameRanges
{
    private readonly MemorySlots? _slots;
    private readonly ReadOnlySpan<HvaRange> _hvas;
    private readonly ulong _start, _end;

    internal FrameRanges(MemorySlots slots, ReadOnlySpan<HvaRange> hvas)
    {
        _slots = slots;
        _hvas = hvas;
    }

    internal FrameRanges(ulong start, ulong end) => (_start, _end) = (start, end);

    public Enumerator GetEnumerator() => new(this);

    public ref struct Enumerator
    {
        private readonly FrameRanges _ranges;
        private HvaIndex.Enumerator _slotsInRange;
        private int _asId = -1, _next = int.MaxValue;

        internal Enumerator(FrameRanges ranges) => _ranges = ranges;

        public FrameRange Current { get; private set; }

        public bool MoveNext() => _ranges._slots is { } slots ? MoveToSlot(slots) : MoveToAddressSpace();

        private bool MoveToAddressSpace()
        {
            if (++_asId == MemorySlots.AddressSpaces)
                return false;
            Current = new FrameRange(_asId, _ranges._start, _ranges._end);
            return true;
        }

        private bool MoveToSlot(MemorySlots slots)
        {
            while (true)
            {
                while (_asId >= 0 && _slotsInRange.MoveNext())
                {
                    HvaRange hva = _ranges._hvas[_next - 1];
                    if (TryClip(_slotsInRange.Current, hva.Start, hva.End, out GfnRange clipped))
                    {
                        Current = new FrameRange(_asId, clipped.Start, clipped.End);
                        return true;
                    }
                }
                if (_next >= _ranges._hvas.Length)
                {
                    if (++_asId == MemorySlots.AddressSpaces)
                        return false;
                    _next = 0;
                }
                HvaRange range = _ranges._hvas[_next++];
                _slotsInRange = slots.Set(_asId).InHvaRange(range.Start, range.End);
            }
        }
    }

    /// <summary>The frames of a slot whose memory intersects [start, end), widened to pages.</summary>
    internal static bool TryClip(Memslot slot, ulong start, ulong end, out GfnRange range)
    {
        ulong lo = Math.Max(start & Page.Mask, slot.UserspaceAddr);
        ulong hi = Math.Min((end + Page.OffsetMask) & Page.Mask, slot.HvaEnd);
        if (lo >= hi)
        {
            range = default;
            return false;
        }
        ulong first = slot.BaseGfn + ((lo - slot.UserspaceAddr) >> Page.Shift);
        range = new GfnRange(slot, first, first + ((hi - lo) >> Page.Shift));
        return true;
    }
}

using System.Runtime.CompilerServices;

namespace Ring3.Memory;

/// <summary>
/// The slots of one address space, sorted by gfn. Two sets alternate: one is published and not changed while it is; the other takes the next change.
/// INVARIANT: a published set is changed only after another has been published and a grace period has passed. Readers hold a set only inside an RCU section.
/// </summary>
public sealed class MemslotSet
{
    private ulong[] _bases = new ulong[8];
    private Memslot[] _slots = new Memslot[8];
    private Memslot?[] _byId = new Memslot?[8];

    private readonly HvaIndex _hvas = new();

    /// <summary>Number of slots.</summary>
    public int Count { get; private set; }

    /// <summary>Number of the publication that made this set current; unique in the VM. A cached slot is valid while the generation is the one it was found
    /// in.</summary>
    public ulong Generation { get; internal set; }

    /// <summary>Slots in gfn order.</summary>
    public ReadOnlySpan<Memslot> Slots => _slots.AsSpan(0, Count);

    /// <summary>The slot that contains a gfn, also when it is invalid (being deleted); null if none.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Memslot? Find(ulong gfn)
    {
        int i = UpperBound(gfn) - 1;
        if (i < 0)
            return null;
        Memslot slot = _slots[i];
        return slot.Contains(gfn) ? slot : null;
    }

    /// <summary>The slot with an id, or null.</summary>
    public Memslot? ById(int id) => (uint)id < (uint)_byId.Length ? _byId[id] : null;

    /// <summary>The slots whose memory intersects [start, end) of the host's addresses.</summary>
    public HvaIndex.Enumerator InHvaRange(ulong start, ulong end) => _hvas.Find(start, end);

    /// <summary>Lowest and highest host address of all slots' memory; equal when there is none.</summary>
    public (ulong Low, ulong High) HvaBounds => _hvas.Bounds;

    /// <summary>Index of the first slot whose end is above <paramref name="gfn"/>.</summary>
    public int FirstEndingAbove(ulong gfn)
    {
        int i = UpperBound(gfn);
        return i > 0 && _slots[i - 1].Contains(gfn) ? i - 1 : i;
    }

    /// <summary>True if the Dirty bits of leaves of any slot in [start, end) have to be kept (see <see cref="Memslot.TracksDirtyBits"/>).</summary>
    public bool TracksDirtyBits(ulong start, ulong end)
    {
        for (int i = FirstEndingAbove(start); i < Count && _slots[i].BaseGfn < end; i++)
            if (_slots[i].TracksDirtyBits)
                return true;
        return false;
    }

    /// <summary>True if any slot other than <paramref name="exceptId"/> intersects [gfn, gfn + npages).</summary>
    internal bool Overlaps(ulong gfn, ulong npages, int exceptId)
    {
        for (int i = FirstEndingAbove(gfn); i < Count && _slots[i].BaseGfn < gfn + npages; i++)
            if (_slots[i].Id != exceptId)
                return true;
        return false;
    }

    /// <summary>Number of bases that are at or below gfn.</summary>
    private int UpperBound(ulong gfn)
    {
        ulong[] bases = _bases;
        int lo = 0, hi = Count;
        while (lo < hi)
        {
            int mid = (int)((uint)(lo + hi) >> 1);
            if (bases[mid] <= gfn)
                lo = mid + 1;
            else
                hi = mid;
        }
        return lo;
    }

    /// <summary>Removes <paramref name="old"/> (by id) and adds <paramref name="added"/>; either may be null.</summary>
    internal void Replace(Memslot? old, Memslot? added)
    {
        if (old is not null && added is not null && old.UserspaceAddr == added.UserspaceAddr && old.NPages == added.NPages)
            _hvas.Exchange(old, added);
        else
        {
            if (old is not null)
                _hvas.Remove(old);
            if (added is not null)
                _hvas.Add(added);
        }
        if (old is not null && added is not null && old.BaseGfn == added.BaseGfn)
        {
            int at = UpperBound(old.BaseGfn) - 1;
            _slots[at] = added;
            _byId[added.Id] = added;
            return;
        }
        if (old is not null)
            RemoveAt(UpperBound(old.BaseGfn) - 1);
        if (added is not null)
            Insert(UpperBound(added.BaseGfn), added);
    }

    private void RemoveAt(int at)
    {
        _byId[_slots[at].Id] = null;
        Array.Copy(_slots, at + 1, _slots, at, Count - at - 1);
        Array.Copy(_bases, at + 1, _bases, at, Count - at - 1);
        Count--;
        _slots[Count] = null!;
    }

    private void Insert(int at, Memslot slot)
    {
        if (Count == _slots.Length)
        {
            Array.Resize(ref _slots, Count * 2);
            Array.Resize(ref _bases, Count * 2);
        }
        if (slot.Id >= _byId.Length)
            Array.Resize(ref _byId, Math.Max(slot.Id + 1, _byId.Length * 2));
        Array.Copy(_slots, at, _slots, at + 1, Count - at);
        Array.Copy(_bases, at, _bases, at + 1, Count - at);
        _slots[at] = slot;
        _bases[at] = slot.BaseGfn;
        _byId[slot.Id] = slot;
        Count++;
    }
}

/// <summary>A reader's last used slot (one per vCPU, not shared).</summary>
public struct MemslotCache
{
    internal Memslot? Slot;
    internal ulong Generation;
}

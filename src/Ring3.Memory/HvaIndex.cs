namespace Ring3.Memory;

/// <summary>
/// The slots of a set sorted by host address, for the notifier. Slots may overlap here (one piece of host memory at several guest addresses), so each entry
/// also knows the highest end of all entries up to it.
/// A search visits the matches and, walking down from the last candidate, only entries that some lower entry still reaches over.
/// </summary>
public sealed class HvaIndex
{
    private Memslot[] _slots = new Memslot[8];
    private ulong[] _reach = new ulong[8];
    private int _count;

    internal (ulong Low, ulong High) Bounds => _count == 0 ? (0, 0) : (_slots[0].UserspaceAddr, _reach[_count - 1]);

    internal void Add(Memslot slot)
    {
        if (_count == _slots.Length)
        {
            Array.Resize(ref _slots, _count * 2);
            Array.Resize(ref _reach, _count * 2);
        }
        int at = UpperBound(slot.UserspaceAddr);
        Array.Copy(_slots, at, _slots, at + 1, _count - at);
        Array.Copy(_reach, at, _reach, at + 1, _count - at);
        _slots[at] = slot;
        _count++;
        Recompute(at, always: 1);
    }

    internal void Remove(Memslot slot)
    {
        int at = IndexOf(slot);
        Array.Copy(_slots, at + 1, _slots, at, _count - at - 1);
        Array.Copy(_reach, at + 1, _reach, at, _count - at - 1);
        _slots[--_count] = null!;
        Recompute(at, always: 0);
    }

    /// <summary>Another version of a slot with the same memory.</summary>
    internal void Exchange(Memslot old, Memslot added) => _slots[IndexOf(old)] = added;

    internal Enumerator Find(ulong start, ulong end) => new(this, start, end == 0 ? -1 : UpperBound(end - 1) - 1);

    /// <summary>Repairs the reach from <paramref name="at"/> on: the first <paramref name="always"/> entries, then until nothing changes any more.</summary>
    private void Recompute(int at, int always)
    {
        ulong reach = at == 0 ? 0 : _reach[at - 1];
        for (int i = at; i < _count; i++)
        {
            reach = Math.Max(reach, _slots[i].HvaEnd);
            if (i >= at + always && _reach[i] == reach)
                return;
            _reach[i] = reach;
        }
    }

    private int IndexOf(Memslot slot)
    {
        int i = UpperBound(slot.UserspaceAddr) - 1;
        while (_slots[i].Id != slot.Id)
            i--;
        return i;
    }

    /// <summary>Number of slots that start at or below an address.</summary>
    private int UpperBound(ulong address)
    {
        int lo = 0, hi = _count;
        while (lo < hi)
        {
            int mid = (int)((uint)(lo + hi) >> 1);
            if (_slots[mid].UserspaceAddr <= address)
                lo = mid + 1;
            else
                hi = mid;
        }
        return lo;
    }

    /// <summary>The slots that a search finds, from the highest address down.</summary>
    public struct Enumerator
    {
        private readonly HvaIndex _index;
        private readonly ulong _start;
        private int _at;

        internal Enumerator(HvaIndex index, ulong start, int last) => (_index, _start, _at) = (index, start, last + 1);

        public readonly Enumerator GetEnumerator() => this;
        public readonly Memslot Current => _index._slots[_at];

        public bool MoveNext()
        {
            while (--_at >= 0 && _index._reach[_at] > _start)
                if (_index._slots[_at].HvaEnd > _start)
                    return true;
            _at = -1;
            return false;
        }
    }
}

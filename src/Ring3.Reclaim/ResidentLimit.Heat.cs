using Ring3.Arch;

namespace Ring3.Reclaim;

// What each page is, for pictures and for curious clients.
public sealed partial class ResidentLimit
{
    /// <summary>In <see cref="ReadAges"/>: the page is in the store; the page has not been used yet.</summary>
    public const byte Evicted = 254, Untouched = 255;

    /// <summary>For each page from a host address on: how many generations ago it was used (0 = youngest), <see cref="Evicted"/> or <see cref="Untouched"/>. A
    /// snapshot page by page. False: not memory that is limited here.</summary>
    public bool ReadAges(ulong hva, Span<byte> ages)
    {
        if (!TryFind(hva, out PagedRange? range) || (ulong)ages.Length > (range.Memory.End - hva) >> Page.Shift)
            return false;
        long youngest = _generations.Youngest;
        int first = range.PageOf(hva);
        for (int i = 0; i < ages.Length; i++)
        {
            byte label = Volatile.Read(ref range.Labels[first + i]);
            ages[i] = Generations.IsResident(label) ? (byte)(youngest - (label - 1) & (Generations.Most - 1))
                : label == Generations.Out ? Evicted : Untouched;
        }
        return true;
    }

    /// <summary>
    /// Counts what has been made resident without telling, by a loader's pointers for example, and evicts what is too much; the peak is counted from here. Any
    /// thread; not under a lock of the VM.
    /// </summary>
    public void CatchUp()
    {
        using (_lock.Enter())
        {
            if (_stop != 0)
                return;
            foreach (PagedRange range in _ranges)
                Resync(range);
            if (_store is not null)
                EvictTo(Volatile.Read(ref _low));
            Volatile.Write(ref _peak, Volatile.Read(ref _resident));
        }
    }
}

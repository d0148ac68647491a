using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Reclaim;

// Aging: which pages have been used since the last pass.
public sealed partial class ResidentLimit
{
    private const int BlockWords = PagedRange.BlockPages / 64;

    /// <summary>One aging pass now: opens a new generation and moves into it every page that has been used since the last pass.
    /// Any thread; not under a lock of the VM.</summary>
    public void Age()
    {
        using var _ = _lock.Enter();
        AgeLocked();
    }

    private void AgeLocked()
    {
        _lock.AssertHeld();
        if (_generations.IsFull)
            MergeOldest();
        _generations.Advance();
        byte young = _generations.YoungestLabel;
        Span<ulong> bits = stackalloc ulong[BlockWords];
        foreach (PagedRange range in _ranges)
        {
            for (int block = 0; block < range.Blocks; block++)
            {
                if (!range.IsBlockEmpty(block))
                    HarvestBlock(range, block, bits, young);
            }
        }
        _feedback.Decay();
        Volatile.Write(ref _passes, _passes + 1);
        if (_options.FlushWhenAging)
            _host.FlushTlbs();
    }

    /// <summary>Clears the Accessed bits of a block and makes its young pages members of a generation.</summary>
    private void HarvestBlock(PagedRange range, int block, Span<ulong> bits, byte young)
    {
        bits.Clear();
        int first = block * PagedRange.BlockPages, pages = range.PagesOf(block);
        Harvest(range.HvaOf(first), range.HvaOf(first) + ((ulong)pages << Page.Shift), bits);
        for (int w = 0; w < bits.Length; w++)
        {
            for (ulong rest = bits[w]; rest != 0; rest &= rest - 1)
            {
                int page = first + w * 64 + System.Numerics.BitOperations.TrailingZeroCount(rest);
                if (page >= first + pages)
                    break;
                byte old = Volatile.Read(ref range.Labels[page]);
                // Not resident, by now: being evicted, or counted by the fault that maps it.
                if (Generations.IsResident(old))
                    _generations.TryMove(ref range.Labels[page], old, young);
            }
        }
    }

    /// <summary>Young pages of host memory, whatever slots and address spaces map it.</summary>
    private void Harvest(ulong start, ulong end, Span<ulong> bits)
    {
        Span<ulong> slotBits = stackalloc ulong[BlockWords + 1];
        for (int asId = 0; asId < _host.Slots.UsableAddressSpaces; asId++)
        {
            // Collected first: aging may take mmu_lock, which may wait for nobody in a section.
            Span<(ulong Gfn, ulong Pages, int Bit)> pieces = stackalloc (ulong, ulong, int)[8];
            int n = 0;
            using (Rcu.Read())
            {
                foreach (Memslot slot in _host.Slots.Set(asId).InHvaRange(start, end))
                {
                    ulong lo = Math.Max(start, slot.UserspaceAddr), hi = Math.Min(end, slot.HvaEnd);
                    if (n < pieces.Length)
                        pieces[n++] = (slot.BaseGfn + ((lo - slot.UserspaceAddr) >> Page.Shift), (hi - lo) >> Page.Shift, (int)((lo - start) >> Page.Shift));
                }
            }
            foreach ((ulong gfn, ulong pages, int bit) in pieces[..n])
            {
                slotBits.Clear();
                _host.HarvestYoung(gfn, gfn + pages, slotBits, asId);
                OrShifted(bits, slotBits, bit);
            }
        }
    }

    private static void OrShifted(Span<ulong> to, ReadOnlySpan<ulong> from, int shift)
    {
        int word = shift >> 6, bit = shift & 63;
        for (int i = 0; i + word < to.Length && i < from.Length; i++)
        {
            to[i + word] |= from[i] << bit;
            if (bit != 0 && i + word + 1 < to.Length)
                to[i + word + 1] |= from[i] >> (64 - bit);
        }
    }

    /// <summary>Makes the two oldest generations one, so that there is room for a new one.</summary>
    private void MergeOldest()
    {
        byte from = Generations.LabelOf(_generations.Oldest), to = Generations.LabelOf(_generations.Oldest + 1);
        foreach (PagedRange range in _ranges)
        {
            for (int page = 0; page < range.Pages; page++)
            {
                int found = range.Labels.AsSpan(page).IndexOf(from);
                if (found < 0)
                    break;
                page += found;
                _generations.TryMove(ref range.Labels[page], from, to);
            }
        }
        _generations.RetireOldest();
    }

    /// <summary>Asks the kernel which pages are resident: someone may have touched memory without telling (a system call, a pointer of the client's), and the
    /// host may have taken pages away.</summary>
    private void Resync(PagedRange range)
    {
        _lock.AssertHeld();
        if (_store is null)
            return;
        Span<ulong> words = stackalloc ulong[PagedRange.BlockPages];
        byte label = Generations.LabelOf(Math.Min(_generations.Oldest + 1, _generations.Youngest));
        for (int block = 0; block < range.Blocks; block++)
        {
            int first = block * PagedRange.BlockPages, pages = range.PagesOf(block);
            if (!_map.Read(range.HvaOf(first), words[..pages]))
                return;
            for (int i = 0; i < pages; i++)
            {
                bool present = (words[i] & PageMap.Present) != 0;
                byte old = Volatile.Read(ref range.Labels[first + i]);
                if (present && !Generations.IsResident(old))
                {
                    if (_generations.TryMove(ref range.Labels[first + i], old, label))
                        Count(range, first + i);
                }
                // Dropped although it had been marked as in again meanwhile, or taken by the host.
                else if (!present && Generations.IsResident(old)
                    && _generations.TryMove(ref range.Labels[first + i], old, range.Shadows[first + i] != 0 ? Generations.Out : (byte)0))
                    Interlocked.Decrement(ref _resident);
            }
        }
    }
}

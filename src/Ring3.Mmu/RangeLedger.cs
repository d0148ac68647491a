using Ring3.Arch;

namespace Ring3.Mmu;

/// <summary>
/// The newest change of each page of a 64-bit page-number space, in bounded memory: ranges are cut into aligned pieces of 1, 512, 512^2 and 512^3 pages, each
/// piece a cell of a direct-mapped table with its full key.
/// A cell that is overwritten by another page's is a change forgotten, never one invented. Callers serialise.
/// </summary>
internal sealed class RangeLedger
{
    private const int Levels = 4, Cells = 8192;

    private struct Cell
    {
        public ulong Key, Sequence;
        public FlushSite Site;
    }

    private readonly Cell[][] _levels = [new Cell[Cells], new Cell[Cells], new Cell[Cells], new Cell[Cells]];

    /// <summary>Notes a change of the pages [start, end) of a space.</summary>
    public void Set(int space, ulong start, ulong end, ulong sequence, FlushSite site)
    {
        while (start < end)
        {
            int level = 0;
            while (level < Levels - 1 && (start & (Pages(level + 1) - 1)) == 0 && end - start >= Pages(level + 1))
                level++;
            ref Cell cell = ref At(level, Key(space, start, level));
            if (sequence >= cell.Sequence)
                cell = new Cell { Key = Key(space, start, level), Sequence = sequence, Site = site };
            start += Pages(level);
        }
    }

    /// <summary>The newest change known of a page; 0 without.</summary>
    public ulong Find(int space, ulong page, out FlushSite site)
    {
        ulong newest = 0;
        site = FlushSite.None;
        for (int level = 0; level < Levels; level++)
        {
            ref Cell cell = ref At(level, Key(space, page, level));
            if (cell.Key == Key(space, page, level) && cell.Sequence > newest)
                (newest, site) = (cell.Sequence, cell.Site);
        }
        return newest;
    }

    private static ulong Pages(int level) => 1UL << (9 * level);

    private static ulong Key(int space, ulong page, int level) => (page >> (9 * level)) << 1 | (uint)space;

    private ref Cell At(int level, ulong key) => ref _levels[level][(key ^ key >> 13) & (Cells - 1)];
}

using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;

namespace Ring3.Reclaim;

/// <summary>One piece of host memory behind a guest, with what is known about each of its pages.</summary>
internal sealed class PagedRange(HvaRange memory)
{
    /// <summary>Pages of a block, the unit of scanning and evicting: what a 2-MiB table maps.</summary>
    public const int BlockPages = PageStore.BlockPages;

    public HvaRange Memory { get; } = memory;

    /// <summary>
    /// Label of each page's generation, see <see cref="Generations.LabelOf"/>; 0 or <see cref="Generations.Out"/>: not resident. Changed by atomic exchanges;
    /// whoever changes one moves the counts.
    /// </summary>
    public byte[] Labels { get; } = new byte[memory.Bytes >> Page.Shift];

    /// <summary>What <see cref="RefaultFeedback"/> remembers of each page.</summary>
    public byte[] Shadows { get; } = new byte[memory.Bytes >> Page.Shift];

    public int Pages => Labels.Length;
    public int Blocks => (Pages + BlockPages - 1) / BlockPages;

    public bool Contains(ulong hva) => hva - Memory.Start < Memory.Bytes;

    public int PageOf(ulong hva) => (int)((hva - Memory.Start) >> Page.Shift);

    public ulong HvaOf(int page) => Memory.Start + ((ulong)page << Page.Shift);

    /// <summary>Number of pages of a block; the last one may be short.</summary>
    public int PagesOf(int block) => Math.Min(BlockPages, Pages - block * BlockPages);

    /// <summary>Whether any page of a block is resident.</summary>
    public bool IsBlockEmpty(int block) => Labels.AsSpan(block * BlockPages, PagesOf(block)).IndexOfAnyExcept((byte)0, Generations.Out) < 0;
}

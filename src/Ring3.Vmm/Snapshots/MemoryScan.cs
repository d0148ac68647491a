using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>Which guest memory a snapshot has to keep.</summary>
internal static class MemoryScan
{
    private const int Page = 4096, PagesAtOnce = 512;
    /// <summary>Pages of zeros that are kept, rather than making two pieces of one: each is a mapping of every clone.</summary>
    private const int Gap = 16;

    /// <summary>The pieces that are not zero; sums are to come.</summary>
    public static unsafe List<MemoryExtent> Used(MachineRam ram)
    {
        var extents = new List<MemoryExtent>();
        var map = new PageMap();
        var words = new ulong[PagesAtOnce];
        ulong pages = ram.Bytes / Page;
        for (ulong first = 0; first < pages; first += PagesAtOnce)
        {
            int n = (int)Math.Min(PagesAtOnce, pages - first);
            Span<byte> memory = ram.Flat(first * Page, n * Page);
            // SAFETY: an address, not followed.
            ulong at;
            fixed (byte* p = memory)
                at = (ulong)p;
            bool told = !ram.IsCopy && map.Read(at, words.AsSpan(0, n));
            for (int i = 0; i < n; i++)
            {
                if (told && (words[i] & (PageMap.Present | PageMap.Swapped)) == 0)
                    continue;
                if (memory.Slice(i * Page, Page).ContainsAnyExcept((byte)0))
                    Add(extents, (first + (uint)i) * Page);
            }
        }
        return extents;
    }

    private static void Add(List<MemoryExtent> extents, ulong offset)
    {
        if (extents.Count != 0 && extents[^1] is var last && offset - (last.Offset + last.Bytes) <= Gap * Page)
            extents[^1] = last with { Bytes = offset + Page - last.Offset };
        else
            extents.Add(new MemoryExtent(offset, Page, 0));
    }
}

namespace Ring3.Mmu;

/// <summary>
/// What a series of changes owes before mmu_lock is released: one remote flush of all ranges that were changed, then the tables it has unlinked. See TdpMmu.Owe
/// and TdpMmu.Finish.
/// </summary>
/// <remarks>
/// INVARIANT: lives on the stack of the method that has made it, and is consumed there: by Finish, or by TablePageReclaimer.Defer where no processor is left
/// that could use what was removed.
/// SAFETY: pages on the list are unlinked and belong to the batch; indices into the fixed buffers are below <see cref="MaxRanges"/>.
/// </remarks>
internal ref struct FlushBatch(FlushSite site)
{
    /// <summary>More ranges than this, or more pages than <see cref="MaxPages"/>, and everything is flushed.</summary>
    public const int MaxRanges = 8;
    /// <summary>A processor caches few thousand translations: flushing so many one by one keeps nothing.</summary>
    public const ulong MaxPages = 2048;

    private unsafe fixed ulong _starts[MaxRanges], _ends[MaxRanges];

    /// <summary>Who changes.</summary>
    public readonly FlushSite Site = site;
    /// <summary>Some processor may still use what was removed.</summary>
    public bool Needed { get; private set; }
    /// <summary>Entries were removed that no processor caches (MMIO).</summary>
    public bool Elided;
    /// <summary>Too much for ranges.</summary>
    public bool Full;
    public int Ranges;
    public ulong Pages;
    /// <summary>Entries that have lost W, for the statistics.</summary>
    public uint WriteProtected;
    /// <summary>Unlinked tables, to be freed after the flush and a grace period.</summary>
    public unsafe TablePage* Unlinked;
    /// <summary>Last page of that list.</summary>
    public unsafe TablePage* LastUnlinked;
    /// <summary>What has to be taken from the leaves of <see cref="Unlinked"/> once the flush is done.</summary>
    public LeafState Wanted;
    /// <summary>In checked mode: the changes that the flush will declare over.</summary>
    public List<TlbJournal.Change>? Changes;

    /// <summary>Adds [start, end) to what the flush must cover. Neighbours, and pages of the same 64-page word, become one range.</summary>
    public unsafe void Add(ulong start, ulong end)
    {
        Needed = true;
        if (Full)
            return;
        if (Ranges > 0 && start >= _starts[Ranges - 1] && start <= _ends[Ranges - 1] + 63)
        {
            if (end > _ends[Ranges - 1])
            {
                Pages += end - _ends[Ranges - 1];
                _ends[Ranges - 1] = end;
            }
        }
        else if (Ranges < MaxRanges)
        {
            (_starts[Ranges], _ends[Ranges]) = (start, end);
            Ranges++;
            Pages += end - start;
        }
        else
            Full = true;
        Full |= Pages > MaxPages;
    }

    public readonly unsafe GfnSpan this[int i] => new(_starts[i], _ends[i]);

    public unsafe void AddUnlinked(TablePage* page)
    {
        page->State = TablePageState.Unlinked;
        page->Next = Unlinked;
        if (Unlinked == null)
            LastUnlinked = page;
        Unlinked = page;
    }
}

/// <summary>Guest frames [Start, End).</summary>
public readonly record struct GfnSpan(ulong Start, ulong End);

namespace Ring3.Reclaim;

/// <summary>One generation of a working set.</summary>
/// <param name="Generation">Its number; the highest is the youngest.</param>
/// <param name="Pages">Resident pages whose last known use falls into it.</param>
/// <param name="AgeMs">Milliseconds since it was opened: its pages have been used since then, and not since the next younger one was opened.</param>
public readonly record struct GenerationSize(long Generation, long Pages, long AgeMs)
{
    public ulong Bytes => (ulong)Pages << 12;
}

/// <summary>The working set of a VM at one moment, youngest generation first, and what has happened to its pages so far.</summary>
/// <param name="Limit">The limit in bytes; <see cref="ulong.MaxValue"/> when pages are only watched.</param>
/// <param name="ResidentPages">Pages in memory.</param>
/// <param name="EvictedPages">Pages that are in the store now.</param>
/// <param name="PeakPages">Most pages that have been resident at a time.</param>
/// <param name="Evictions">Pages taken out of memory since the start.</param>
/// <param name="Writes">Those of them that had to be written to the store.</param>
/// <param name="Refaults">Pages that came back from the store.</param>
/// <param name="RecentRefaults">Those of them that had been evicted less than <see cref="MostGenerations"/> generations before.</param>
/// <param name="DirectReclaims">Times that a processor had to make room itself.</param>
/// <param name="AgingPasses">Aging passes.</param>
/// <param name="Failures">Batches that could not be written.</param>
public sealed record WorkingSet(IReadOnlyList<GenerationSize> Generations, ulong Limit, long ResidentPages, long EvictedPages, long PeakPages,
    long Evictions, long Writes, long Refaults, long RecentRefaults, long DirectReclaims, long AgingPasses, long Failures)
{
    /// <summary>Most generations that are told apart.</summary>
    public const int MostGenerations = 8;
}

namespace Ring3.Cpu;

/// <summary>What a machine's translator has made.</summary>
/// <param name="Regions">Regions of translated code made so far.</param>
/// <param name="Dropped">Of them, those that went because their bytes were written.</param>
/// <param name="Bytes">Host code of all regions made, in bytes.</param>
/// <param name="Instructions">Guest instructions that retired in translated code, those of handlers that it called included.</param>
/// <param name="Hottest">Regions that are still there, the most often sampled first.</param>
public sealed record TranslationSummary(ulong Regions, ulong Dropped, ulong Bytes, ulong Instructions, IReadOnlyList<HotRegion> Hottest);

/// <summary>A region and how often a processor looked at the clock in it, which it does after so many instructions while one of its timers runs.</summary>
/// <param name="Address">Guest-virtual address of the block that it was made for, when it was made.</param>
/// <param name="Instructions">Guest instructions in it.</param>
/// <param name="Bytes">Host code, in bytes.</param>
/// <param name="Samples">Times.</param>
public readonly record struct HotRegion(ulong Address, int Instructions, int Bytes, ulong Samples);

namespace Ring3.Reclaim;

/// <summary>Choices for <see cref="ResidentLimit"/>.</summary>
public sealed record ResidentOptions
{
    /// <summary>Where the file with the evicted pages is made; null: /var/tmp or another directory for temporary files,
    /// preferring one that is not itself kept in memory.</summary>
    public string? Directory { get; init; }

    /// <summary>Milliseconds between two aging passes when nothing else asks for one; at least 1.</summary>
    public int AgingIntervalMs { get; init; } = 1000;

    /// <summary>
    /// Flush the processors' translations after each aging pass. Accessed bits are set by table walks, so without it a page whose translation stays cached
    /// looks idle and may be evicted although it is in use.
    /// </summary>
    public bool FlushWhenAging { get; init; } = true;

    /// <summary>Called once, on any thread, with one line when pages cannot be written and the limit is exceeded.</summary>
    public Action<string>? Warning { get; init; }

    /// <summary>Called on the reclaiming thread after each periodic aging pass.</summary>
    public Action<ResidentLimit>? Aged { get; init; }
}

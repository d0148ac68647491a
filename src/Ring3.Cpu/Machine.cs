namespace Ring3.Cpu;

/// <summary>
/// What the logical processors of one virtual machine share: the block cache and the bus. One per VM.
/// </summary>
/// <remarks>SAFETY: takes host addresses of guest memory, for the block cache, which reads them while the guest's memory is mapped.</remarks>
public sealed unsafe partial class Machine : IDisposable
{
    private LogicalProcessor[] _processors = [];
    /// <summary>What is decoded and translated of guest memory.</summary>
    internal readonly BlockCache Blocks = new();

    public Machine(ProcessorModel? model = null) => Model = model ?? ProcessorModel.Host;

    /// <summary>Which processor the logical processors are.</summary>
    public ProcessorModel Model { get; }

    /// <summary>Processors created so far. The array is replaced, never changed.</summary>
    public ReadOnlySpan<LogicalProcessor> Processors => Volatile.Read(ref _processors);

    /// <summary>Creates a processor in the power-on state. Any thread.</summary>
    public LogicalProcessor CreateProcessor()
    {
        LogicalProcessor p = new(this);
        Blocks.Join(p.Fetch);
        LogicalProcessor[] others;
        do
            others = Volatile.Read(ref _processors);
        while (Interlocked.CompareExchange(ref _processors, [.. others, p], others) != others);
        // PAIRS-WITH: StopOthers: its reader of the array has taken the bus before this processor looks at it, or finds the processor.
        Interlocked.MemoryBarrier();
        return p;
    }

    /// <summary>Releases the processors, code and map. No processor may be inside the guest, and none is used again.</summary>
    public void Dispose()
    {
        if (Blocks.TranslationThreshold != int.MaxValue)
            Engine.Log?.Invoke(TranslationReport.Of(this));
        foreach (LogicalProcessor p in Processors)
            p.Free();
        Volatile.Write(ref _processors, []);
        Blocks.Free();
    }

    /// <inheritdoc cref="BlockCache.CodeWritten"/>
    public void CodeWritten(byte* host, nuint size) => Blocks.CodeWritten(host, size);

    /// <inheritdoc cref="BlockCache.ExternalWriters"/>
    public bool ExternalWriters
    {
        get => Blocks.ExternalWriters;
        set => Blocks.ExternalWriters = value;
    }

    /// <inheritdoc cref="BlockCache.TranslationThreshold"/>
    public int TranslationThreshold
    {
        get => Blocks.TranslationThreshold;
        set => Blocks.TranslationThreshold = value;
    }

    /// <inheritdoc cref="BlockCache.RegionObserver"/>
    public Action<string>? RegionObserver
    {
        get => Blocks.RegionObserver;
        init => Blocks.RegionObserver = value;
    }

    /// <summary>What has been translated so far, with the regions in which processors were seen most often. Any thread.</summary>
    public TranslationSummary SummarizeTranslation(int hottest)
    {
        ulong translated = 0;
        foreach (LogicalProcessor p in Processors)
            translated += p.Translator.Counters.Translated;
        return Blocks.Summarize(hottest, translated);
    }
}

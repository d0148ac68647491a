namespace Ring3.Cpu;

/// <summary>
/// What the logical processors of one virtual machine share: decoded blocks and the map of the memory they came from. One per VM.
/// </summary>
/// <remarks>
/// Locks: the decode lock protects insertion and invalidation of blocks, the page chains and the arenas. Lookups in the block table take no lock: chains are published by release stores, and the memory
/// of a removed block stays readable until every processor has been seen outside the epoch in which it was reachable.
/// SAFETY: block pointers come from the machine's own arenas.
/// </remarks>
public sealed unsafe partial class Machine : IDisposable
{
    private LogicalProcessor[] _processors = [];

    public Machine(ProcessorModel? model = null)
    {
        Model = model ?? ProcessorModel.Host;
        _arenas.Add(_arena);
    }

    /// <summary>Which processor the logical processors are.</summary>
    public ProcessorModel Model { get; }

    /// <summary>Which host memory holds decoded code.</summary>
    public CodeMap CodeMap { get; } = new();

    /// <summary>Processors created so far. The array is replaced, never changed.</summary>
    public ReadOnlySpan<LogicalProcessor> Processors => Volatile.Read(ref _processors);

    /// <summary>Creates a processor in the power-on state. Any thread.</summary>
    public LogicalProcessor CreateProcessor()
    {
        LogicalProcessor p = new(this);
        using (_decodeLock.Enter())
        {
            if (_processors.Length != 0)
                Volatile.Write(ref _stampsShared, true);
            Volatile.Write(ref _processors, [.. _processors, p]);
        }
        // PAIRS-WITH: StopOthers: its reader of the array has taken the bus before this processor looks at it, or finds the processor.
        Interlocked.MemoryBarrier();
        return p;
    }

    /// <summary>Releases the processors, code and map. No processor may be inside the guest, and none is used again.</summary>
    public void Dispose()
    {
        if (TranslationThreshold != int.MaxValue)
            Engine.Log?.Invoke(TranslationReport.Of(this));
        foreach (LogicalProcessor p in Processors)
            p.Free();
        Volatile.Write(ref _processors, []);
        foreach (BlockArena a in _arenas)
            a.Free();
        _arenas.Clear();
        Ring3.Host.HostMemory.Unmap(_table, TableSize * (nuint)sizeof(Block*));
        CodeMap.Dispose();
    }
}

namespace Ring3.Cpu;

/// <summary>
/// What the logical processors of one virtual machine share: decoded code and the map of the memory it came from. One per VM.
/// </summary>
public sealed unsafe partial class Machine : IDisposable
{
    private readonly Lock _lock = new();
    private LogicalProcessor[] _processors = [];

    /// <summary>Which host memory holds decoded code.</summary>
    public CodeMap CodeMap { get; } = new();

    /// <summary>Processors created so far. The array is replaced, never changed.</summary>
    public ReadOnlySpan<LogicalProcessor> Processors => Volatile.Read(ref _processors);

    /// <summary>Creates a processor in the power-on state. Any thread.</summary>
    public LogicalProcessor CreateProcessor()
    {
        LogicalProcessor p = new(this);
        lock (_lock)
            Volatile.Write(ref _processors, [.. _processors, p]);
        return p;
    }

    /// <summary>Releases code and map. No processor may be inside the guest.</summary>
    public void Dispose() => CodeMap.Dispose();
}

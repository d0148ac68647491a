namespace Ring3.Cpu;

/// <summary>
/// Looks on while a processor executes, and decides how: tests execute the same stay in the guest in two ways. It is told of every page before it can be
/// written to, and of every value that instructions get from outside the guest.
/// </summary>
internal abstract unsafe class ExecutionObserver
{
    /// <summary>Makes the observers of processors that are created from now on; null: they have none.</summary>
    internal static Func<LogicalProcessor, ExecutionObserver?>? Make { get; set; }

    /// <summary>In place of <see cref="LogicalProcessor.EnterOnce"/>.</summary>
    public abstract ExitReason Enter(LogicalProcessor p);

    /// <summary>A page of host memory may be written to until translations are flushed.</summary>
    /// <remarks>SAFETY: the pointer is for comparison and for copies while the guest's memory is mapped.</remarks>
    public abstract void MayWrite(byte* page);

    /// <summary>What an instruction is to read where it would read <paramref name="value"/>: of the time-stamp counter or the random generator.</summary>
    public abstract ulong Input(LogicalProcessor p, ulong value);
}

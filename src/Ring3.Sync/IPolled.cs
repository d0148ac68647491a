namespace Ring3.Sync;

/// <summary>A descriptor that the event loop watches. Its members are called on the loop's thread, with none of its locks held.</summary>
public interface IPolled
{
    /// <summary>The descriptor; the same as long as the loop has it.</summary>
    int Fd { get; }

    /// <summary>The descriptor has input, and is asked about again until it has been read. Must not block.</summary>
    void Signalled();

    /// <summary>
    /// An exception has escaped <see cref="Signalled"/>, or the loop has ended; the descriptor is not watched any more. The owner marks what it
    /// belongs to as broken.
    /// </summary>
    void Failed(Exception e);
}

using System.Runtime.CompilerServices;

namespace Ring3.Sync;

/// <summary>
/// Sequence count: readers copy without locking and try again if a writer was active. Writers are serialised by the caller. Even = stable, odd = being written.
/// A struct field, never copied.
/// </summary>
public struct SeqCount
{
    private uint _sequence;

    /// <summary>Waits for a stable value and returns it.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public uint BeginRead()
    {
        while (true)
        {
            // PAIRS-WITH: EndWrite (release).
            uint s = Volatile.Read(ref _sequence);
            if ((s & 1) == 0)
                return s;
            Thread.SpinWait(4);
        }
    }

    /// <summary>True if what was read since <see cref="BeginRead"/> may be torn.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public bool NeedsRetry(uint start)
    {
        // PAIRS-WITH: BeginWrite. Keeps the copied loads above the second look at the sequence.
        Interlocked.MemoryBarrier();
        return Volatile.Read(ref _sequence) != start;
    }

    public void BeginWrite()
    {
        _sequence++;
        // PAIRS-WITH: NeedsRetry.
        Interlocked.MemoryBarrier();
    }

    public void EndWrite() => Volatile.Write(ref _sequence, _sequence + 1);
}

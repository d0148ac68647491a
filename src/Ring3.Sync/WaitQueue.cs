namespace Ring3.Sync;

/// <summary>
/// Threads waiting for a condition that others make true. The waiter reads <see cref="Ticket"/>, checks its condition, then waits with that ticket; the waker
/// makes the condition true, then calls <see cref="WakeAll"/>. A wake between check and wait is never lost, because it changes the ticket.
/// </summary>
public sealed class WaitQueue
{
    private readonly FutexWord _sequence = new();
    private int _waiters;

    /// <summary>Read before the condition is checked.</summary>
    public int Ticket => Volatile.Read(ref _sequence.Value);

    /// <summary>Sleeps until a wake after <paramref name="ticket"/> was read. May return early.</summary>
    /// <returns>False when the timeout (nanoseconds, negative = none) has passed.</returns>
    public bool Wait(int ticket, long timeoutNs = -1)
    {
        // PAIRS-WITH: WakeAll (reads _waiters after it has changed the sequence).
        Interlocked.Increment(ref _waiters);
        bool woken = _sequence.Wait(ticket, timeoutNs);
        Interlocked.Decrement(ref _waiters);
        return woken;
    }

    /// <summary>Wakes all waiters. Costs one atomic when there are none.</summary>
    public void WakeAll()
    {
        Interlocked.Increment(ref _sequence.Value);
        if (Volatile.Read(ref _waiters) != 0)
            _sequence.Wake(int.MaxValue);
    }
}

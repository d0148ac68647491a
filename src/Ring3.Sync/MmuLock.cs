using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>
/// Reader-writer lock that spins briefly and then sleeps. Writers go before new readers. Long holders poll <see cref="NeedsBreak"/> and yield.
/// Not recursive in either mode.
/// </summary>
/// <remarks>
/// State: -1 held for write, n &gt; 0 held for read by n threads, 0 free. A waiting writer keeps new readers out through <c>_writersWaiting</c>.
/// Where <see cref="LockOrder.IsChecked"/>, the Assert methods look at what the thread holds, as lockdep does.
/// </remarks>
public sealed class MmuLock(LockRank rank)
{
    private const int Writer = -1;
    private readonly FutexWord _wake = new();
    private int _state;
    private int _writersWaiting;
    private int _waiters;

    /// <summary>Somebody waits for what the caller holds: finish the step, publish pending flushes, and let go for a moment.</summary>
    public bool NeedsBreak => Volatile.Read(ref _writersWaiting) != 0 || (Volatile.Read(ref _state) == Writer && Volatile.Read(ref _waiters) != 0);

    public bool IsHeldForWrite => Volatile.Read(ref _state) == Writer;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void EnterRead()
    {
        LockOrder.Entering(rank, this);
        int s = Volatile.Read(ref _state);
        if (s < 0 || Volatile.Read(ref _writersWaiting) != 0 || Interlocked.CompareExchange(ref _state, s + 1, s) != s)
            EnterReadSlow();
        LockOrder.Entered(rank, this, write: false);
    }

    /// <summary>Takes the read side if that needs no waiting.</summary>
    public bool TryEnterRead()
    {
        LockOrder.Trying(rank, this);
        if (!TryRead())
            return false;
        LockOrder.Entered(rank, this, write: false);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ExitRead()
    {
        LockOrder.Exiting(rank, this, write: false);
        // PAIRS-WITH: Park (counts itself in _waiters before it checks the state again).
        if (Interlocked.Decrement(ref _state) == 0 && Volatile.Read(ref _waiters) != 0)
            WakeAll();
    }

    public void EnterWrite()
    {
        LockOrder.Entering(rank, this);
        if (Volatile.Read(ref _state) != 0 || Interlocked.CompareExchange(ref _state, Writer, 0) != 0)
            EnterWriteSlow();
        LockOrder.Entered(rank, this, write: true);
    }

    /// <summary>Takes the write side if nobody holds either.</summary>
    public bool TryEnterWrite()
    {
        LockOrder.Trying(rank, this);
        if (Interlocked.CompareExchange(ref _state, Writer, 0) != 0)
            return false;
        LockOrder.Entered(rank, this, write: true);
        return true;
    }

    public void ExitWrite()
    {
        LockOrder.Exiting(rank, this, write: true);
        Interlocked.Exchange(ref _state, 0);
        if (Volatile.Read(ref _waiters) != 0)
            WakeAll();
    }

    /// <summary><c>using (mmuLock.Read())</c>.</summary>
    public ReadScope Read()
    {
        EnterRead();
        return new ReadScope(this);
    }

    /// <summary><c>using (mmuLock.Write())</c>.</summary>
    public WriteScope Write()
    {
        EnterWrite();
        return new WriteScope(this);
    }

    public readonly ref struct ReadScope(MmuLock l)
    {
        public void Dispose() => l.ExitRead();
    }

    public readonly ref struct WriteScope(MmuLock l)
    {
        public void Dispose() => l.ExitWrite();
    }

    /// <summary>Lets waiters through and takes the lock again in the same mode. Caller must have published its flushes, and must not rely on anything it saw
    /// before.</summary>
    public void BreakRead()
    {
        ExitRead();
        Thread.Yield();
        EnterRead();
    }

    /// <inheritdoc cref="BreakRead"/>
    public void BreakWrite()
    {
        ExitWrite();
        Thread.Yield();
        EnterWrite();
    }

    private bool TryRead()
    {
        while (true)
        {
            int s = Volatile.Read(ref _state);
            if (s < 0 || Volatile.Read(ref _writersWaiting) != 0)
                return false;
            if (Interlocked.CompareExchange(ref _state, s + 1, s) == s)
                return true;
        }
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EnterReadSlow()
    {
        Interlocked.Increment(ref _waiters);
        for (int i = 0; !TryRead(); i++)
            Park(i, reader: true);
        Interlocked.Decrement(ref _waiters);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EnterWriteSlow()
    {
        Interlocked.Increment(ref _writersWaiting);
        Interlocked.Increment(ref _waiters);
        for (int i = 0; Interlocked.CompareExchange(ref _state, Writer, 0) != 0; i++)
            Park(i, reader: false);
        Interlocked.Decrement(ref _waiters);
        // Readers that this writer kept out are woken by its ExitWrite: they are still counted in _waiters.
        Interlocked.Decrement(ref _writersWaiting);
    }

    private void Park(int round, bool reader)
    {
        if (round < 40)
        {
            Thread.SpinWait(10 + round);
            return;
        }
        int ticket = Volatile.Read(ref _wake.Value);
        int s = Volatile.Read(ref _state);
        bool available = reader ? s >= 0 && Volatile.Read(ref _writersWaiting) == 0 : s == 0;
        if (!available)
            _wake.Wait(ticket);
    }

    private void WakeAll()
    {
        Interlocked.Increment(ref _wake.Value);
        _wake.Wake(int.MaxValue);
    }

    /// <summary>Held by this thread for read or write (<see cref="LockOrder.IsChecked"/>).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertHeld() => LockOrder.AssertHeld(rank, this);

    /// <inheritdoc cref="AssertHeld"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertHeldRead() => LockOrder.AssertHeld(rank, this, write: false);

    /// <inheritdoc cref="AssertHeld"/>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertHeldWrite() => LockOrder.AssertHeld(rank, this, write: true);
}

using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace Ring3.Sync;

/// <summary>
/// Reader-writer lock that spins briefly and then sleeps. Writers go before new readers. Long holders poll <see cref="NeedsBreak"/> and yield.
/// Not recursive in either mode.
/// </summary>
/// <remarks>
/// State: -1 held for write, n &gt; 0 held for read by n threads, 0 free. A waiting writer keeps new readers out through <c>_writersWaiting</c>.
/// In DEBUG builds each thread records what it holds, and the Assert methods check it, as lockdep does.
/// </remarks>
public sealed class MmuLock(string name = "mmu_lock")
{
    private const int Writer = -1;
    private readonly FutexWord _wake = new();
    private int _state;
    private int _writersWaiting;
    private int _waiters;
#if DEBUG
    [ThreadStatic] private static Dictionary<MmuLock, bool>? t_held;
#endif

    public string Name { get; } = name;

    /// <summary>Somebody waits for what the caller holds: finish the step, publish pending flushes, and let go for a moment.</summary>
    public bool NeedsBreak => Volatile.Read(ref _writersWaiting) != 0 || (Volatile.Read(ref _state) == Writer && Volatile.Read(ref _waiters) != 0);

    public bool IsHeldForWrite => Volatile.Read(ref _state) == Writer;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void EnterRead()
    {
        CheckNotHeld();
        int s = Volatile.Read(ref _state);
        if (s < 0 || Volatile.Read(ref _writersWaiting) != 0 || Interlocked.CompareExchange(ref _state, s + 1, s) != s)
            EnterReadSlow();
        Track(false);
    }

    /// <summary>Takes the read side if that needs no waiting.</summary>
    public bool TryEnterRead()
    {
        CheckNotHeld();
        if (!TryRead())
            return false;
        Track(false);
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void ExitRead()
    {
        AssertHeldRead();
        Untrack();
        // PAIRS-WITH: Park (counts itself in _waiters before it checks the state again).
        if (Interlocked.Decrement(ref _state) == 0 && Volatile.Read(ref _waiters) != 0)
            WakeAll();
    }

    public void EnterWrite()
    {
        CheckNotHeld();
        if (Volatile.Read(ref _state) != 0 || Interlocked.CompareExchange(ref _state, Writer, 0) != 0)
            EnterWriteSlow();
        Track(true);
    }

    /// <summary>Takes the write side if nobody holds either.</summary>
    public bool TryEnterWrite()
    {
        CheckNotHeld();
        if (Interlocked.CompareExchange(ref _state, Writer, 0) != 0)
            return false;
        Track(true);
        return true;
    }

    public void ExitWrite()
    {
        AssertHeldWrite();
        Untrack();
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

    /// <summary>Lets waiters through and takes the lock again in the same mode. Caller must have published its flushes, and must not rely on anything it saw before.</summary>
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

    /// <summary>Held by this thread for read or write.</summary>
    [Conditional("DEBUG")]
    public void AssertHeld() => AssertHeldRead(orWrite: true);

    [Conditional("DEBUG")]
    public void AssertHeldRead() => AssertHeldRead(orWrite: false);

    [Conditional("DEBUG")]
    public void AssertHeldWrite()
    {
#if DEBUG
        Debug.Assert(t_held is not null && t_held.TryGetValue(this, out bool write) && write, $"{Name} must be held for write");
#endif
    }

    [Conditional("DEBUG")]
    private void AssertHeldRead(bool orWrite)
    {
#if DEBUG
        bool write = false;
        Debug.Assert(t_held is not null && t_held.TryGetValue(this, out write) && (orWrite || !write), $"{Name} must be held for read");
#endif
    }

    [Conditional("DEBUG")]
    private void CheckNotHeld()
    {
#if DEBUG
        Debug.Assert(t_held is null || !t_held.ContainsKey(this), $"{Name} is not recursive");
#endif
    }

    [Conditional("DEBUG")]
    private void Track(bool write)
    {
#if DEBUG
        (t_held ??= [])[this] = write;
#endif
    }

    [Conditional("DEBUG")]
    private void Untrack()
    {
#if DEBUG
        t_held!.Remove(this);
#endif
    }
}

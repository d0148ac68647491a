using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>A sleeping mutex for long critical sections (slots lock). Not recursive. Allocates nothing.</summary>
/// <remarks>
/// Releasing is a plain store and a look at the number of waiters, without a fence: who is going to sleep pays for both with a process-wide barrier. A thread
/// that loops over a system call's mutex, as KVM_RUN does, pays one locked instruction a round.
/// </remarks>
/// <param name="rank">Its place in the order of all locks.</param>
/// <param name="anonymous">Does not note its owner: cheaper, and nobody can ask who holds it.</param>
public sealed class FutexMutex(LockRank rank, bool anonymous = false)
{
    private const int Free = 0, Held = 1;
    private readonly FutexWord _state = new();
    private int _owner, _waiters;

    /// <summary>Acquires; <c>using (mutex.Enter())</c> releases at the end of the block.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Scope Enter()
    {
        LockOrder.Entering(rank, this);
        if (Interlocked.CompareExchange(ref _state.Value, Held, Free) != Free)
            EnterSlow();
        NoteOwner();
        return new Scope(this);
    }

    /// <summary>Acquires if nobody holds it.</summary>
    public bool TryEnter()
    {
        if (Interlocked.CompareExchange(ref _state.Value, Held, Free) != Free)
            return false;
        NoteOwner();
        return true;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Exit()
    {
        LockOrder.Exiting(rank, this);
        if (!anonymous)
            _owner = 0;
        Volatile.Write(ref _state.Value, Free);
        // PAIRS-WITH: FutexMutex.EnterSlow (waiter counted, process-wide barrier, state read): either this thread sees the waiter or the waiter sees the mutex
        // free.
        if (Volatile.Read(ref _waiters) != 0)
            _state.Wake(1);
    }

    private void NoteOwner()
    {
        LockOrder.Entered(rank, this);
        if (!anonymous)
            _owner = Environment.CurrentManagedThreadId;
    }

    public bool IsHeldByMe => _owner == Environment.CurrentManagedThreadId;

    /// <summary>The thread must hold it (<see cref="LockOrder.IsChecked"/>).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void AssertHeld() => LockOrder.AssertHeld(rank, this);

    private void EnterSlow()
    {
        for (int i = 0; i < 50; i++)
        {
            if (Volatile.Read(ref _state.Value) == Free && Interlocked.CompareExchange(ref _state.Value, Held, Free) == Free)
                return;
            Thread.SpinWait(20);
        }
        Interlocked.Increment(ref _waiters);
        // PAIRS-WITH: FutexMutex.Exit (state, then waiters).
        Interlocked.MemoryBarrierProcessWide();
        while (Interlocked.CompareExchange(ref _state.Value, Held, Free) != Free)
            _state.Wait(Held);
        Interlocked.Decrement(ref _waiters);
    }

    /// <summary>A held mutex.</summary>
    public readonly ref struct Scope(FutexMutex mutex)
    {
        public void Dispose() => mutex.Exit();
    }
}

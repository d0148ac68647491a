using System.Runtime.CompilerServices;

// The reference is only compared: nobody locks by it.
#pragma warning disable CS9216

namespace Ring3.Host;

/// <summary>A <see cref="Lock"/> with a place in the order of all locks: <c>using (_lock.Enter())</c>.</summary>
public readonly struct RankedLock(LockRank rank)
{
    private readonly Lock _lock = new();

    /// <summary>Waits until the lock is the thread's.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public Scope Enter()
    {
        LockOrder.Entering(rank, _lock, recursive: true);
        Scope scope = new(_lock.EnterScope(), rank, _lock);
        LockOrder.Entered(rank, _lock);
        return scope;
    }

    /// <summary>Waits so many milliseconds at most; <see cref="Exit"/> ends what has succeeded.</summary>
    public bool TryEnter(int milliseconds)
    {
        LockOrder.Entering(rank, _lock, recursive: true);
        if (!_lock.TryEnter(milliseconds))
            return false;
        LockOrder.Entered(rank, _lock);
        return true;
    }

    /// <summary>Ends what <see cref="TryEnter"/> began.</summary>
    public void Exit()
    {
        LockOrder.Exiting(rank, _lock);
        _lock.Exit();
    }

    /// <summary>The lock, held until the end of the block.</summary>
    public ref struct Scope
    {
        private Lock.Scope _scope;
        private readonly LockRank _rank;
        private readonly object? _lock;

        internal Scope(Lock.Scope scope, LockRank rank, object held)
        {
            _scope = scope;
            _rank = rank;
            _lock = held;
        }

        /// <summary>Gives it back.</summary>
        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public void Dispose()
        {
            LockOrder.Exiting(_rank, _lock);
            _scope.Dispose();
        }
    }
}

using System.Runtime.CompilerServices;
using Ring3.Host;

namespace Ring3.Sync;

/// <summary>A mutex for a handful of instructions: spins, then yields. A struct field, never copied, never readonly.</summary>
public struct TinyLock(LockRank rank)
{
    private int _held;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Enter()
    {
        LockOrder.Entering(rank);
        if (Interlocked.CompareExchange(ref _held, 1, 0) != 0)
            EnterSlow();
        LockOrder.Entered(rank);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Exit()
    {
        LockOrder.Exiting(rank);
        Volatile.Write(ref _held, 0);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EnterSlow()
    {
        var backoff = new Backoff();
        do
            backoff.Pause();
        while (Volatile.Read(ref _held) != 0 || Interlocked.CompareExchange(ref _held, 1, 0) != 0);
    }
}

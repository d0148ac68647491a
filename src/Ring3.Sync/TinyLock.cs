using System.Runtime.CompilerServices;

namespace Ring3.Sync;

/// <summary>A mutex for a handful of instructions: spins, then yields. A struct field, never copied, never readonly.</summary>
public struct TinyLock
{
    private int _held;

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Enter()
    {
        if (Interlocked.CompareExchange(ref _held, 1, 0) != 0)
            EnterSlow();
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Exit() => Volatile.Write(ref _held, 0);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void EnterSlow()
    {
        var backoff = new Backoff();
        do
            backoff.Pause();
        while (Volatile.Read(ref _held) != 0 || Interlocked.CompareExchange(ref _held, 1, 0) != 0);
    }
}

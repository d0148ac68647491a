using Ring3.Host;

namespace Ring3.Sync;

/// <summary>Waiting for another thread's few instructions: spins, then yields the processor, then sleeps for tens of microseconds.</summary>
public struct Backoff
{
    private const int Spins = 30, Yields = 60;
    private int _step;

    /// <summary>True once the waits are short sleeps.</summary>
    public readonly bool IsSleeping => _step > Yields;

    /// <summary>Waits a little; longer each time.</summary>
    public unsafe void Pause()
    {
        if (_step < Spins)
            Thread.SpinWait(1 << Math.Min(_step / 4, 5));
        else if (_step < Yields)
            Thread.Yield();
        else
        {
            // SAFETY: a private futex word on this stack that nobody wakes: a sleep with a bound.
            int never = 0;
            Futex.Wait(&never, 0, 50_000);
        }
        if (_step <= Yields)
            _step++;
    }
}

using Ring3.Host;

namespace Ring3.Sync;

/// <summary>Waiting for another thread's few instructions: spins, then sleeps for tens of microseconds.</summary>
/// <remarks>
/// It never yields the processor: to Linux's scheduler each sched_yield is a whole time slice given away (EEVDF, since 6.6), so that a few in a row keep the
/// thread out for hundreds of milliseconds on a busy host. Who sleeps loses nothing.
/// </remarks>
public struct Backoff
{
    private const int Spins = 30;
    private int _step;

    /// <summary>True once the waits are short sleeps.</summary>
    public readonly bool IsSleeping => _step > Spins;

    /// <summary>Waits a little; longer each time.</summary>
    public unsafe void Pause()
    {
        if (_step < Spins)
            Thread.SpinWait(1 << Math.Min(_step / 4, 5));
        else
        {
            // SAFETY: a private futex word on this stack that nobody wakes: a sleep with a bound.
            int never = 0;
            Futex.Wait(&never, 0, 50_000);
        }
        if (_step <= Spins)
            _step++;
    }
}

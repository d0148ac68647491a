using Ring3.Host;

namespace Ring3.Sync;

/// <summary>The two clocks that a share is measured with.</summary>
public interface IShareClock
{
    /// <summary>Time passed, nanoseconds.</summary>
    long WallNs { get; }
    /// <summary>Processor time of the calling thread, nanoseconds.</summary>
    long ThreadCpuNs { get; }
}

/// <summary>
/// The part of one processor that a thread may take for work that can wait. A bucket of processor time: it fills at the share's rate, holds at most
/// <see cref="BurstNs"/>, and is emptied by what the thread really used (its own CPU clock, so time during which the host ran something else is not charged).
/// INVARIANT: in any interval of t nanoseconds the thread gets at most share * t + burst + one step, a step being what it does between two calls of
/// <see cref="MayGoOn"/>.
/// </summary>
/// <remarks>For the working thread only, except <see cref="Percent"/> and the counters.</remarks>
public sealed class CpuShare
{
    /// <summary>Short work after a rest is done at once.</summary>
    public const long BurstNs = 2_000_000;

    private sealed class HostShareClock : IShareClock
    {
        public long WallNs => HostClock.MonotonicNs();
        public long ThreadCpuNs => HostClock.ThreadCpuNs();
    }

    private readonly IShareClock _clock;
    private int _percent = 100;
    private long _budgetNs = BurstNs, _filledAt, _chargedAt;
    private long _usedNs, _pauses;

    public CpuShare(IShareClock? clock = null)
    {
        _clock = clock ?? new HostShareClock();
        _filledAt = _clock.WallNs;
    }

    /// <summary>Percent of one processor, 1 to 100. 100: as much as the thread can get.</summary>
    /// <exception cref="ArgumentOutOfRangeException">Not in range.</exception>
    public int Percent
    {
        get => Volatile.Read(ref _percent);
        set
        {
            ArgumentOutOfRangeException.ThrowIfLessThan(value, 1);
            ArgumentOutOfRangeException.ThrowIfGreaterThan(value, 100);
            Volatile.Write(ref _percent, value);
        }
    }

    /// <summary>Processor time charged so far, nanoseconds.</summary>
    public long UsedNs => Volatile.Read(ref _usedNs);

    /// <summary>Times that work had to wait because the share was used up.</summary>
    public long Pauses => Volatile.Read(ref _pauses);

    /// <summary>Work begins on the calling thread.</summary>
    public void Begin() => _chargedAt = _clock.ThreadCpuNs;

    /// <summary>Charges what was used since <see cref="Begin"/> or the last call. False when the share is used up: stop, and wait for
    /// <see cref="WaitNs"/>.</summary>
    public bool MayGoOn()
    {
        long now = _clock.ThreadCpuNs, used = now - _chargedAt;
        _chargedAt = now;
        _usedNs += used;
        if (Percent == 100)
            return true;
        _budgetNs -= used;
        Fill();
        return _budgetNs > 0;
    }

    /// <summary>Nanoseconds until work may begin again; 0 when it may now.</summary>
    public long WaitNs()
    {
        if (Percent == 100)
            return 0;
        Fill();
        if (_budgetNs > 0)
            return 0;
        _pauses++;
        // A tenth of a burst beyond zero, so that the thread is not woken for every few microseconds of work.
        return (BurstNs / 10 - _budgetNs) * 100 / Percent;
    }

    private void Fill()
    {
        long now = _clock.WallNs;
        _budgetNs = Math.Min(BurstNs, _budgetNs + (now - _filledAt) * Percent / 100);
        _filledAt = now;
    }
}

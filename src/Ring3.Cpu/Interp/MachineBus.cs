using System.Diagnostics;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// The bus of a machine, which a locked access across a cache line takes for itself: every other processor stays outside the guest until it is released. A
/// locked instruction of the host would do the same to the whole host,
/// and hosts with split-lock detection answer it with a signal or a pause of many milliseconds (SPEC: SDM volume 3, "Bus-Lock Detection"; Linux
/// Documentation/arch/x86/buslock.rst), so none is ever made.
/// </summary>
/// <remarks>
/// No processor waits for one that waits for it: who waits for the bus counts as stopped and keeps its epoch, who is about to enter the guest has no epoch, who
/// leaves needs nothing of the bus. A holder that cannot have
/// the others within <see cref="PatienceMs"/> (a host thread that gets no processor, a page fault that a client handles) gives the bus back, and leaves the
/// guest if it has been asked to, so kicks are late by that at most.
/// After each use the bus rests for as long as it was held: others get their turn even between endless split locks.
/// SAFETY: the word lies in a pinned array that lives as long as the machine.
/// </remarks>
public sealed unsafe partial class Machine
{
    private const int PatienceMs = 20, Looks = 1000;

    private enum BusWord
    {
        Free = 0,
        Taken = 1,
        /// <summary>Processors sleep until it is free.</summary>
        Awaited = 2,
    }

    private readonly RankedLock _busLock = new(LockRank.MachineBus);
    private readonly int[] _busMemory = GC.AllocateArray<int>(1, pinned: true);
    private long _busTakenAt, _busRestsUntil;

    /// <summary>Times a processor had the bus for itself.</summary>
    public ulong BusLocks { get; private set; }

    /// <summary>No processor may enter the guest.</summary>
    internal bool IsBusTaken => Volatile.Read(ref _busMemory[0]) != (int)BusWord.Free;

    /// <summary>
    /// Takes the bus for a processor inside the guest; all others are outside it until <see cref="ReleaseBus"/>. False: the processor has been asked to leave
    /// the guest, and must without touching it.
    /// </summary>
    internal bool TakeBus(LogicalProcessor p)
    {
        // From here on the processor is as good as stopped for a holder.
        Interlocked.Exchange(ref p.AtBus, 1);
        while (true)
        {
            if (!_busLock.TryEnter(PatienceMs))
            {
                if (p.IsExitRequested)
                    return false;
                continue;
            }
            if (Rest(p) && StopOthers(p))
            {
                // Only the holder looks at AtBus, and that is this processor now.
                p.AtBus = 0;
                BusLocks++;
                return true;
            }
            bool leave = p.IsExitRequested;
            FreeBus();
            if (leave)
                return false;
        }
    }

    internal void ReleaseBus() => FreeBus();

    private void FreeBus()
    {
        if (IsBusTaken)
        {
            long now = Stopwatch.GetTimestamp();
            _busRestsUntil = now + (now - _busTakenAt);
            if (Interlocked.Exchange(ref _busMemory[0], (int)BusWord.Free) == (int)BusWord.Awaited)
                fixed (int* word = _busMemory)
                    Futex.Wake(word);
        }
        _busLock.Exit();
    }

    /// <summary>A processor outside its epoch waits until the bus is free.</summary>
    internal void AwaitBus()
    {
        for (int look = Looks; look > 0 && IsBusTaken; look--)
            Thread.SpinWait(1);
        fixed (int* word = _busMemory)
            while (true)
            {
                int seen = Interlocked.CompareExchange(ref *word, (int)BusWord.Awaited, (int)BusWord.Taken);
                if (seen == (int)BusWord.Free)
                    return;
                Futex.Wait(word, (int)BusWord.Awaited);
            }
    }

    /// <summary>Spins, then sleeps: a processor that yields gives a whole time slice away each time.</summary>
    private static void Pause(int looks)
    {
        if (looks < Looks)
        {
            Thread.SpinWait(1);
            return;
        }
        // Nobody wakes it: a sleep with a bound.
        int never = 0;
        Futex.Wait(&never, 0, 50_000);
    }

    /// <summary>False: the processor has been asked to leave.</summary>
    private bool Rest(LogicalProcessor p)
    {
        if (Processors.Length == 1)
            return true;
        int looks = 0;
        while (Stopwatch.GetTimestamp() < _busRestsUntil)
        {
            if (p.IsExitRequested)
                return false;
            Pause(looks++);
        }
        return true;
    }

    /// <summary>Returns with every other processor outside the guest or waiting for the bus. False: one took too long.</summary>
    private bool StopOthers(LogicalProcessor p)
    {
        _busTakenAt = Stopwatch.GetTimestamp();
        // PAIRS-WITH: CreateProcessor (the new array, a barrier, then LogicalProcessor.Enter reads the word).
        Interlocked.Exchange(ref _busMemory[0], (int)BusWord.Taken);
        ReadOnlySpan<LogicalProcessor> all = Processors;
        if (all.Length == 1)
            return true;
        // PAIRS-WITH: LogicalProcessor.Enter (epoch, then this word): the barrier orders its two accesses as well.
        Interlocked.MemoryBarrierProcessWide();
        foreach (LogicalProcessor other in all)
            if (other != p && !other.IsStopped)
                other.RequestExit();
        long deadline = _busTakenAt + Stopwatch.Frequency * PatienceMs / 1000;
        foreach (LogicalProcessor other in all)
        {
            int looks = 0;
            while (other != p && !other.IsStopped)
            {
                if (Stopwatch.GetTimestamp() > deadline)
                    return false;
                Pause(looks++);
            }
        }
        return true;
    }
}

using System.Diagnostics;

namespace Ring3.Fuzz;

/// <summary>One kind of hostile run.</summary>
internal interface IHostileRun : IDisposable
{
    /// <summary>
    /// Runs once; everything random comes from <paramref name="random"/>. Returns how the guest ended, for the statistics. Throws when the hypervisor
    /// misbehaved.
    /// </summary>
    string Once(Random random);

    /// <summary>Gets a run out of the guest. Any thread.</summary>
    void Kick();

    /// <summary>Gives back what the runs so far hold, so that memory can be compared.</summary>
    void Recycle();
}

/// <summary>Runs a target many times with a watchdog, and checks that memory stays flat.</summary>
internal sealed class Campaign(IHostileRun target, string name, long seed)
{
    private const int KickAfterMs = 3, HangAfterMs = 20_000, LeakLimitMiB = 96, RunsPerCycle = 500;

    /// <summary>FUZZ_TRACE=1 prints each run's number, to find one that ends the process.</summary>
    private readonly bool _trace = Environment.GetEnvironmentVariable("FUZZ_TRACE") is not null;
    /// <summary>FUZZ_WAIT=1 keeps a process that hangs, for a debugger.</summary>
    private readonly bool _wait = Environment.GetEnvironmentVariable("FUZZ_WAIT") is not null;
    private readonly Dictionary<string, long> _endings = [];
    private long _run;
    private long _startedAt;

    /// <summary>
    /// Returns 0, or 1 after a finding. A hang ends the process with status 1 from the watchdog; a crash is a finding by the process's own status, with
    /// the run's number on standard output.
    /// </summary>
    public int Execute(long runs, long only)
    {
        long first = only >= 0 ? only : 0, end = only >= 0 ? only + 1 : runs, baseline = 0;
        Thread watchdog = new(Watch) { IsBackground = true };
        watchdog.Start();
        Stopwatch clock = Stopwatch.StartNew();
        for (_run = first; _run < end; _run++)
        {
            if (!Once())
                return 1;
            if ((_run + 1) % RunsPerCycle != 0)
                continue;
            target.Recycle();
            // Where the host's caches are large the runtime lets that much garbage lie.
            GC.Collect();
            long resident = Environment.WorkingSet >> 20;
            if (_run + 1 == 2 * RunsPerCycle)
                baseline = resident;
            if (baseline != 0 && resident > baseline + LeakLimitMiB)
            {
                Console.WriteLine($"fuzz {name}: leak: {resident} MiB resident after run {_run}, {baseline} MiB after run {2 * RunsPerCycle}; seed {seed}");
                return 1;
            }
        }
        target.Dispose();
        Console.WriteLine($"fuzz {name}: {end - first} runs with seed {seed} in {clock.Elapsed.TotalSeconds:F1} s, no finding; endings: "
            + string.Join(", ", _endings.OrderByDescending(e => e.Value).Select(e => $"{e.Key} {e.Value}")));
        return 0;
    }

    private bool Once()
    {
        try
        {
            if (_trace)
                Console.WriteLine($"run {_run}");
            Volatile.Write(ref _startedAt, Stopwatch.GetTimestamp());
            string ending = target.Once(new Random(SeedOf(_run)));
            Volatile.Write(ref _startedAt, 0);
            _endings[ending] = _endings.GetValueOrDefault(ending) + 1;
            return true;
        }
        catch (Exception e)
        {
            Console.WriteLine($"fuzz {name}: run {_run} with seed {seed}: {e}");
            Console.WriteLine($"again: Ring3.Fuzz {name} --seed {seed} --only {_run}");
            return false;
        }
    }

    /// <summary>Not HashCode, which is another in each process: a run comes again by its number.</summary>
    private int SeedOf(long run) => unchecked((int)((ulong)((seed * 0x1_0000_0001) ^ run) * 0x9e37_79b9_7f4a_7c15 >> 32));

    /// <summary>Kicks a run that takes its time, as a user who quits would; one that does not react is a hang.</summary>
    private void Watch()
    {
        using PeriodicTimer tick = new(TimeSpan.FromMilliseconds(1));
        while (tick.WaitForNextTickAsync().AsTask().Result)
        {
            long since = Volatile.Read(ref _startedAt);
            if (since == 0)
                continue;
            double ms = Stopwatch.GetElapsedTime(since).TotalMilliseconds;
            if (ms > KickAfterMs)
                target.Kick();
            if (ms < HangAfterMs)
                continue;
            Console.WriteLine($"fuzz {name}: hang in run {_run} with seed {seed}; again: Ring3.Fuzz {name} --seed {seed} --only {_run}");
            Console.WriteLine($"in: {target}");
            if (_wait)
                Thread.Sleep(Timeout.Infinite);
            Environment.Exit(1);
        }
    }
}

using System.Diagnostics;
using System.Globalization;
using System.Numerics;
using Ring3.Mmu;

namespace Ring3.Bench;

/// <summary>
/// <c>bench age</c>: aging passes over 16 GiB of 4-KiB mappings while two vCPUs write to them and fault. Times are wall-clock medians of passes that
/// alternate with each other. See docs/aging.md for what is compared and how the loss of
/// throughput is measured.
/// </summary>
internal static class AgeBench
{
    private const int Passes = 7, Windows = 10, LockedWindows = 5;
    private const ulong SamplePages = AgeGuest.Pages / 16;
    /// <summary>Time between two passes, and length of a window of <see cref="Loss"/>.</summary>
    private static readonly TimeSpan s_interval = TimeSpan.FromSeconds(1);

    internal static int Run()
    {
        long start = Stopwatch.GetTimestamp();
        using AgeGuest guest = new();
        Print("age.populate_s", Stopwatch.GetElapsedTime(start).TotalSeconds, "s");
        ulong[] bitmap = new ulong[AgeGuest.Pages / 64];
        // Twice, so that the code is compiled; then with nobody running: no table has been walked.
        Lockless(guest, bitmap);
        Lockless(guest, bitmap);
        Print("age.idle_ms", Best(() => Lockless(guest, bitmap)), "ms");
        Array.Clear(bitmap);

        guest.Start();
        using var unmapper = new Unmapper(guest);
        Compare(guest, bitmap);
        Loss(guest, bitmap);
        return 0;
    }

    private static void Lockless(AgeGuest guest, ulong[] bitmap)
    {
        if (!guest.Mmu.TestClearYoung(0, AgeGuest.Pages, bitmap))
            throw new InvalidOperationException("not handled");
    }

    private static void Compare(AgeGuest guest, ulong[] bitmap)
    {
        double[] free = new double[Passes], locked = new double[Passes], scanLocked = new double[Passes], pageFree = new double[Passes],
            pageLocked = new double[Passes];
        double young = 0;
        for (int i = 0; i < Passes; i++)
        {
            free[i] = Pass(bitmap, () => Lockless(guest, bitmap));
            young += bitmap.Sum(w => (long)BitOperations.PopCount(w));
            locked[i] = Pass(bitmap, () => guest.Mmu.TestClearYoungLocked(0, AgeGuest.Pages, bitmap));
            // The lockless pass with the lock held around it: what the vectors and the skipped tables alone are worth.
            scanLocked[i] = Pass(bitmap, () =>
            {
                using var _ = guest.Lock.Write();
                Lockless(guest, bitmap);
            });
            // One call for each page, as page_idle and Linux's multi-gen LRU call the notifier; a sixteenth of the pages.
            pageFree[i] = 16 * Pass(bitmap, () => { for (ulong gfn = 0; gfn < SamplePages; gfn++) guest.Mmu.TestClearYoung(gfn, gfn + 1,
                bitmap.AsSpan((int)(gfn / 64))); });
            pageLocked[i] = 16 * Pass(bitmap, () => { for (ulong gfn = 0; gfn < SamplePages; gfn++) guest.Mmu.TestClearYoungLocked(gfn, gfn + 1,
                bitmap.AsSpan((int)(gfn / 64))); });
        }
        Print("age.young_pct", 100 * young / Passes / AgeGuest.Pages, "%");
        Print("age.lockfree_ms", Median(free), "ms");
        Print("age.locked_ms", Median(locked), "ms");
        Print("age.lockfree_page_ns", Median(free) * 1e6 / AgeGuest.Pages, "ns");
        Print("age.locked_page_ns", Median(locked) * 1e6 / AgeGuest.Pages, "ns");
        Print("age.locked_scan_ms", Median(scanLocked), "ms");
        Print("age.by_page_lockfree_ms", Median(pageFree), "ms");
        Print("age.by_page_locked_ms", Median(pageLocked), "ms");
        Print("age.by_page_lockfree_vs_locked", Median(pageLocked) / Median(pageFree), "x");
        Print("age.lockfree_vs_locked", Median(locked) / Median(free), "x");
    }

    /// <summary>Lets pages become young, then times a pass.</summary>
    private static double Pass(ulong[] bitmap, Action pass)
    {
        Thread.Sleep(s_interval / 4);
        Array.Clear(bitmap);
        long start = Stopwatch.GetTimestamp();
        pass();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    }

    /// <summary>
    /// Windows with one pass each alternate with windows without. A vCPU's throughput is what its guest has done for each second of processor time of
    /// its thread: the time that the aging thread takes from the two processors is not the guest's
    /// loss, it is printed apart.
    /// </summary>
    private static void Loss(AgeGuest guest, ulong[] bitmap)
    {
        foreach (bool locked in (bool[])[false, true])
        {
            int windows = locked ? LockedWindows : Windows;
            double[] perCpuTime = new double[windows], perWallTime = new double[windows];
            double busy = 0;
            for (int i = 0; i < windows; i++)
            {
                (double cpu, double wall) without = Window(guest, () => { });
                (double cpu, double wall) with = Window(guest, () =>
                {
                    long start = Stopwatch.GetTimestamp();
                    if (locked)
                        guest.Mmu.TestClearYoungLocked(0, AgeGuest.Pages, bitmap);
                    else
                        Lockless(guest, bitmap);
                    busy += Stopwatch.GetElapsedTime(start).TotalSeconds;
                });
                perCpuTime[i] = 100 * (1 - with.cpu / without.cpu);
                perWallTime[i] = 100 * (1 - with.wall / without.wall);
            }
            string prefix = locked ? "age.locked_" : "age.";
            Print(prefix + "pass_share_pct", 100 * busy / (windows * s_interval.TotalSeconds), "%");
            Print(prefix + "vcpu_wall_loss_pct", Median(perWallTime), "%");
            Print(prefix + "vcpu_loss_pct", Median(perCpuTime), "%");
        }
    }

    /// <summary>Rounds of both vCPUs for each second of their threads' processor time, and for each second.</summary>
    private static (double PerCpuSecond, double PerSecond) Window(AgeGuest guest, Action pass)
    {
        Span<ulong> rounds = stackalloc ulong[AgeGuest.Cpus];
        Span<long> times = stackalloc long[AgeGuest.Cpus];
        for (int i = 0; i < AgeGuest.Cpus; i++)
            (rounds[i], times[i]) = (guest.Rounds(i), guest.CpuTimeNs(i));
        long start = Stopwatch.GetTimestamp();
        pass();
        TimeSpan rest = s_interval - Stopwatch.GetElapsedTime(start);
        if (rest > TimeSpan.Zero)
            Thread.Sleep(rest);
        double seconds = Stopwatch.GetElapsedTime(start).TotalSeconds, perCpu = 0, done = 0;
        for (int i = 0; i < AgeGuest.Cpus; i++)
        {
            double n = guest.Rounds(i) - rounds[i];
            perCpu += n / (guest.CpuTimeNs(i) - times[i]);
            done += n;
        }
        return (perCpu, done / seconds);
    }

    private static double Best(Action pass) => Enumerable.Range(0, 5).Min(_ =>
    {
        long start = Stopwatch.GetTimestamp();
        pass();
        return Stopwatch.GetElapsedTime(start).TotalMilliseconds;
    });

    private static double Median(double[] values)
    {
        Array.Sort(values);
        return values[values.Length / 2];
    }

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));

    /// <summary>Unmaps the window again and again, so that the vCPUs keep faulting under mmu_lock.</summary>
    private sealed class Unmapper : IDisposable
    {
        private readonly Thread _thread;
        private volatile bool _stop;

        public Unmapper(AgeGuest guest)
        {
            _thread = new Thread(() =>
            {
                while (!_stop)
                {
                    Thread.Sleep(20);
                    guest.Mmu.ZapGfnRange(AgeGuest.WindowGfn, AgeGuest.WindowGfn + AgeGuest.WindowPages);
                }
            });
            _thread.Start();
        }

        public void Dispose()
        {
            _stop = true;
            _thread.Join();
        }
    }
}

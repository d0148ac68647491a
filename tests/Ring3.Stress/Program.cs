using System.Diagnostics;
using System.Globalization;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Tests.Shared;

namespace Ring3.Stress;

/// <summary>
/// Hostile guests against a busy host: several vCPUs flip page tables, CR3 and PCIDs at full speed while the host deletes and moves slots, moves memory
/// under the guest, ages, logs writes and collects the logs. Runs in rounds of a few
/// seconds, each with its own machine and settings, all from one seed; about one in four (with --resident: all) keeps the guest's memory within a
/// resident limit. Fails on a violation of the TLB rules, a lost page or write, a write that no dirty log has, an inconsistent table, or memory that
/// grows.
/// </summary>
internal static class Program
{
    private const string Usage =
        "usage: Ring3.Stress [--seconds N] [--seed S] [--round N] [--cpus N] [--check on|off|mixed] [--resident] [--storm] [--verbose]";

    private static int Main(string[] args)
    {
        long seconds = 60, seed = 1, only = -1, cpus = 0;
        string check = "mixed";
        bool verbose = false, storm = false, resident = false;
        for (int i = 0; i < args.Length; i++)
        {
            if (args[i] == "--verbose")
            {
                verbose = true;
                continue;
            }
            if (args[i] == "--storm")
            {
                storm = true;
                continue;
            }
            if (args[i] == "--resident")
            {
                resident = true;
                continue;
            }
            if (++i == args.Length)
                return Fail(Usage);
            if (args[i - 1] == "--check" && args[i] is "on" or "off" or "mixed")
                check = args[i];
            else if (!long.TryParse(args[i], CultureInfo.InvariantCulture, out long value) || value < 0)
                return Fail(Usage);
            else
                switch (args[i - 1])
                {
                    case "--seconds": seconds = value; break;
                    case "--seed": seed = value; break;
                    case "--round": only = value; break;
                    case "--cpus" when value is > 0 and <= Layout.MaxCpus: cpus = value; break;
                    default: return Fail(Usage);
                }
        }
        if (storm)
            return Storm(seconds, seed, (int)(cpus != 0 ? cpus : 3));
        var watch = Stopwatch.StartNew();
        var growth = new GrowthWatch();
        var total = new Tally();
        long round = Math.Max(only, 0);
        do
        {
            var settings = Settings.Of(seed, round, check, (int)cpus, resident);
            using var machine = new StressMachine(settings);
            string? failure = machine.Run(Math.Min(settings.Seconds, Math.Max(2, seconds - watch.Elapsed.TotalSeconds)), total) ?? growth.Sample(settings);
            if (verbose || failure is not null)
                Console.WriteLine($"round {round}: {settings}; {machine.Summary}; resident {GrowthWatch.ResidentMiB()} MiB");
            if (failure is not null)
                return Fail($"FAIL seed {seed} round {round} ({settings}): {failure}\nrepeat: Ring3.Stress --seed {seed} --round {round}"
                    + $" --seconds {settings.Seconds} --check {check}{(resident ? " --resident" : "")}{(cpus != 0 ? $" --cpus {cpus}" : "")}");
            round++;
        }
        while (only < 0 && watch.Elapsed.TotalSeconds < seconds);
        Console.WriteLine($"stress: seed {seed}, {(only < 0 ? round : 1)} rounds in {watch.Elapsed.TotalSeconds:F0} s; {total};"
            + $" resident {GrowthWatch.ResidentMiB()} MiB; no violation, nothing lost");
        return 0;
    }

    /// <summary>Slots are added, moved and deleted under running guests, phase by phase, with every policy of zapping in turn.</summary>
    private static int Storm(long seconds, long seed, int cpus)
    {
        var watch = Stopwatch.StartNew();
        long round = 0, changes = 0, roots = 0;
        for (; watch.Elapsed.TotalSeconds < seconds; round++)
        {
            int s = unchecked((int)(seed * 7919 + round));
            var policy = (RootZapPolicy)(round % 3);
            using var machine = new SlotStorm(s, cpus, policy, zapShare: round % 4 == 0 ? 3 : 50, zapAll: round % 5 != 0, (DirtyTracking)(round % 4));
            if (machine.Run(1, 200) is { } failure)
                return Fail($"FAIL storm seed {seed} round {round} (policy {policy}): {failure}");
            changes += machine.Counts.Changes;
            roots += machine.Counts.RootsZapped;
        }
        Console.WriteLine($"storm: seed {seed}, {round} rounds in {watch.Elapsed.TotalSeconds:F0} s; {changes} slot changes,"
            + $" {roots} roots zapped; invariants held after every phase");
        return 0;
    }

    private static int Fail(string message)
    {
        Console.Error.WriteLine(message);
        return message == Usage ? 2 : 1;
    }
}

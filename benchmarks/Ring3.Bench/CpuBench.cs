using System.Diagnostics;
using System.Globalization;

namespace Ring3.Bench;

/// <summary>
/// <c>bench cpu</c>: the kernels on the software machine, as a process, and under QEMU TCG when it is installed. Processor time for the same
/// iterations; start-up is subtracted by running two sizes.
/// Prints cpu.KERNEL.mips (guest instructions a second), .vs_native and .vs_tcg (times slower; below 1 = faster).
/// </summary>
internal static class CpuBench
{
    /// <summary>Processor seconds that the larger run should take.</summary>
    private const double Target = 0.8;

    internal static int Run(string[] names)
    {
        foreach (string unknown in names.Except(Guests.Names))
        {
            Console.Error.WriteLine($"bench: no kernel '{unknown}': {string.Join(' ', Guests.Names)}");
            return 2;
        }
        if (names.Length == 0)
            names = Guests.Names;
        Guests.Build(names);
        if (!Guests.HasQemu)
            Console.Error.WriteLine("bench: qemu-system-x86_64 is not installed: no comparison with TCG (Debian package qemu-system-x86)");
        foreach (string name in names)
            Kernel(name);
        return 0;
    }

    private static void Kernel(string name)
    {
        ulong retired = 0;
        double Machine(long iterations)
        {
            using var guest = new FlatGuest(Guests.Image(name), iterations);
            TimeSpan start = Process.GetCurrentProcess().TotalProcessorTime;
            retired = guest.Run();
            return (Process.GetCurrentProcess().TotalProcessorTime - start).TotalSeconds;
        }

        (double ring3, long small, long large) = PerIteration(Machine);
        Machine(small);
        ulong few = retired;
        Machine(large);
        double perIteration = (retired - few) / (double)(large - small);
        Print(name, "mips", perIteration / ring3 / 1e6, "Minstr/s");
        (double native, _, _) = PerIteration(n => Guests.Native(name, n));
        Print(name, "vs_native", ring3 / native, "x");
        if (Guests.HasQemu)
        {
            (double tcg, _, _) = PerIteration(n => Guests.Tcg(name, n));
            Print(name, "vs_tcg", ring3 / tcg, "x");
        }
    }

    /// <summary>Seconds for one iteration: sizes grow until the difference of two runs is long enough to mean something; best of three.</summary>
    private static (double Seconds, long Small, long Large) PerIteration(Func<long, double> run)
    {
        run(1);
        double start = run(1);
        long small = 1, large = 8;
        double elapsed = run(large);
        while (elapsed - start < Target / 4 && large < 1L << 40)
        {
            large *= elapsed - start < Target / 40 ? 8 : 3;
            elapsed = run(large);
        }
        double each = Math.Max(elapsed - start, 1e-6) / (large - small);
        large = Math.Max(large, (long)(Target / each));
        double best = double.MaxValue;
        for (int round = 0; round < 3; round++)
            best = Math.Min(best, (run(large) - run(small)) / (large - small));
        return (best, small, large);
    }

    private static void Print(string kernel, string what, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"cpu.{kernel}.{what}\t{value:G4}\t{unit}"));
}

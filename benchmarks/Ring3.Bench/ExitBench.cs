using System.Diagnostics;
using System.Globalization;

namespace Ring3.Bench;

/// <summary>
/// <c>bench exit</c>: one port write of the guest, from <see cref="VirtualCpu.Run"/> to its return and in again. exit.pio_ns is the best of several
/// rounds, exit.pio_bytes the managed bytes allocated for each.
/// </summary>
internal static class ExitBench
{
    private const int Exits = 500_000, Rounds = 7;

    internal static int Run()
    {
        using VirtualMachine machine = VirtualMachine.Create();
        machine.MapMemory(0, 1 << 20);
        machine.Memory.Write(0x1000, [0xe6, 0x80, 0xeb, 0xfc]); // again: out 0x80, al; jmp again
        VirtualCpu cpu = machine.CreateCpu();
        cpu.StartInRealMode(0x1000);
        Round(cpu);
        double best = double.MaxValue;
        long allocated = GC.GetAllocatedBytesForCurrentThread();
        for (int round = 0; round < Rounds; round++)
            best = Math.Min(best, Round(cpu));
        allocated = GC.GetAllocatedBytesForCurrentThread() - allocated;
        Print("exit.pio_ns", best * 1e9 / Exits, "ns");
        Print("exit.pio_bytes", allocated / (double)(Exits * Rounds), "B");
        return 0;
    }

    private static double Round(VirtualCpu cpu)
    {
        long start = Stopwatch.GetTimestamp();
        for (int n = 0; n < Exits; n++)
        {
            if (cpu.Run() is not { Kind: CpuExitKind.PortWrite, Port: 0x80 })
                throw new InvalidOperationException("unexpected exit");
        }
        return Stopwatch.GetElapsedTime(start).TotalSeconds;
    }

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));
}

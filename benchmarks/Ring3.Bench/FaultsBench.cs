using System.Diagnostics;
using System.Globalization;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Bench;

/// <summary>
/// <c>bench faults</c>: vCPUs touch pages of memory that the host has and the VM does not map, in 4 KiB mappings. faults.per_s_N: faults a second of
/// each of N vCPUs, by elapsed time; faults.scaling is the second over the first.
/// faults.cpu_ns_N: processor time of a fault, guest instruction, walk, exit and entry included. Rounds are short and start together, and the best
/// counts: in it no vCPU has lost its host processor, even on a busy machine.
/// </summary>
internal static class FaultsBench
{
    private const uint Share = 8192;
    private const ulong Bytes = 2 * Share * 4096;
    private const int Rounds = 600;

    internal static unsafe int Run()
    {
        using GuestRam ram = new(Bytes);
        // SAFETY: the memory lives until the end.
        new Span<byte>(ram.Pointer, (int)Bytes).Fill(1);
        (double perSecond1, double ns1) = Measure(ram, 1);
        (double perSecond2, double ns2) = Measure(ram, 2);
        Print("faults.per_s_1", perSecond1, "1/s");
        Print("faults.per_s_2", perSecond2, "1/s");
        Print("faults.scaling", perSecond2 / perSecond1, "x");
        Print("faults.cpu_ns_1", ns1, "ns");
        Print("faults.cpu_ns_2", ns2, "ns");
        return 0;
    }

    /// <summary>Every vCPU faults its own half of the memory, so that one and two vCPUs do the same each.</summary>
    private static (double PerSecond, double CpuNs) Measure(GuestRam ram, int vcpus)
    {
        using var guest = new WriterGuest(new VmOptions(), vcpus, Bytes, ram.Hva);
        guest.Vm.Mmu.MaxLevel = PgLevel.Level4K;
        double[] rate = new double[vcpus], cpu = new double[vcpus];
        double perSecond = 0, ns = double.MaxValue;
        int arrived = 0;
        // Everybody waits in a loop: who has arrived is running, so all begin at the same moment.
        void Meet(int target)
        {
            Interlocked.Increment(ref arrived);
            while (Volatile.Read(ref arrived) < target)
                Thread.SpinWait(1);
        }

        void Work(int i)
        {
            for (int round = 0, meeting = 0; round < Rounds; round++)
            {
                if (i == 0)
                    guest.Vm.Mmu.ZapGfnRange(WriterGuest.Base >> 12, (WriterGuest.Base >> 12) + 2 * Share);
                Meet(++meeting * vcpus);
                long began = Stopwatch.GetTimestamp();
                cpu[i] = guest.Touch(i, (uint)i * Share, Share) / (double)Share;
                rate[i] = Share / Stopwatch.GetElapsedTime(began).TotalSeconds;
                Meet(++meeting * vcpus);
                if (i != 0)
                    continue;
                perSecond = Math.Max(perSecond, rate.Average());
                ns = Math.Min(ns, cpu.Average());
            }
        }

        Thread[] threads = [.. Enumerable.Range(0, vcpus).Select(i => new Thread(() => Work(i)))];
        Array.ForEach(threads, static t => t.Start());
        Array.ForEach(threads, static t => t.Join());
        return (perSecond, ns);
    }

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));
}

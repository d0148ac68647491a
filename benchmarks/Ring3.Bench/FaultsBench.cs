using System.Diagnostics;
using System.Globalization;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Bench;

/// <summary>
/// <c>bench faults</c>: vCPUs touch pages of memory that the host has and the VM does not map, in 4 KiB mappings. faults.per_s_N: faults a second of each of N vCPUs, by elapsed time, best round.
/// faults.cpu_ns_N: processor time of a fault, guest instruction, walk, exit and entry included, which a busy machine changes less; faults.scaling is the second over the first.
/// </summary>
internal static class FaultsBench
{
    private const ulong Bytes = 1 << 30;
    private const uint Pages = (uint)(Bytes / 4096);
    private const int Rounds = 12;

    internal static unsafe int Run()
    {
        using GuestRam ram = new(Bytes);
        // SAFETY: two halves of the memory, which lives until the end.
        new Span<byte>(ram.Pointer, (int)(Bytes / 2)).Fill(1);
        new Span<byte>(ram.Pointer + Bytes / 2, (int)(Bytes / 2)).Fill(1);
        double perSecond1 = 0, perSecond2 = 0, ns1 = double.MaxValue, ns2 = double.MaxValue;
        using var one = new WriterGuest(new VmOptions(), 1, Bytes, ram.Hva);
        using var two = new WriterGuest(new VmOptions(), 2, Bytes, ram.Hva);
        one.Vm.Mmu.MaxLevel = two.Vm.Mmu.MaxLevel = PgLevel.Level4K;
        for (int round = 0; round < Rounds; round++)
        {
            Round(one, 1, ref perSecond1, ref ns1);
            Round(two, 2, ref perSecond2, ref ns2);
        }
        Print("faults.per_s_1", perSecond1, "1/s");
        Print("faults.per_s_2", perSecond2, "1/s");
        Print("faults.scaling", perSecond2 / perSecond1, "x");
        Print("faults.cpu_ns_1", ns1, "ns");
        Print("faults.cpu_ns_2", ns2, "ns");
        return 0;
    }

    /// <summary>Every vCPU faults its half of half the memory, so that one and two vCPUs do the same each.</summary>
    private static void Round(WriterGuest guest, int vcpus, ref double perSecond, ref double ns)
    {
        const uint share = Pages / 2;
        guest.Vm.Mmu.ZapGfnRange(WriterGuest.Base >> 12, (WriterGuest.Base >> 12) + Pages);
        using var start = new Barrier(vcpus);
        double[] rate = new double[vcpus], cpu = new double[vcpus];
        Thread[] threads = [.. Enumerable.Range(0, vcpus).Select(i => new Thread(() =>
        {
            start.SignalAndWait();
            long began = Stopwatch.GetTimestamp();
            cpu[i] = guest.Touch(i, (uint)i * share, share) / (double)share;
            rate[i] = share / Stopwatch.GetElapsedTime(began).TotalSeconds;
        }))];
        Array.ForEach(threads, static t => t.Start());
        Array.ForEach(threads, static t => t.Join());
        perSecond = Math.Max(perSecond, rate.Average());
        ns = Math.Min(ns, cpu.Average());
    }

    private static void Print(string name, double value, string unit) => Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));
}

using System.Diagnostics;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Bench;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Sync;

namespace Ring3.Mmu.Bench;

/// <summary>Figures of memory slots and the TDP MMU, one a line: name, value, unit. Best of several rounds.</summary>
internal static unsafe class Program
{
    private const ulong M = 1 << 20, G = 1 << 30, P = 4096;

    /// <summary>A VM without processors. Guest memory is only ever pointed to, so its size costs nothing.</summary>
    private sealed class Machine : IDisposable
    {
        public readonly MemorySlots Slots = new();
        public readonly WorkQueue Queue = new("worker");
        public readonly TdpMmu Tdp;
        public readonly VcpuMmu Vcpu;
        public readonly GuestRam Ram;

        public Machine(ulong bytes, ulong misalign, uint flags = 0, RootZapPolicy policy = RootZapPolicy.Worker)
        {
            Tdp = new TdpMmu(Slots, new NullHost(), Queue) { ZapPolicy = policy };
            Vcpu = new VcpuMmu(Tdp, new NullTlb());
            Ram = new GuestRam(bytes + misalign);
            Slots.SetRegion(0, flags, 0, bytes, Ram.Hva + misalign);
            Vcpu.LoadRoot();
        }

        public void FaultAll(ulong step, ulong bytes, AccessKind access = AccessKind.Write)
        {
            for (ulong gpa = 0; gpa < bytes; gpa += step)
                Tdp.Fault(Vcpu, gpa, access);
        }

        public void Dispose()
        {
            Vcpu.Dispose();
            Tdp.Dispose();
            Queue.Dispose();
            Ram.Dispose();
        }
    }

    private static void Main()
    {
        Print("rcu.section_ns", Best(5, 10_000_000, n => { for (long i = 0; i < n; i++) { Rcu.Enter(); Rcu.Exit(); } }), "ns");
        Print("rcu.synchronize_us", Best(3, 2000, n => { for (long i = 0; i < n; i++) Rcu.Synchronize(); }) / 1000, "us");
        Faults();
        Accessors();
        Slots();
        Aging();
        foreach (RootZapPolicy policy in new[] { RootZapPolicy.Inline, RootZapPolicy.Sync, RootZapPolicy.Worker })
            Zap(policy);
    }

    private static void Faults()
    {
        Print("fault.4k_ns", BestOf(5, () => { using var m = new Machine(G, P); return Time(() => m.FaultAll(P, G)) / (G / P); }), "ns");
        Print("fault.2m_ns", BestOf(5, () => { using var m = new Machine(64 * G, 2 * M) { }; m.Tdp.MaxLevel = 2; return Time(() =>
            m.FaultAll(2 * M, 64 * G)) / (64 * G / (2 * M)); }), "ns");
        using var machine = new Machine(256 * M, P, KvmApi.KVM_MEM_LOG_DIRTY_PAGES);
        machine.FaultAll(P, 256 * M);
        ulong[] bitmap = new ulong[256 * M / P / 64];
        double log = 0, fast = double.MaxValue;
        for (int i = 0; i < 5; i++)
        {
            fixed (ulong* b = bitmap)
            {
                ulong* pinned = b;
                log = Time(() => machine.Tdp.GetDirtyLog(0, (ulong)pinned)) / (256 * M / P);
            }
            fast = Math.Min(fast, Time(() => machine.FaultAll(P, 256 * M, AccessKind.Write | AccessKind.Present)) / (256 * M / P));
        }
        Print("fault.fast_ns", fast, "ns");
        Print("fault.spurious_ns", BestOf(5, () => Time(() => machine.FaultAll(P, 256 * M)) / (256 * M / P)), "ns");
        Print("dirty_log.page_ns", log, "ns");
    }

    private static void Accessors()
    {
        using var m = new Machine(64 * M, 0);
        var memory = new GuestMemory(m.Slots);
        Print("guest.read8_ns", Best(5, 5_000_000, n => { for (long i = 0; i < n; i++) memory.TryRead((ulong)(i & 0xfffff) * 8, out ulong _); }), "ns");
        Print("guest.write8_ns", Best(5, 5_000_000, n => { for (long i = 0; i < n; i++) memory.TryWrite((ulong)(i & 0xfffff) * 8, (ulong)i); }), "ns");
    }

    private static void Slots()
    {
        using var m = new Machine(64 * M, 0);
        Print("slots.create_delete_us", Best(3, 300, n =>
        {
            for (long i = 0; i < n; i++)
            {
                m.Slots.SetRegion(1, 0, G, M, m.Ram.Hva);
                m.Slots.SetRegion(1, 0, 0, 0, 0);
                m.Vcpu.LoadRoot();
            }
        }) / 1000, "us");
        Print("slots.fill_32764_ms", BestOf(1, () =>
        {
            var slots = new MemorySlots();
            return Time(() => { for (uint i = 0; i < MemorySlots.UserSlots; i++) slots.SetRegion(i, 0, i * P, P, m.Ram.Hva); });
        }) / 1e6, "ms");
    }

    private static void Aging()
    {
        using var m = new Machine(G, P);
        m.FaultAll(P, G);
        ulong[] bitmap = new ulong[G / P / 64];
        Print("age.page_ns", BestOf(1, () => Time(() => m.Tdp.TestClearYoung(0, G / P, bitmap)) / (G / P)), "ns");
    }

    /// <summary>A root with 16 GiB of 4 KiB mappings becomes obsolete; its vCPU holds the last reference besides the zapper's.</summary>
    private static void Zap(RootZapPolicy policy)
    {
        const ulong size = 16 * G;
        string name = policy.ToString().ToLowerInvariant();
        double block = double.MaxValue, total = double.MaxValue;
        for (int i = 0; i < 3; i++)
        {
            using var m = new Machine(size, P, 0, policy);
            m.FaultAll(P, size);
            m.Tdp.TrimRoots();
            long start = Stopwatch.GetTimestamp();
            m.Vcpu.FreeRoots();
            m.Vcpu.LoadRoot();
            block = Math.Min(block, Stopwatch.GetElapsedTime(start).TotalMicroseconds);
            m.Queue.Drain();
            total = Math.Min(total, Stopwatch.GetElapsedTime(start).TotalMicroseconds);
        }
        Print($"zap.{name}.vcpu_blocked_us", block, "us");
        Print($"zap.{name}.total_us", total, "us");
        Print($"zap.{name}.rate", size / P / total, "Mpages/s");
    }

    private static double Time(Action body)
    {
        long start = Stopwatch.GetTimestamp();
        body();
        return Stopwatch.GetElapsedTime(start).TotalNanoseconds;
    }

    private static double Best(int rounds, long n, Action<long> body) => BestOf(rounds, () => Time(() => body(n)) / n);

    private static double BestOf(int rounds, Func<double> body)
    {
        double best = double.MaxValue;
        for (int i = 0; i < rounds; i++)
            best = Math.Min(best, body());
        return best;
    }

    private static void Print(string name, double value, string unit) => Console.WriteLine(FormattableString.Invariant($"mmu.{name}\t{value:0.##}\t{unit}"));
}

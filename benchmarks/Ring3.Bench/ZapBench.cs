using System.Diagnostics;
using System.Globalization;
using Ring3.Abi;
using Ring3.Arch;
using Ring3.Memory;
using Ring3.Mmu;
using Ring3.Sync;

namespace Ring3.Bench;

/// <summary>
/// <c>bench zap</c>: what becomes of a vCPU that drops the last reference of a root that maps 1 GiB, 64 GiB or 1 TiB with 4-KiB entries, in the three
/// ways to zap; the rate at which roots are zapped, where nothing tracks their leaves and where a
/// slot is logged by Dirty bits; and the memory that comes back. Slots of 1 GiB alias one GiB of host memory that is all zero page.
/// </summary>
internal static unsafe class ZapBench
{
    private const ulong G = 1 << 30, P = Page.Size;
    private static readonly (string Name, ulong Bytes, int Rounds)[] s_sizes = [("1g", G, 9), ("64g", 64 * G, 7), ("1t", 1024 * G, 3)];

    /// <summary>The memory side of a VM with one vCPU that never runs.</summary>
    private sealed class Subject : IDisposable
    {
        private readonly MemorySlots _slots = new();
        private readonly GuestRam _ram = new(G + P, hugePages: true);
        private readonly ulong _bytes;
        public readonly WorkQueue Queue = new("worker");
        public readonly TdpMmu Mmu;
        public readonly VcpuMmu Vcpu;

        public Subject(ulong bytes, RootZapPolicy policy, int share, bool logged = false)
        {
            _bytes = bytes;
            Queue.Share.Percent = share;
            _slots.DirtyTracking = DirtyTracking.DirtyScan;
            Mmu = new TdpMmu(_slots, new NullHost(), Queue) { ZapPolicy = policy };
            Vcpu = new VcpuMmu(Mmu, new NullTlb());
            // Off by a page, so that nothing but 4-KiB entries fits.
            for (ulong gpa = 0; gpa < bytes; gpa += G)
                if (_slots.SetRegion((uint)(gpa / G), logged ? KvmApi.KVM_MEM_LOG_DIRTY_PAGES : 0, gpa, G, _ram.Hva + P) != 0)
                    throw new InvalidOperationException("cannot add a slot");
            Queue.Start();
        }

        public void Populate()
        {
            if (!Vcpu.LoadRoot())
                throw new OutOfMemoryException();
            for (ulong gpa = 0; gpa < _bytes;)
                if (Mmu.PreFault(Vcpu, gpa, _bytes, out gpa) != MmuResult.Fixed)
                    throw new InvalidOperationException($"cannot map 0x{gpa:x}");
        }

        /// <summary>Sets D in every second leaf, as the processor does.</summary>
        public void Dirty() => Dirty((ulong*)Vcpu.RootHva, PgLevel.Root4);

        private static void Dirty(ulong* table, int level)
        {
            for (int i = 0; i < 512; i += level == PgLevel.Level4K ? 2 : 1)
                if ((table[i] & NestedPte.R) == 0)
                    continue;
                else if (level == PgLevel.Level4K)
                    table[i] |= NestedPte.D;
                else
                    Dirty((ulong*)(table[i] & NestedPte.Address), level - 1);
        }

        public ulong DirtyPages()
        {
            ulong n = 0;
            foreach (Memslot slot in _slots.Set(0).Slots)
                n += slot.DirtyBitmap!.Count();
            return n;
        }

        public double DeleteSlotUs()
        {
            long start = Stopwatch.GetTimestamp();
            _slots.SetRegion(0, 0, 0, 0, 0);
            return Us(start);
        }

        public void Dispose()
        {
            Vcpu.Dispose();
            Mmu.Dispose();
            Queue.Dispose();
            _ram.Dispose();
        }
    }

    private readonly record struct Drop(double BlockUs, double UnlinkUs, double TotalUs, double CpuUs, double ResidentMb, double LeftMb);

    internal static int Run()
    {
        // Code is compiled and its counters are warm before anything is measured.
        foreach (RootZapPolicy policy in Enum.GetValues<RootZapPolicy>())
            Measure(G, policy, 100);
        Drop largest = default;
        foreach (RootZapPolicy policy in new[] { RootZapPolicy.Inline, RootZapPolicy.Sync, RootZapPolicy.Worker })
        {
            string mode = policy.ToString().ToLowerInvariant();
            foreach ((string size, ulong bytes, int rounds) in s_sizes)
            {
                Drop[] drops = new Drop[rounds];
                for (int i = 0; i < rounds; i++)
                    drops[i] = Measure(bytes, policy, 100);
                double[] blocks = [.. drops.Select(d => d.BlockUs).Order()];
                Print($"zap.{mode}.block_us.{size}", blocks[rounds / 2], "us");
                Print($"zap.{mode}.block_worst_us.{size}", blocks[^1], "us");
                largest = drops[0];
            }
        }
        Rates(largest);
        Shares();
        Deletions();
        return 0;
    }

    /// <summary>The worker's run over 1 TiB, and the mail's case computed from it.</summary>
    private static void Rates(in Drop terabyte)
    {
        double entries = 1024 * G / P, tables = entries / 512;
        Print("zap.untracked_msptes", entries / terabyte.TotalUs, "M SPTEs/s");
        Print("zap.tracked_msptes", TrackedRate(), "M SPTEs/s");
        Print("zap.tables_resident_mb.1t", terabyte.ResidentMb, "MiB");
        Print("zap.tables_left_mb.1t", terabyte.LeftMb, "MiB");
        Print("zap.unlink_ns_per_table", terabyte.UnlinkUs * 1000 / tables, "ns");
        Print("zap.free_ns_per_table", (terabyte.TotalUs - terabyte.UnlinkUs) * 1000 / tables, "ns");
        // The last reference costs a queueing whatever the root maps; the worker's time grows with the number of tables: it unlinks each by its 64-byte
        // record, and gives them back to the host by chunks of 504.
        Print("zap.extrapolated_64t.block_us", terabyte.BlockUs, "us");
        Print("zap.extrapolated_64t.worker_s", 64 * terabyte.TotalUs / 1e6, "s");
        Print("zap.extrapolated_64t.bound_by_unlink_pct", 100 * terabyte.UnlinkUs / terabyte.TotalUs, "%");
        Print("zap.extrapolated_64t.bound_by_host_free_pct", 100 * (1 - terabyte.UnlinkUs / terabyte.TotalUs), "%");
    }

    /// <summary>The vCPU drops the last reference, the MMU has let go of its own before.</summary>
    private static Drop Measure(ulong bytes, RootZapPolicy policy, int share)
    {
        using var s = new Subject(bytes, policy, share);
        double before = ResidentMb();
        s.Populate();
        double resident = ResidentMb() - before;
        return DropLast(s) with { ResidentMb = resident, LeftMb = ResidentMb() - before };
    }

    private static Drop DropLast(Subject s)
    {
        s.Mmu.TrimRoots();
        long start = Stopwatch.GetTimestamp();
        s.Vcpu.FreeRoots();
        s.Vcpu.LoadRoot();
        double block = Us(start);
        while (s.Mmu.RootsZapped == 0)
            Thread.Sleep(0);
        double unlink = Us(start);
        s.Queue.Drain();
        return new Drop(block, unlink, Us(start), s.Queue.Share.UsedNs / 1e3, 0, 0);
    }

    private static double TrackedRate()
    {
        const ulong bytes = 64 * G;
        using var s = new Subject(bytes, RootZapPolicy.Worker, 100, logged: true);
        s.Populate();
        s.Dirty();
        Drop d = DropLast(s);
        if (s.DirtyPages() != bytes / P / 2)
            throw new InvalidOperationException("dirty pages were lost");
        return bytes / P / d.TotalUs;
    }

    /// <summary>What the worker takes of a processor when it may take a quarter: measured with its own CPU clock.</summary>
    private static void Shares()
    {
        const ulong bytes = 1024 * G;
        Drop d = Measure(bytes, RootZapPolicy.Worker, 25);
        Print("zap.share25.used_pct", 100 * d.CpuUs / d.TotalUs, "%");
        Print("zap.share25.msptes", bytes / P / d.TotalUs, "M SPTEs/s");
    }

    /// <summary>How long the deletion of a slot takes, which has to wait for the zap of the whole root.</summary>
    private static void Deletions()
    {
        foreach (RootZapPolicy policy in new[] { RootZapPolicy.Inline, RootZapPolicy.Sync, RootZapPolicy.Worker })
        {
            using var s = new Subject(64 * G, policy, 100);
            s.Populate();
            Print($"zap.{policy.ToString().ToLowerInvariant()}.delete_slot_us.64g", s.DeleteSlotUs(), "us");
        }
    }

    private static double ResidentMb()
    {
        string[] fields = File.ReadAllText("/proc/self/statm").Split(' ');
        return double.Parse(fields[1], CultureInfo.InvariantCulture) * Page.Size / (1 << 20);
    }

    private static double Us(long start) => Stopwatch.GetElapsedTime(start).TotalMicroseconds;

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));
}

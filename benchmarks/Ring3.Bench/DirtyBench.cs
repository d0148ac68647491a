using System.Diagnostics;
using System.Globalization;
using System.Numerics;
using Ring3.Abi;
using Ring3.Kvm;
using Ring3.Memory;
using Ring3.Mmu;
using static Ring3.Abi.KvmApi;

namespace Ring3.Bench;

/// <summary>
/// <c>bench dirty</c>: guest code writes 1 GiB at random; whenever it has made as many writes as there are pages, another thread takes the dirty log
/// beside it (so that the work is the same on a busy machine). dirty.MODE_slowdown is the
/// guest's processor time with logging over that without, for MODE bitmap, manual (protect) and ring with the tracking that is chosen automatically,
/// and MODE_scan and MODE_wp (write protection) beside it. none_4k_slowdown: without
/// logging, but in 4 KiB mappings, which every kind of logging needs. harvest_mpages: dirty pages reported in a second of the calls that report them.
/// </summary>
internal static unsafe class DirtyBench
{
    private const ulong Bytes = 1 << 30, Pages = Bytes / 4096;
    private const uint Step = (uint)Pages, Steps = 8, Writes = Step * Steps;
    private const int Rounds = 2, RingEntries = 65536;

    private enum Log { None, Bitmap, Manual, Ring }

    private sealed record Mode(string Name, Log Log, DirtyTracking Tracking)
    {
        public double CpuNs = double.MaxValue, WallNs = double.MaxValue;
        public double HarvestedPages, HarvestSeconds;
    }

    private static readonly Mode[] s_modes =
    [
        new("none", Log.None, default), new("none_4k", Log.None, default),
        new("bitmap", Log.Bitmap, DirtyTracking.Automatic), new("bitmap_scan", Log.Bitmap, DirtyTracking.DirtyScan),
            new("bitmap_wp", Log.Bitmap, DirtyTracking.WriteProtect),
        new("manual", Log.Manual, DirtyTracking.Automatic), new("manual_wp", Log.Manual, DirtyTracking.WriteProtect),
        new("ring", Log.Ring, DirtyTracking.Automatic), new("ring_wp", Log.Ring, DirtyTracking.WriteProtect),
    ];

    internal static int Run()
    {
        using GuestRam ram = new(Bytes);
        new Span<byte>(ram.Pointer, (int)(Bytes / 2)).Fill(1);
        new Span<byte>(ram.Pointer + Bytes / 2, (int)(Bytes / 2)).Fill(1);
        // Round by round, so that a disturbance of the machine meets all modes.
        for (int round = 0; round < Rounds; round++)
            foreach (Mode mode in s_modes)
                Measure(mode, ram);
        Mode none = s_modes[0];
        Print("dirty.write_ns", none.CpuNs / Writes, "ns");
        foreach (Mode mode in s_modes[1..])
        {
            Print($"dirty.{mode.Name}_slowdown", mode.CpuNs / none.CpuNs, "x");
            Print($"dirty.{mode.Name}_wall_slowdown", mode.WallNs / none.WallNs, "x");
            if (mode.Log != Log.None)
                Print($"dirty.{mode.Name}_harvest_mpages", mode.HarvestedPages / mode.HarvestSeconds / 1e6, "Mpages/s");
        }
        return 0;
    }

    private static void Measure(Mode mode, GuestRam ram)
    {
        using var guest = new WriterGuest(new VmOptions { DirtyTracking = mode.Tracking }, 1, Bytes, ram.Hva, 0, vm => Configure(vm, mode.Log));
        if (mode.Name == "none_4k")
            guest.Vm.Mmu.MaxLevel = PgLevel.Level4K;
        guest.Touch(0, 0, (uint)Pages);
        if (mode.Log != Log.None)
            WriterGuest.Check(guest.Vm.SetUserMemoryRegion(1, KVM_MEM_LOG_DIRTY_PAGES, WriterGuest.Base, Bytes, ram.Hva));
        using var harvester = new Harvester(guest.Vm, mode);
        uint seed = 1;
        // The first step finds everything clean; from then on it is what logging costs while it goes on.
        guest.WriteAtRandom(0, Step, ref seed, harvester.CollectAndWait);
        long start = Stopwatch.GetTimestamp();
        double cpu = 0;
        for (uint i = 0; i < Steps; i++)
        {
            harvester.Collect();
            cpu += guest.WriteAtRandom(0, Step, ref seed, harvester.CollectAndWait);
        }
        mode.WallNs = Math.Min(mode.WallNs, Stopwatch.GetElapsedTime(start).TotalNanoseconds);
        mode.CpuNs = Math.Min(mode.CpuNs, cpu);
    }

    private static void Configure(Vm vm, Log log)
    {
        var cap = new kvm_enable_cap { cap = KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2 };
        cap.args[0] = KVM_DIRTY_LOG_MANUAL_PROTECT_ENABLE;
        if (log == Log.Ring)
        {
            cap.cap = KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
            cap.args[0] = (ulong)(RingEntries * sizeof(kvm_dirty_gfn));
        }
        if (log is Log.Ring or Log.Manual)
            WriterGuest.Check(vm.EnableCap(cap));
    }

    /// <summary>The client's thread that takes the log.</summary>
    private sealed class Harvester : IDisposable
    {
        private readonly Vm _vm;
        private readonly Mode _mode;
        private readonly ulong[] _bitmap = GC.AllocateArray<ulong>((int)(Pages / 64), pinned: true);
        private readonly SemaphoreSlim _wanted = new(0), _collected = new(0);
        private int _waiting;
        private readonly Thread? _thread;
        private volatile bool _stop;
        private uint _fetch;

        public Harvester(Vm vm, Mode mode)
        {
            (_vm, _mode) = (vm, mode);
            if (mode.Log == Log.None)
                return;
            _thread = new Thread(Loop) { IsBackground = true };
            _thread.Start();
        }

        /// <summary>Has the log taken while the guest goes on; nothing to do while it is being taken.</summary>
        public void Collect()
        {
            if (_wanted.CurrentCount == 0)
                _wanted.Release();
        }

        /// <summary>The ring is full: the vCPU waits.</summary>
        public void CollectAndWait()
        {
            Volatile.Write(ref _waiting, 1);
            _wanted.Release();
            _collected.Wait();
        }

        private void Loop()
        {
            while (true)
            {
                _wanted.Wait();
                if (_stop)
                    return;
                bool waited = Interlocked.Exchange(ref _waiting, 0) != 0;
                if (_mode.Log == Log.Ring)
                    CollectRing();
                else
                    TakeBitmap();
                if (waited)
                    _collected.Release();
            }
        }

        private void TakeBitmap()
        {
            fixed (ulong* b = _bitmap)
            {
                long start = Stopwatch.GetTimestamp();
                WriterGuest.Check(_vm.GetDirtyLog(new kvm_dirty_log { slot = 1, dirty_bitmap = (ulong)b }));
                if (_mode.Log == Log.Manual)
                    WriterGuest.Check(_vm.ClearDirtyLog(new kvm_clear_dirty_log { slot = 1, num_pages = (uint)Pages, dirty_bitmap = (ulong)b }));
                _mode.HarvestSeconds += Stopwatch.GetElapsedTime(start).TotalSeconds;
            }
            foreach (ulong word in _bitmap)
                _mode.HarvestedPages += BitOperations.PopCount(word);
        }

        private void CollectRing()
        {
            // SAFETY: the ring lies behind kvm_run and lives as long as the vCPU.
            var ring = (kvm_dirty_gfn*)((byte*)_vm.Vcpus[0].KvmRun + KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
            long start = Stopwatch.GetTimestamp();
            for (; ; _fetch++)
            {
                kvm_dirty_gfn* e = &ring[_fetch % RingEntries];
                if (Volatile.Read(ref e->flags) != KVM_DIRTY_GFN_F_DIRTY)
                    break;
                Volatile.Write(ref e->flags, KVM_DIRTY_GFN_F_RESET);
            }
            _mode.HarvestedPages += _vm.ResetDirtyRings();
            _mode.HarvestSeconds += Stopwatch.GetElapsedTime(start).TotalSeconds;
        }

        public void Dispose()
        {
            _stop = true;
            _wanted.Release();
            _thread?.Join();
            _wanted.Dispose();
            _collected.Dispose();
        }
    }

    private static void Print(string name, double value, string unit) =>
        Console.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{name}\t{value:0.###}\t{unit}"));
}

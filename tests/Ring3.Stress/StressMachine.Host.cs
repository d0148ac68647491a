using System.Diagnostics;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Kvm;
using Ring3.Memory;
using static Ring3.Abi.KvmApi;

namespace Ring3.Stress;

// What the host does while the guests run.
internal sealed unsafe partial class StressMachine
{
    private const int RingEntries = 1024, LoggedRegion = 2, MaxTablePages = 4096;

    /// <summary>Taken for write by whoever takes memory away or moves it; for read by whoever touches data for the guest.</summary>
    private readonly ReaderWriterLockSlim _layout = new();
    private readonly Lock _harvestLock = new();
    /// <summary>Copy of the logged region, kept up to date through the dirty log alone.</summary>
    private readonly GuestRam _replica = new(Layout.RegionBytes);
    private readonly HashSet<ulong> _hostWrites = [];
    private readonly uint[] _fetch;
    private bool _logging;
    private long _peakTablePages;

    private static ulong GpaOfRegion(int region) => Layout.GpaOf((ulong)region * Layout.RegionPages);

    private uint FlagsOf(int region) => region == LoggedRegion && _logging ? KVM_MEM_LOG_DIRTY_PAGES : 0;

    private void CreateRegion(int region)
    {
        if (region == LoggedRegion)
            _logging = true;
        Check(_vm.SetUserMemoryRegion((uint)region + 1, FlagsOf(region), GpaOfRegion(region), Layout.RegionBytes, _regions[region].Hva));
        if (region == LoggedRegion)
            CopyAll();
    }

    /// <summary>After logging has begun: the replica starts from everything.</summary>
    private void CopyAll() => Buffer.MemoryCopy(_regions[LoggedRegion].Pointer, _replica.Pointer, Layout.RegionBytes, Layout.RegionBytes);

    private void Disturb(double seconds)
    {
        var random = new Random(_settings.Seed);
        var watch = Stopwatch.StartNew();
        while (!_stop && watch.Elapsed.TotalSeconds < seconds)
        {
            _operations++;
            int region = random.Next(Layout.Regions);
            switch (random.Next(12))
            {
                case 0: Locked(() => { if (_settings.Resident) Recreate(region); else Replace(region); }); break;
                case 1: Locked(() => MoveAway(region)); break;
                case 2 or 3 or 4: Locked(() => Evict(random, region)); break;
                case 5: Locked(ToggleLogging); break;
                case 6: _vm.Mmu.TrimRoots(); break;
                case 7:
                    int cpu = random.Next(_vcpus.Length);
                    Stop(cpu);
                    Start(cpu);
                    break;
                case 8:
                    if (region != LoggedRegion)
                        _vm.Mmu.SplitHugePages(GpaOfRegion(region) / Layout.Page, GpaOfRegion(region) / Layout.Page + Layout.RegionPages);
                    break;
                case 9: _vm.Mmu.ZapGfnRange(GpaOfRegion(region) / Layout.Page + (ulong)random.Next((int)Layout.RegionPages), GpaOfRegion(region) / Layout.Page
                    + Layout.RegionPages); break;
                case 10: Sample(); break;
                default: Thread.Sleep(random.Next(3)); break;
            }
        }
    }

    private void Locked(Action change)
    {
        _layout.EnterWriteLock();
        try { change(); }
        finally { _layout.ExitWriteLock(); }
    }

    /// <summary>The slot is deleted; its content goes on in other host memory, in a new slot.</summary>
    private void Replace(int region)
    {
        Check(_vm.SetUserMemoryRegion((uint)region + 1, 0, GpaOfRegion(region), 0, 0));
        GuestRam old = _regions[region], fresh = new(Layout.RegionBytes);
        Buffer.MemoryCopy(old.Pointer, fresh.Pointer, Layout.RegionBytes, Layout.RegionBytes);
        // Who still writes there has lost the write; who still reads finds another tag.
        new Span<byte>(old.Pointer, (int)Layout.RegionBytes).Fill(0xdd);
        old.Dispose();
        _regions[region] = fresh;
        CreateRegion(region);
    }

    /// <summary>The slot is deleted and made again with the same memory.</summary>
    private void Recreate(int region)
    {
        Check(_vm.SetUserMemoryRegion((uint)region + 1, 0, GpaOfRegion(region), 0, 0));
        CreateRegion(region);
    }

    /// <summary>The slot moves to another guest address and back.</summary>
    private void MoveAway(int region)
    {
        Check(_vm.SetUserMemoryRegion((uint)region + 1, FlagsOf(region), Layout.MovedGpa + (ulong)region * Layout.RegionBytes, Layout.RegionBytes,
            _regions[region].Hva));
        Check(_vm.SetUserMemoryRegion((uint)region + 1, FlagsOf(region), GpaOfRegion(region), Layout.RegionBytes, _regions[region].Hva));
        if (region == LoggedRegion)
            CopyAll();
    }

    /// <summary>
    /// Pages leave and come back, as with swap: content saved, memory given to the host (with a resident limit: and forgotten by its store), content
    /// restored, all behind the notifier.
    /// </summary>
    private void Evict(Random random, int region)
    {
        ulong first = (ulong)random.Next((int)Layout.RegionPages), pages = Math.Min(Layout.RegionPages - first, 1 + (ulong)random.Next(random.Next(4) == 0
            ? (int)Layout.RegionPages : 8));
        ulong start = _regions[region].Hva + first * Layout.Page, bytes = pages * Layout.Page;
        bool active = _vm.Slots.Notifier.InvalidateRangeStart(start, start + bytes);
        byte[] saved = new ReadOnlySpan<byte>((void*)start, (int)bytes).ToArray();
        if (_settings.Resident)
            _regions[region].Discard(first * Layout.Page, bytes, _vm.Slots.Notifier);
        else
            HostMemory.Discard((void*)start, (nuint)bytes);
        saved.CopyTo(new Span<byte>((void*)start, (int)bytes));
        if (active)
            _vm.Slots.Notifier.InvalidateRangeEnd(start, start + bytes);
    }

    /// <summary>Logging ends and begins again: huge mappings come back and are split.</summary>
    private void ToggleLogging()
    {
        foreach (bool on in (ReadOnlySpan<bool>)[false, true])
        {
            _logging = on;
            Check(_vm.SetUserMemoryRegion(LoggedRegion + 1, FlagsOf(LoggedRegion), GpaOfRegion(LoggedRegion), Layout.RegionBytes, _regions[LoggedRegion].Hva));
        }
        CopyAll();
    }

    private void Sample()
    {
        long pages = _vm.Stats.mmu_table_pages;
        _peakTablePages = Math.Max(_peakTablePages, pages);
        if (pages > MaxTablePages)
            Fail($"{pages} table pages");
    }

    private void Age()
    {
        var random = new Random(~_settings.Seed);
        ulong[] bitmap = new ulong[Layout.RegionPages / 64];
        while (!_stop)
        {
            int region = random.Next(Layout.Regions);
            ulong gfn = GpaOfRegion(region) / Layout.Page;
            _vm.Mmu.TestClearYoung(gfn, gfn + Layout.RegionPages, bitmap);
            _layout.EnterReadLock();
            ulong hva = _regions[region].Hva;
            _vm.Slots.Notifier.ClearYoung(hva, hva + Layout.RegionBytes);
            _vm.Slots.Notifier.TestYoung(hva, hva + Layout.RegionBytes);
            _layout.ExitReadLock();
            Thread.Sleep(random.Next(4));
        }
    }

    // ---- The dirty log ----

    private void Harvest()
    {
        while (!_stop)
        {
            HarvestOnce();
            Thread.Sleep(2);
        }
    }

    private void HarvestOnce()
    {
        if (_settings.Rings)
        {
            CollectRings();
            return;
        }
        _layout.EnterReadLock();
        try
        {
            lock (_harvestLock)
            {
                ulong* bitmap = stackalloc ulong[(int)Layout.RegionPages / 64];
                Check(_vm.GetDirtyLog(new kvm_dirty_log { slot = LoggedRegion + 1, dirty_bitmap = (ulong)bitmap }));
                if (_settings.ManualProtect)
                    Check(_vm.ClearDirtyLog(new kvm_clear_dirty_log { slot = LoggedRegion + 1, num_pages = (uint)Layout.RegionPages,
                        dirty_bitmap = (ulong)bitmap }));
                for (ulong page = 0; page < Layout.RegionPages; page++)
                    if ((bitmap[page / 64] >> (int)(page % 64) & 1) != 0)
                        CopyPage(page);
                CopyHostWrites();
            }
        }
        finally { _layout.ExitReadLock(); }
    }

    /// <summary>Collects every vCPU's ring, gives the entries back, then copies the pages: a write after the copy is pushed again.</summary>
    private void CollectRings()
    {
        _layout.EnterReadLock();
        try
        {
            lock (_harvestLock)
            {
                var pages = new HashSet<ulong>();
                for (int cpu = 0; cpu < _vcpus.Length; cpu++)
                {
                    var ring = (kvm_dirty_gfn*)((byte*)_vcpus[cpu].KvmRun + KVM_DIRTY_LOG_PAGE_OFFSET * 4096);
                    for (; ; _fetch[cpu]++)
                    {
                        kvm_dirty_gfn* e = &ring[_fetch[cpu] % RingEntries];
                        if (Volatile.Read(ref e->flags) != KVM_DIRTY_GFN_F_DIRTY)
                            break;
                        if (e->slot == LoggedRegion + 1)
                            pages.Add(e->offset);
                        Volatile.Write(ref e->flags, KVM_DIRTY_GFN_F_RESET);
                    }
                }
                Check(_vm.ResetDirtyRings());
                foreach (ulong page in pages)
                    CopyPage(page);
                CopyHostWrites();
            }
        }
        finally { _layout.ExitReadLock(); }
    }

    private void CopyPage(ulong page) => Buffer.MemoryCopy((void*)(_regions[LoggedRegion].Hva + page * Layout.Page), _replica.Pointer + page * Layout.Page,
        Layout.Page, Layout.Page);

    /// <summary>A write that this program made for the guest outside KVM_RUN: no ring has it.</summary>
    private void NoteHostWrite(ulong page)
    {
        if (page / Layout.RegionPages != LoggedRegion)
            return;
        lock (_hostWrites)
            _hostWrites.Add(page % Layout.RegionPages);
    }

    private void CopyHostWrites()
    {
        lock (_hostWrites)
        {
            foreach (ulong page in _hostWrites)
                CopyPage(page);
            _hostWrites.Clear();
        }
    }
}

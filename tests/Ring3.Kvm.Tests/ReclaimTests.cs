using System.Runtime.InteropServices;
using Ring3.Abi;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Reclaim;

namespace Ring3.Kvm.Tests;

/// <summary>Guests inside a resident limit: their data is kept, and so is the limit.</summary>
public sealed unsafe class ReclaimTests
{
    private const ulong Extra = 0x4000_0000, ExtraBytes = 64 << 20, Limit = 20 << 20;
    private const int Page = 4096;

    /// <summary>
    /// Fills [rbx, rcx) with words that depend on the address and on rbp, then r12 times verifies each and writes the next one. Port 0xf4: 0, or 1 at
    /// the first wrong word.
    /// </summary>
    private static readonly byte[] s_fillAndVerify = Convert.FromHexString(
        "4889df4889f8490fafc54801e84889074883c7404839cf72ea4889df4889f8490fafc54801e8483907751b48ffc04889074883c7404839cf72e248ffc549ffcc75d731c0e6f4b001e6f4");

    /// <summary>r12 times increments the first word of each of rcx pages from rbx on.</summary>
    private static readonly byte[] s_count = Convert.FromHexString("4889df4889ca48ff074881c70010000048ffca75f149ffcc75e631c0e6f4");

    /// <summary>A guest with 64 MiB more, and the limit on all of it.</summary>
    private sealed class Guest : IDisposable
    {
        public readonly TestGuest Test;
        public readonly GuestRam Memory = new(ExtraBytes);

        public Guest(int cpus, byte[] code)
        {
            Test = new TestGuest(cpus: cpus);
            Assert.Equal(0, Test.Vm.SetUserMemoryRegion(1, 0, Extra, ExtraBytes, Memory.Hva));
            Test.Load(code);
        }

        public Vm Vm => Test.Vm;

        public HvaRange[] Ranges => [new(Test.Ram.Hva, Test.Ram.Hva + Test.Ram.Size), new(Memory.Hva, Memory.Hva + Memory.Size)];

        public ResidentLimit Limit(ulong bytes = ReclaimTests.Limit, ResidentOptions? options = null) => Vm.LimitResident(bytes, Ranges, options);

        public void SetRegisters(int cpu, ulong begin, ulong end, ulong rounds)
        {
            Vm.Vcpus[cpu].GetRegs(out kvm_regs r);
            (r.rip, r.rbx, r.rcx, r.rbp, r.r12, r.r13) = (TestGuest.Code, begin, end, (ulong)cpu * 77, rounds, 0x9E37_79B9_7F4A_7C15);
            Vm.Vcpus[cpu].SetRegs(r);
        }

        public void Dispose()
        {
            Test.Dispose();
            Memory.Dispose();
        }
    }

    /// <summary>Resident bytes as the kernel counts them.</summary>
    private sealed class Meter(HvaRange[] ranges)
    {
        private readonly PageMap _map = new();
        private readonly ulong[] _words = new ulong[512];

        public ulong Read()
        {
            ulong pages = 0;
            foreach (HvaRange r in ranges)
            {
                for (ulong at = r.Start; at < r.End; at += 512 * Page)
                {
                    Assert.True(_map.Read(at, _words));
                    foreach (ulong w in _words)
                        pages += w >> 63;
                }
            }
            return pages * Page;
        }
    }

    private static Thread Start(Action body)
    {
        var thread = new Thread(() => body());
        thread.Start();
        return thread;
    }

    /// <summary>
    /// The checksummed workload at 4:1: two processors fill and verify halves of 64 MiB several times, while a device writes through the accessors, a
    /// cache of a translation is written, and a third thread evicts everything
    /// now and then. Every word is right, every write of the host is there, and the kernel never counts more resident memory than the limit and the
    /// pages of the device and the cache,
    /// whose copies are counted but not held back (docs/reclaim.md).
    /// </summary>
    [Theory]
    [InlineData(null)]
    [InlineData("/dev/shm")]
    public void FourToOne_KeepsDataAndLimit(string? directory)
    {
        using var g = new Guest(2, s_fillAndVerify);
        ResidentLimit limit = g.Limit(options: new() { Directory = directory });
        Assert.True(directory is null || limit.IsStoreInMemory);
        int running = 2, bad = 0;
        var vcpus = new Thread[2];
        for (int i = 0; i < 2; i++)
        {
            int cpu = i;
            ulong half = ExtraBytes / 2;
            g.SetRegisters(cpu, Extra + half * (ulong)cpu, Extra + half * (ulong)(cpu + 1), 4);
            vcpus[i] = Start(() =>
            {
                bad += g.Test.RunToEnd(g.Vm.Vcpus[cpu]);
                Interlocked.Decrement(ref running);
            });
        }
        long device = 0, cached = 0;
        const ulong DevicePages = 256, Allowed = Limit + (DevicePages + 1) * Page;
        Thread dma = Start(() =>
        {
            // Below the code: pages that only the device uses.
            for (; Volatile.Read(ref running) != 0; device++)
                Assert.True(g.Vm.Memory.TryWrite(0x200000 + (ulong)device % DevicePages * Page, device)
                    && g.Vm.Memory.TryRead(0x200000 + (ulong)device % DevicePages * Page, out long back) && back == device);
        });
        Thread cache = Start(() =>
        {
            var gpc = new GfnToPfnCache(g.Vm.Slots);
            Assert.Equal(0, gpc.Activate(0x400000, 8));
            for (; Volatile.Read(ref running) != 0; cached++)
                Increment(gpc);
            gpc.Deactivate();
        });
        var meter = new Meter(g.Ranges);
        ulong most = 0;
        for (int n = 0; Volatile.Read(ref running) != 0; n++)
        {
            // The map is read piece by piece: a page that was counted may have been evicted since, for one that is counted later. Evictions in progress
            // end first.
            long before = limit.Measure().Evictions;
            ulong seen = meter.Read();
            limit.EvictTo(Limit);
            ulong moved = (ulong)(limit.Measure().Evictions - before) * Page;
            most = Math.Max(most, seen - Math.Min(seen, moved));
            if (n % 50 == 49)
                limit.EvictTo(0);
        }
        foreach (Thread t in (Thread[])[.. vcpus, dma, cache])
            t.Join();
        WorkingSet w = limit.Measure();
        Assert.Equal(0, bad);
        Assert.True(most <= Allowed, $"{most >> 10} KiB were resident with a limit of {Limit >> 10} KiB; {w}");
        Assert.True(g.Vm.Memory.TryRead(0x400000, out long counted));
        Assert.Equal(cached, counted);
        for (int i = 0; i < 256 && i < device; i++)
        {
            Assert.True(g.Vm.Memory.TryRead(0x200000 + (ulong)i * Page, out long last));
            Assert.Equal((device - 1 - i) / 256 * 256 + i, last);
        }
        Assert.True(w.Refaults > (long)(ExtraBytes / Page), $"few pages came back: {w}");
        Assert.True(w.Evictions >= w.Writes && w.Failures == 0, w.ToString());
        Assert.InRange(w.ResidentPages * Page, 0, (long)Allowed);
    }

    private static void Increment(GfnToPfnCache gpc)
    {
        gpc.Lock.EnterRead();
        while (!gpc.Check(8))
        {
            gpc.Lock.ExitRead();
            Assert.Equal(0, gpc.Refresh(8));
            gpc.Lock.EnterRead();
        }
        (*(long*)gpc.Hva)++;
        gpc.MarkDirty(8);
        gpc.Lock.ExitRead();
    }

    /// <summary>How pages are taken away under a guest that counts in them.</summary>
    public enum Way { Limit, CopyBeforeZap }

    /// <summary>
    /// A guest increments words while their pages are evicted: each increment counts. Control: a copy that is made before the translations are gone
    /// loses some.
    /// </summary>
    [Theory]
    [InlineData(Way.Limit)]
    [InlineData(Way.CopyBeforeZap)]
    public void GuestWrites_SurviveEviction(Way way)
    {
        const ulong Pages = 64, Rounds = 600_000;
        using var g = new Guest(1, s_count);
        ResidentLimit? limit = way == Way.Limit ? g.Limit() : null;
        g.SetRegisters(0, Extra, Pages, Rounds);
        int running = 1;
        Thread vcpu = Start(() =>
        {
            Assert.Equal(0, g.Test.RunToEnd());
            Volatile.Write(ref running, 0);
        });
        byte[] copy = new byte[Pages * Page];
        while (Volatile.Read(ref running) != 0)
        {
            if (limit is not null)
                limit.EvictTo(0);
            else
                EvictWrongly(g, copy, ref running);
        }
        vcpu.Join();
        ulong sum = 0;
        for (ulong i = 0; i < Pages; i++)
        {
            Assert.True(g.Vm.Memory.TryRead(Extra + i * Page, out ulong n));
            sum += n;
        }
        if (way == Way.Limit)
            Assert.Equal(Pages * Rounds, sum);
        else
            Assert.NotEqual(Pages * Rounds, sum);
    }

    /// <summary>The frozen defect: the contents are copied out while the guest can still write, and the copy is what comes back.</summary>
    private static void EvictWrongly(Guest g, byte[] copy, ref int running)
    {
        ulong begin = g.Memory.Hva, end = begin + (ulong)copy.Length;
        new Span<byte>((byte*)begin, copy.Length).CopyTo(copy);
        // What it writes now is lost.
        while (Volatile.Read(ref running) != 0 && Volatile.Read(ref *(ulong*)begin) == MemoryMarshal.Read<ulong>(copy))
        { }
        Assert.True(g.Vm.Slots.Notifier.InvalidateRangeStart(begin, end));
        HostMemory.Discard((byte*)begin, (nuint)copy.Length);
        copy.CopyTo(new Span<byte>((byte*)begin, copy.Length));
        g.Vm.Slots.Notifier.InvalidateRangeEnd(begin, end);
    }

    /// <summary>Generations: what is used between passes stays young, the rest becomes older, and the old pages are evicted first.</summary>
    [Fact]
    public void Generations_OrderPagesByUse()
    {
        using var g = new Guest(1, s_count);
        ResidentLimit limit = g.Limit(48 << 20, new ResidentOptions { AgingIntervalMs = 1_000_000 });
        g.SetRegisters(0, Extra, 4096, 1);
        Assert.Equal(0, g.Test.RunToEnd());
        for (int i = 0; i < 4; i++)
        {
            limit.Age();
            g.SetRegisters(0, Extra, 1024, 1);
            Assert.Equal(0, g.Test.RunToEnd());
        }
        limit.Age();
        WorkingSet w = limit.Measure();
        long young = w.Generations[0].Pages + w.Generations[1].Pages, old = w.Generations.Skip(2).Sum(x => x.Pages);
        Assert.InRange(young, 1024, 1024 + 64);
        Assert.InRange(old, 3072, 3072 + 64);
        Assert.True(w.Generations.Zip(w.Generations.Skip(1)).All(p => p.First.AgeMs <= p.Second.AgeMs));

        Assert.True(limit.EvictTo((1024 + 128) * Page));
        var words = new ulong[1024];
        Assert.True(new PageMap().Read(g.Memory.Hva, words));
        Assert.True(words.Count(x => (x & PageMap.Present) != 0) > 1000, "pages in use were evicted before idle ones");
    }

    /// <summary>Discarded guest memory reads as zero although an older version is in the store.</summary>
    [Fact]
    public void Discard_DropsWhatTheStoreHas()
    {
        using var g = new Guest(1, s_count);
        ResidentLimit limit = g.Limit();
        g.SetRegisters(0, Extra, 512, 1);
        Assert.Equal(0, g.Test.RunToEnd());
        limit.EvictTo(0);
        g.Memory.Discard(0, 256 * Page, g.Vm.Slots.Notifier);
        for (ulong i = 0; i < 512; i++)
        {
            Assert.True(g.Vm.Memory.TryRead(Extra + i * Page, out ulong n));
            Assert.Equal(i < 256 ? 0ul : 1, n);
        }
    }

    /// <summary>
    /// Pages that came back, were dropped behind the limit's back, and are discarded while they are not resident: counted as evicted no more than once.
    /// </summary>
    [Fact]
    public void Discard_OfPagesThatHaveBeenInTheStore_IsCountedOnce()
    {
        const int Pages = 256;
        using var g = new Guest(1, s_count);
        ResidentLimit limit = g.Limit(options: new() { AgingIntervalMs = 1_000_000 });
        g.SetRegisters(0, Extra, Pages, 1);
        Assert.Equal(0, g.Test.RunToEnd());
        Assert.True(limit.EvictTo(0));
        g.SetRegisters(0, Extra, Pages, 1);
        Assert.Equal(0, g.Test.RunToEnd());
        long others = limit.Measure().EvictedPages;
        Assert.True(g.Vm.Slots.Notifier.InvalidateRangeStart(g.Memory.Hva, g.Memory.Hva + Pages * Page));
        HostMemory.Discard((byte*)g.Memory.Hva, Pages * Page);
        g.Vm.Slots.Notifier.InvalidateRangeEnd(g.Memory.Hva, g.Memory.Hva + Pages * Page);
        limit.CatchUp();
        Assert.Equal(others + Pages, limit.Measure().EvictedPages);
        g.Memory.Discard(0, Pages * Page, g.Vm.Slots.Notifier);
        Assert.Equal(others, limit.Measure().EvictedPages);
        g.Memory.Discard(0, Pages * Page, g.Vm.Slots.Notifier);
        Assert.Equal(others, limit.Measure().EvictedPages);
    }

    [Fact]
    public void Limit_BadArguments_AreRefused_AndLeaveTheVmAsItWas()
    {
        using var g = new Guest(1, s_count);
        Assert.Throws<ArgumentOutOfRangeException>(() => g.Limit(1 << 20));
        Assert.ThrowsAny<IOException>(() => g.Limit(options: new() { Directory = "/nonexistent" }));
        Assert.Null(g.Vm.Resident);
        g.Limit();
        Assert.Throws<InvalidOperationException>(() => g.Limit());
        g.SetRegisters(0, Extra, 16, 1);
        Assert.Equal(0, g.Test.RunToEnd());
    }

    /// <summary>The limit starts, changes and ends while the guest counts.</summary>
    [Fact]
    public void Limit_ChangesWhileTheGuestRuns()
    {
        using var g = new Guest(1, s_count);
        g.SetRegisters(0, Extra, 16384, 100);
        Thread vcpu = Start(() => Assert.Equal(0, g.Test.RunToEnd()));
        ResidentLimit limit = g.Limit(60 << 20);
        limit.Bytes = 16 << 20;
        limit.Bytes = 30 << 20;
        limit.Bytes = ulong.MaxValue;
        vcpu.Join();
        for (ulong i = 0; i < 16384; i++)
        {
            Assert.True(g.Vm.Memory.TryRead(Extra + i * Page, out ulong n));
            Assert.Equal(100ul, n);
        }
    }
}

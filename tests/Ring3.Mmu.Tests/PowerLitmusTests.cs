using Ring3.Mmu.Power;
using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using Ring3.Sync;

namespace Ring3.Mmu.Tests;

/// <summary>
/// Aging of a Power VM against the switch between radix and hash, and against the processor's C bit. Freed tables are kept and filled with ones, which
/// look like referenced leaves: a pass that gets into one clears an R bit there.
/// </summary>
public unsafe class PowerLitmusTests
{
    private const ulong Page = 1 << 16, Pages = 2048;
    private static readonly TimeSpan s_run = TimeSpan.FromSeconds(1), s_controlLimit = TimeSpan.FromSeconds(40);

    /// <summary>Tables that were freed. A table is given to the host's allocator when it has been clean for long.</summary>
    private sealed class Quarantine
    {
        private const int Kept = 4000;
        private readonly ConcurrentQueue<(ulong Table, nuint Bytes)> _tables = new();
        public string? Failure;

        public void Take(ulong table, nuint bytes)
        {
            new Span<byte>((void*)table, (int)bytes).Fill(0xff);
            _tables.Enqueue((table, bytes));
            while (_tables.Count > Kept && _tables.TryDequeue(out var oldest))
                Release(oldest.Table, oldest.Bytes);
        }

        private void Release(ulong table, nuint bytes)
        {
            if (new ReadOnlySpan<byte>((void*)table, (int)bytes).ContainsAnyExcept((byte)0xff))
                Failure = "a pass has changed a freed table";
            NativeMemory.AlignedFree((void*)table);
        }

        public string? Empty()
        {
            while (_tables.TryDequeue(out var table))
                Release(table.Table, table.Bytes);
            return Failure;
        }
    }

    public enum Defect
    {
        None,
        /// <summary>Mode and table are two variables, and the mode is set first.</summary>
        ModeBeforeTable,
        /// <summary>The tree is freed as soon as the mode says hash.</summary>
        NoGracePeriod,
    }

    /// <summary>The switch as in Linux, with mode and table apart; with a defect, or (None) with both barriers and the grace period.</summary>
    private sealed class FrozenSwitch(RadixTables tables, Defect defect)
    {
        private bool _radix;
        private ulong _root;

        public void ToRadix()
        {
            if (defect == Defect.ModeBeforeTable)
            {
                Volatile.Write(ref _radix, true);
                Volatile.Write(ref _root, Build());
                return;
            }
            Volatile.Write(ref _root, Build());
            // PAIRS-WITH: Age.
            Volatile.Write(ref _radix, true);
        }

        public void ToHash()
        {
            ulong root = _root;
            Volatile.Write(ref _radix, false);
            if (defect != Defect.NoGracePeriod)
                Rcu.Synchronize();
            tables.FreeTree(root, RadixFormat.RootLevel);
        }

        public void Age(Span<ulong> bitmap)
        {
            using var _ = Rcu.Read();
            // PAIRS-WITH: ToRadix.
            if (Volatile.Read(ref _radix) && Volatile.Read(ref _root) is var root && root != 0)
                YoungScan<RadixFormat>.TestClear(root, RadixFormat.RootLevel, 0, Pages, 0, bitmap);
        }

        /// <summary>A tree with young leaves.</summary>
        private ulong Build()
        {
            ulong root = tables.Allocate(4), level3 = tables.Allocate(3), level2 = tables.Allocate(2);
            *(ulong*)root = RadixFormat.MakeTable(level3, 4);
            *(ulong*)level3 = RadixFormat.MakeTable(level2, 3);
            for (int i = 0; i < 64; i++)
            {
                ulong level1 = tables.Allocate(1);
                ((ulong*)level2)[i] = RadixFormat.MakeTable(level1, 2);
                for (int n = 0; n < 32; n++)
                    ((ulong*)level1)[n] = RadixFormat.MakeLeaf(0x1000_0000, true);
            }
            return root;
        }
    }

    private static string? Race(bool control, Quarantine quarantine, Action ager, Action change)
    {
        bool stop = false;
        var thread = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
                ager();
        });
        thread.Start();
        long end = Environment.TickCount64 + (long)(control ? s_controlLimit : s_run).TotalMilliseconds;
        while (quarantine.Failure is null && Environment.TickCount64 < end)
            change();
        Volatile.Write(ref stop, true);
        thread.Join();
        return quarantine.Empty();
    }

    [Theory]
    [InlineData(Defect.None)]
    [InlineData(Defect.ModeBeforeTable)]
    [InlineData(Defect.NoGracePeriod)]
    public void FrozenSwitch_OnlyCorrectWithOrderAndGracePeriod(Defect defect)
    {
        var quarantine = new Quarantine();
        var vm = new FrozenSwitch(new RadixTables { Keep = quarantine.Take }, defect);
        ulong[] bitmap = new ulong[Pages / 64];
        string? failure = Race(defect != Defect.None, quarantine, () => vm.Age(bitmap), () =>
        {
            vm.ToRadix();
            Thread.SpinWait(100);
            vm.ToHash();
        });
        vm.ToRadix();
        vm.ToHash();
        failure ??= quarantine.Empty();
        if (defect == Defect.None)
            Assert.Null(failure);
        else
            Assert.True(failure is not null, "inconclusive: the defect was not detected");
    }

    /// <summary>The real switch under the same pass, with a guest that maps pages in both modes and a zap that frees tables.</summary>
    [Fact]
    public void RealSwitch_AgainstAgingFaultsAndZaps()
    {
        var quarantine = new Quarantine();
        void* memory = NativeMemory.AlignedAlloc((nuint)(Pages * Page), 1 << 16);
        PowerMmu? mmu = null;
        var cpu = new PowerProcessor(() => mmu!.Entry.Value);
        mmu = new PowerMmu(Pages, PowerProcessor.Flush(cpu), new RadixTables { Keep = quarantine.Take });
        ulong[] bitmap = new ulong[Pages / 64], dirty = new ulong[Pages / 64];
        long handled = 0, fallback = 0;
        string? failure = Race(false, quarantine, () =>
        {
            if (mmu.TestClearYoung(0, Pages, bitmap))
                handled++;
            else
            {
                mmu.TestClearYoungLocked(0, Pages, bitmap);
                fallback++;
            }
        }, () =>
        {
            for (ulong gfn = 0; gfn < Pages; gfn += 7)
                while (!cpu.Access(gfn * Page, gfn % 2 == 0))
                    mmu.Fault(gfn, (ulong)memory + gfn * Page, gfn % 2 == 0);
            mmu.ZapRange(100, 400);
            mmu.SwitchToHash();
            for (ulong gfn = 0; gfn < Pages; gfn += 9)
                Assert.True(mmu.Enter(gfn * Page, false, gfn, (ulong)memory + gfn * Page, true) && cpu.Access(gfn * Page, true));
            mmu.ZapRange(50, 90);
            mmu.SwitchToRadix();
            Array.Clear(dirty);
            mmu.HarvestDirty(dirty);
            for (ulong gfn = 0; gfn < Pages; gfn++)
                if ((dirty[gfn / 64] >> (int)(gfn % 64) & 1) != 0 != (gfn % 14 == 0 || gfn % 9 == 0))
                    quarantine.Failure = $"page {gfn}: Dirty bit {(gfn % 14 == 0 || gfn % 9 == 0 ? "lost" : "invented")}";
        });
        Assert.Null(failure);
        Assert.True(handled > 0 && fallback > 0, $"{handled} passes without the lock, {fallback} with it");
        mmu.Dispose();
        Assert.Null(quarantine.Empty());
        NativeMemory.AlignedFree(memory);
    }

    /// <summary>
    /// In a hashed entry R and C are neighbours of one doubleword, and the processor sets C by a store to its byte: whoever clears R with a store of
    /// the doubleword undoes it.
    /// </summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ChangedBitSurvivesAging(bool doublewordStore)
    {
        void* memory = NativeMemory.AlignedAlloc((nuint)Page, 1 << 16);
        PowerMmu? mmu = null;
        var cpu = new PowerProcessor(() => mmu!.Entry.Value);
        using (mmu = new PowerMmu(64, PowerProcessor.Flush(cpu)))
        {
            mmu.SwitchToHash();
            Assert.True(mmu.Enter(0, false, 5, (ulong)memory, true) && cpu.Access(0, false));
            ulong* entry = (ulong*)cpu.LastHashEntry;
            var quarantine = new Quarantine();
            ulong[] bitmap = [0], dirty = [0];
            string? failure = Race(doublewordStore, quarantine, () =>
            {
                if (!doublewordStore)
                    mmu.TestClearYoungLocked(0, 64, bitmap);
                else
                    using (mmu.Lock.Write())
                    {
                        ulong old = Volatile.Read(ref entry[1]);
                        Thread.SpinWait(5);
                        Volatile.Write(ref entry[1], old & ~RadixFormat.InMemory(0x100));
                    }
                // The write below waits for the lock before each round.
                Thread.SpinWait(20);
            }, () =>
            {
                mmu.HarvestDirty(dirty);
                Thread.SpinWait(30);
                cpu.Access(0, true);
                dirty[0] = 0;
                mmu.HarvestDirty(dirty);
                if (dirty[0] != 1UL << 5)
                    quarantine.Failure = "lost C bit";
            });
            if (!doublewordStore)
                Assert.Null(failure);
            else
                Assert.True(failure is not null, "inconclusive: the defect was not detected");
        }
        NativeMemory.AlignedFree(memory);
    }
}

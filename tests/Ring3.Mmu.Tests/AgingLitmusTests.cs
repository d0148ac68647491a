using Ring3.Sync;

namespace Ring3.Mmu.Tests;

/// <summary>
/// Lockless aging against a processor, a zap, a fault and the freeing of tables, on the real MMU with real threads. Each program runs with the real
/// pass, and as a control with a copy that has a historical defect: the detector must report it.
/// </summary>
public unsafe class AgingLitmusTests
{
    private const ulong M = 1 << 20, Pages = 256;
    private static readonly TimeSpan s_run = TimeSpan.FromSeconds(1), s_controlLimit = TimeSpan.FromSeconds(40);

    /// <summary>Runs <paramref name="round"/> against the pass until it reports or the time is over.</summary>
    private static string? Run(bool control, Action ager, Func<string?> round)
    {
        bool stop = false;
        var thread = new Thread(() =>
        {
            while (!Volatile.Read(ref stop))
                ager();
        });
        thread.Start();
        string? failure = null;
        long end = Environment.TickCount64 + (long)(control ? s_controlLimit : s_run).TotalMilliseconds;
        while (failure is null && Environment.TickCount64 < end)
            failure = round();
        Volatile.Write(ref stop, true);
        thread.Join();
        return failure;
    }

    private static void Judge(bool control, string? failure)
    {
        if (!control)
            Assert.Null(failure);
        else
            Assert.True(failure is not null, "inconclusive: the defect was not detected");
    }

    /// <summary>The defect: A is taken by a store of the value that was read, without comparing.</summary>
    private static void PlainStorePass(ulong root)
    {
        using var _ = Rcu.Read();
        var it = new TdpIterator<EptFormat>(root, PgLevel.Root4, 0, Pages);
        while (it.MoveNext())
            if (it.IsPresentLeaf && Spte.IsAccessed(it.OldSpte))
            {
                Thread.SpinWait(5);
                Volatile.Write(ref *it.Sptep, it.OldSpte & ~Spte.A);
            }
    }

    private static Action Ager(MmuFixture f, bool plainStore)
    {
        ulong root = f.V.Mmu.RootHva;
        ulong[] bitmap = new ulong[Pages / 64];
        return plainStore ? () => PlainStorePass(root) : () => f.Tdp.TestClearYoung(0, Pages, bitmap);
    }

    /// <summary>A page is read, so that the pass works on its entry, and then written: its Dirty bit must be in the next harvest.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void DirtyBitSurvivesAging(bool plainStore)
    {
        var f = new MmuFixture();
        f.AddRam(0, 0, M, 0, 0x1000);
        for (ulong gfn = 0; gfn < Pages; gfn++)
            f.V.Access(gfn << 12, true);
        ulong[] dirty = new ulong[Pages / 64];
        string? failure = Run(plainStore, Ager(f, plainStore), () =>
        {
            f.Tdp.HarvestDirty(0, Pages, dirty);
            for (ulong gfn = 0; gfn < Pages; gfn++)
            {
                f.V.Access(gfn << 12, false);
                f.V.Access(gfn << 12, true);
            }
            Array.Clear(dirty);
            f.Tdp.HarvestDirty(0, Pages, dirty);
            return dirty.Any(w => w != ulong.MaxValue) ? $"lost Dirty bit: {string.Join(' ', dirty.Select(w => w.ToString("x")))}" : null;
        });
        Judge(plainStore, failure);
        f.Dispose();
    }

    /// <summary>Pages are mapped by faults and unmapped; no pass may bring an entry back.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void ZappedMappingStaysAway(bool plainStore)
    {
        const ulong zapped = 64;
        var f = new MmuFixture();
        f.AddRam(0, 0, M, 0, 0x1000);
        for (ulong gfn = 0; gfn < Pages; gfn++)
            f.V.Access(gfn << 12, true);
        string? failure = Run(plainStore, Ager(f, plainStore), () =>
        {
            for (ulong gfn = 0; gfn < zapped; gfn++)
                f.V.Access(gfn << 12, false);
            f.Tdp.ZapGfnRange(0, zapped);
            for (int look = 0; look < 2; look++)
            {
                for (ulong gfn = 0; gfn < zapped; gfn++)
                    if (f.V.Leaf(gfn << 12, out _) is var leaf && leaf != 0)
                        return $"gfn {gfn} is mapped again: {Spte.Describe(leaf, 1)}";
                Thread.SpinWait(200);
            }
            return null;
        });
        Judge(plainStore, failure);
        // The control has mappings that nobody has counted.
        if (!plainStore)
            f.Dispose();
    }

    /// <summary>A table that a pass has reached is not freed before the pass leaves its section.</summary>
    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void TableStaysWhileAPassIsInside(bool withoutSection)
    {
        using var f = new MmuFixture();
        f.AddRam(0, 0, 4 * M, 0, 0x1000);
        f.V.Access(0, true);
        f.V.Access(2 * M, true);
        var directory = (ulong*)f.V.Mmu.RootHva;
        for (int level = 4; level > PgLevel.Level2M; level--)
            directory = (ulong*)Spte.Address(directory[0]);
        string? seen = null;
        void Pass()
        {
            if (!withoutSection)
                Rcu.Enter();
            ulong entry = Volatile.Read(ref directory[0]);
            if (Spte.IsTable(entry, PgLevel.Level2M))
                for (int i = 0; i < 200; i++)
                {
                    Thread.SpinWait(1);
                    TablePageState state = TablePage.FromSpte(entry)->State;
                    if (state is not (TablePageState.Live or TablePageState.Unlinked))
                        seen = $"the pass is inside a table that is {state}";
                }
            if (!withoutSection)
                Rcu.Exit();
        }
        string? failure = Run(withoutSection, Pass, () =>
        {
            f.V.Access(0x3000, true);
            f.Tdp.ZapGfnRange(0, 512);
            f.Queue.Flush();
            return Volatile.Read(ref seen);
        });
        Judge(withoutSection, failure ?? seen);
    }
}

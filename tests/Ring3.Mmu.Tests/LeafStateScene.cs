using Ring3.Abi;
using Ring3.Memory;

namespace Ring3.Mmu.Tests;

/// <summary>Memory whose leaves know something that nothing else does.</summary>
internal static unsafe class LeafStateScene
{
    private const ulong M = 1 << 20, P = 4096;

    /// <summary>
    /// 8 MiB at a gpa that is not a multiple of 64 pages, logged by Dirty bits; every seventh page has D set by the processor behind the log's back.
    /// </summary>
    internal static (MmuFixture F, DirtyBitmap Log, GuestRam Ram) Logged(RootZapPolicy policy = RootZapPolicy.Worker)
    {
        var f = new MmuFixture(1, policy);
        f.Slots.DirtyTracking = DirtyTracking.DirtyScan;
        GuestRam ram = f.AddRam(0, 37 * P, 8 * M, KvmApi.KVM_MEM_LOG_DIRTY_PAGES);
        f.AddRam(1, 64 * M, 4 * M);
        for (ulong page = 0; page < 2048; page++)
            f.V.Access((37 + page) * P, false);
        for (ulong page = 0; page < 2048; page += 7)
            SetBits(f, (37 + page) * P, Spte.D);
        DirtyBitmap log = f.Slots.Set(0).ById(0)!.DirtyBitmap!;
        // The first accesses.
        for (ulong word = 0; word < log.WordCount; word++)
            log.Take(word);
        return (f, log, ram);
    }

    internal static void SetBits(MmuFixture f, ulong gpa, ulong bits)
    {
        ulong* table = (ulong*)f.V.Mmu.RootHva;
        for (int level = 4; level > 1; level--)
            table = (ulong*)Spte.Address(table[PgLevel.Index(gpa >> 12, level)]);
        Interlocked.Or(ref table[PgLevel.Index(gpa >> 12, 1)], bits);
    }

    internal static void AssertSevenths(DirtyBitmap log)
    {
        for (ulong page = 0; page < 2048; page++)
            Assert.Equal(page % 7 == 0, log.IsSet(page));
    }

    /// <summary>The bits of a root that is zapped because another slot goes away reach the log.</summary>
    internal static ulong DirtyPagesAfterAnotherSlotsDeletion()
    {
        (MmuFixture f, DirtyBitmap log, GuestRam _) = Logged();
        using MmuFixture fixture = f;
        f.Delete(1);
        return log.Count();
    }
}

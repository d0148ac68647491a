using System.Runtime.InteropServices;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Huge mappings that cannot be executed: a processor with the iTLB multihit erratum (CVE-2018-12207) never sees a code page whose size changes. What is
/// executed is mapped with 4 KiB; what is executed no more is made huge again, bit by bit.
/// SPEC: Linux, Documentation/admin-guide/hw-vuln/multihit.rst.
/// </summary>
/// <remarks>SAFETY: (whole file) records of table pages are reached in RCU sections: a page that was live is freed after a grace period.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>Splits zapped in one hold of mmu_lock.</summary>
    private const int NxRecoverBatch = 64;

    private bool _nxHugePages;
    private ulong _nxSplits;

    /// <summary>Huge mappings are made without X, and split when they are executed. A change makes every mapping obsolete; without vCPUs it costs
    /// nothing.</summary>
    public bool NxHugePages
    {
        get => Volatile.Read(ref _nxHugePages);
        set
        {
            using var _ = Slots.SlotsLock.Enter();
            if (value == _nxHugePages)
                return;
            Volatile.Write(ref _nxHugePages, value);
            if (_roots.Length != 0)
                ZapAllFast();
        }
    }

    /// <summary>The leaf as it may be installed: X is for 4 KiB only while <see cref="NxHugePages"/> is on.</summary>
    private ulong WithoutHugeX(ulong leaf, int level) => level > PgLevel.Level4K && NxHugePages ? leaf & ~Spte.X : leaf;

    /// <summary>Remembers that a table is there only because its memory was executed. The number says which was first.</summary>
    private unsafe void TrackNxSplit(ulong tableSpte) => Volatile.Write(ref TablePage.FromSpte(tableSpte)->NxSplit, Interlocked.Increment(ref _nxSplits));

    /// <summary>Tables that stand where a huge mapping could be, because their memory was executed.</summary>
    private unsafe int CountNxSplits()
    {
        int n = 0;
        if (Volatile.Read(ref _nxSplits) != 0)
            Allocator.ForEachLive(page => n += Volatile.Read(ref ((TablePage*)page)->NxSplit) != 0 ? 1 : 0);
        return n;
    }

    /// <summary>
    /// Zaps the oldest 1/<paramref name="ratio"/> (rounded up) of what <see cref="NxHugePages"/> has split: what is still executed is split again, the rest
    /// comes back huge. Splits in dirty-logged slots are forgotten instead: they get their huge mappings back when logging ends. No locks held.
    /// </summary>
    /// <param name="ratio">0: nothing is zapped.</param>
    /// <returns>Number of splits zapped.</returns>
    public int RecoverNxSplits(uint ratio)
    {
        int splits = ratio == 0 ? 0 : CountNxSplits();
        int left = ratio == 0 ? 0 : (int)(((uint)splits + ratio - 1) / ratio), zapped = 0;
        while (left > 0)
        {
            int done = RecoverNxBatch(Math.Min(left, NxRecoverBatch), ref zapped);
            left = done == 0 ? 0 : left - done;
        }
        RunInlineZaps();
        return zapped;
    }

    /// <returns>Number of splits zapped or forgotten.</returns>
    private unsafe int RecoverNxBatch(int most, ref int zapped)
    {
        using var _ = Rcu.Read();
        var found = new List<(ulong Number, nint Page)>();
        Allocator.ForEachLive(page =>
        {
            if (Volatile.Read(ref ((TablePage*)page)->NxSplit) is not 0 and var number)
                found.Add((number, page));
        });
        found.Sort();
        var batch = new FlushBatch(FlushSite.RecoverNxSplits);
        Lock.EnterWrite();
        int done = 0;
        foreach ((ulong _, nint at) in CollectionsMarshal.AsSpan(found))
        {
            TablePage* page = (TablePage*)at;
            if (done == most)
                break;
            // Unlinked since it was found.
            if (page->State != TablePageState.Live)
                continue;
            done++;
            page->NxSplit = 0;
            if (Slots.Find(page->BaseGfn, page->AsId) is { IsDirtyLogged: true })
                continue;
            ZapRangeLocked(page->BaseGfn, page->BaseGfn + PgLevel.Pages(page->Level + 1), page->AsId, mayYield: false, ref batch);
            zapped++;
        }
        Finish(ref batch);
        Lock.ExitWrite();
        return done;
    }
}

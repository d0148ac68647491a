using Ring3.Arch;
using Ring3.Host;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>
/// Checked mode: what the MMU has taken away, and from when on no processor may use it. Every change gets a number after it is visible in the tables; when the
/// flush that it owes has returned, the change is settled:
/// from then on no translation older than the change may be used. Any thread.
/// </summary>
/// <remarks>SAFETY: table records are read through UserCopy, because a violation may have freed them.</remarks>
public sealed class TlbJournal
{
    internal readonly record struct Change(ulong Start, ulong End, int AsId, SpteLoss Loss, ulong Sequence);

    private readonly RangeLedger _recorded = new(), _mappings = new(), _writes = new(), _roots = new(), _returned = new();
    private TinyLock _lock = new(LockRank.TlbJournal);
    private ulong _sequence = 1, _settled = 1;

    /// <summary>Number of the newest change.</summary>
    public ulong Sequence => Volatile.Read(ref _sequence);
    /// <summary>Counts settlements.</summary>
    public ulong Settled => Volatile.Read(ref _settled);

    /// <summary>A change that is visible in the tables. The batch settles it.</summary>
    internal void Record(ref FlushBatch batch, ulong start, ulong end, int asId, SpteLoss loss)
    {
        _lock.Enter();
        ulong sequence = _sequence + 1;
        _recorded.Set(asId, start, end, sequence, batch.Site);
        Volatile.Write(ref _sequence, sequence);
        _lock.Exit();
        (batch.Changes ??= []).Add(new Change(start, end, asId, loss, sequence));
    }

    /// <summary>The waiting flush of a batch has returned.</summary>
    internal void Settle(ref FlushBatch batch)
    {
        if (batch.Changes is null)
            return;
        _lock.Enter();
        foreach (Change c in batch.Changes)
        {
            // Who may not read may not write either.
            _writes.Set(c.AsId, c.Start, c.End, c.Sequence, batch.Site);
            if (c.Loss == SpteLoss.Mapping)
                _mappings.Set(c.AsId, c.Start, c.End, c.Sequence, batch.Site);
        }
        Volatile.Write(ref _settled, _settled + 1);
        _lock.Exit();
        batch.Changes.Clear();
    }

    /// <summary>A root is obsolete, and no processor runs with it any more.</summary>
    internal void RootRetired(ulong hva) => Note(_roots, hva >> Page.Shift, (hva >> Page.Shift) + 1, FlushSite.ObsoleteRoots);

    /// <summary>Host memory [start, end) has changed hands: what named it before is void.</summary>
    internal void HostReturned(ulong start, ulong end) => Note(_returned, start >> Page.Shift, (end + Page.OffsetMask) >> Page.Shift, FlushSite.Notifier);

    private void Note(RangeLedger ledger, ulong start, ulong end, FlushSite site)
    {
        _lock.Enter();
        ulong sequence = _sequence + 1;
        ledger.Set(0, start, end, sequence, site);
        Volatile.Write(ref _sequence, sequence);
        Volatile.Write(ref _settled, _settled + 1);
        _lock.Exit();
    }

    /// <summary>
    /// Whether a translation may be used that was made under <paramref name="root"/> when <paramref name="filled"/> was the newest change.
    /// </summary>
    /// <returns>Null, or the rule it violates.</returns>
    public string? Judge(ulong root, ulong gpa, ulong host, ulong filled, bool write)
    {
        int asId = AsIdOf(root);
        FlushSite site;
        _lock.Enter();
        try
        {
            if (_roots.Find(0, root >> Page.Shift, out site) is var r && r > filled)
                return $"(b) translation of a root that is obsolete since change {r}: the FreeObsoleteRoots request has not ended its use";
            if (asId >= 0 && _mappings.Find(asId, gpa >> Page.Shift, out site) is var m && m > filled)
                return $"(d) translation of a page that was unmapped by change {m}; the flush of {site} has not dropped it";
            if (write && asId >= 0 && _writes.Find(asId, gpa >> Page.Shift, out site) is var w && w > filled)
                return $"(c,f) write through a translation whose right to write was taken by change {w}; the flush of {site} has not dropped it";
            if (_returned.Find(0, host >> Page.Shift, out site) is var h && h > filled)
                return $"(d) translation to host memory that was given back by change {h}";
        }
        finally { _lock.Exit(); }
        return null;
    }

    /// <summary>The last change known of a page, for reports.</summary>
    public string Explain(ulong root, ulong gpa)
    {
        int asId = AsIdOf(root);
        if (asId < 0)
            return "";
        _lock.Enter();
        ulong recorded = _recorded.Find(asId, gpa >> Page.Shift, out FlushSite site),
            settled = Math.Max(_mappings.Find(asId, gpa >> Page.Shift, out _), _writes.Find(asId, gpa >> Page.Shift, out _));
        _lock.Exit();
        return recorded == 0 ? "No change of the page is known."
            : $"Last change of the page: {recorded} by {site}, {(settled >= recorded ? "its flush declared done" : "its flush not declared done")}.";
    }

    /// <summary>Address space of a root, or -1 when it is freed.</summary>
    private static unsafe int AsIdOf(ulong root) =>
        root != 0 && IsLive(root, out TablePage* page) && UserCopy.TryRead4((ulong)&page->AsId, out uint asId) && asId < 2 ? (int)asId : -1;

    /// <summary>Whether a table that a processor reaches may be walked: linked, or unlinked by somebody who has not flushed yet.</summary>
    public static unsafe bool IsTable(ulong table) => IsLive(table, out _);

    private static unsafe bool IsLive(ulong table, out TablePage* page)
    {
        page = TablePage.Of((ulong*)table);
        return UserCopy.TryRead4((ulong)&page->State, out uint state) && (TablePageState)state is TablePageState.Live or TablePageState.Unlinked;
    }
}

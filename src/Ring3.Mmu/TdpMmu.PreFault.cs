using System.Runtime.Intrinsics;
using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Mapping ahead of the guest (KVM_PRE_FAULT_MEMORY): as reads would, one table of small pages at a time.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections; a new table is filled before anybody can see it.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Makes memory present as reads of the guest would, from <paramref name="gpa"/> on. Caller as for <see cref="Fault"/>.
    /// </summary>
    /// <param name="limit">Nothing at or above this is wanted. What is mapped with small pages is mapped up to here, or to the end of its table, at
    /// once.</param>
    /// <param name="end">With <see cref="MmuResult.Fixed"/>: first guest-physical address after what is mapped.</param>
    public unsafe MmuResult PreFault(VcpuMmu vcpu, ulong gpa, ulong limit, out ulong end)
    {
        end = gpa;
        if (TryPreFaultTable(vcpu, gpa >> Page.Shift, limit >> Page.Shift, out ulong endGfn))
        {
            end = endGfn << Page.Shift;
            return MmuResult.Fixed;
        }
        VcpuMmuStats stats = vcpu.Stats;
        MmuResult result = Fault(vcpu, gpa, AccessKind.Read);
        vcpu.Stats = stats;
        if (result != MmuResult.Fixed)
            return result;
        using var _ = Rcu.Read();
        int level = PgLevel.Level4K;
        // Gone again already: the page was there, which is all that is promised.
        if (vcpu.Root is not { } root || FindLeafRcu(root, gpa >> Page.Shift, out ulong _, out level) == null)
            level = PgLevel.Level4K;
        end = (gpa & ~(PgLevel.Bytes(level) - 1)) + PgLevel.Bytes(level);
        return MmuResult.Fixed;
    }

    /// <summary>Maps the small pages from a gfn to the end of its table in one go. False, with nothing promised: page by page, then.</summary>
    private bool TryPreFaultTable(VcpuMmu vcpu, ulong gfn, ulong limit, out ulong end)
    {
        end = Math.Min(PgLevel.AlignDown(gfn, PgLevel.Level2M) + 512, limit);
        if (end < gfn + 2 || end > MaxGfn || !vcpu.TopUp())
            return false;
        using var _ = Rcu.Read();
        if (vcpu.Root is not { } root)
            return false;
        // The order matters, as in a fault.
        ulong generation = Slots.Generation, seq = Slots.Notifier.InvalidateSeq;
        MemoryAttributes attributes = Slots.Attributes;
        if (Slots.Residency is not null || Slots.Find(gfn, vcpu.AsId, ref vcpu.SlotCache) is not { IsInvalid: false, PrivateMemory: null } slot)
            return false;
        end = Math.Min(end, slot.EndGfn);
        var backing = new Backing(slot, attributes, false);
        ulong hva = slot.HvaOf(gfn);
        if (end < gfn + 2 || !IsForSmallPages(backing, gfn) || !HostMemory.TryPopulateRead(hva, (nuint)(end - gfn) * (nuint)Page.Size))
            return false;
        Lock.EnterRead();
        bool done = Slots.Notifier.InProgress == 0 && !IsStale(root, generation, seq, attributes, hva) && GoalLevel(backing, gfn) == PgLevel.Level4K
            && MapTable(vcpu, root, gfn, end, backing);
        Lock.ExitRead();
        return done;
    }

    private bool IsForSmallPages(in Backing backing, ulong gfn)
    {
        Lock.EnterRead();
        int level = GoalLevel(backing, gfn);
        Lock.ExitRead();
        return level == PgLevel.Level4K;
    }

    /// <summary>False when an entry on the way is of a larger page, frozen, or was changed by somebody else meanwhile.</summary>
    private unsafe bool MapTable(VcpuMmu vcpu, TdpRoot root, ulong gfn, ulong end, in Backing backing)
    {
        var it = new TdpIterator(root, gfn, gfn + 1, PgLevel.Level2M);
        while (it.MoveNext())
        {
            if (it.IsTable)
            {
                if (it.Level > PgLevel.Level2M)
                    continue;
                FillLiveTable(TablePage.FromSpte(it.OldSpte), gfn, end, backing);
                return true;
            }
            if (it.OldSpte != 0)
                return false;
            if (it.Level == PgLevel.Level2M)
                return LinkFullTable(vcpu, ref it, root, gfn, end, backing);
            if (!TryLinkTable(ref it, vcpu, root.Role.AsId))
                return false;
        }
        return false;
    }

    private unsafe bool LinkFullTable(VcpuMmu vcpu, ref TdpIterator it, TdpRoot root, ulong gfn, ulong end, in Backing backing)
    {
        TablePage* page = vcpu.Take();
        ulong* entries = TablePage.TableOf(page) + (gfn - it.Gfn);
        int count = (int)(end - gfn);
        FillLeaves(entries, count, NewLeaf(backing, gfn, PgLevel.Level4K, write: false));
        page->Level = PgLevel.Level4K;
        page->BaseGfn = it.Gfn;
        page->AsId = root.Role.AsId;
        page->Leaves = count;
        page->State = TablePageState.Live;
        if (TrySetSpteAtomic(ref it, Spte.MakeTable((ulong)TablePage.TableOf(page))))
        {
            return true;
        }
        new Span<ulong>(entries, count).Clear();
        page->Leaves = 0;
        page->State = TablePageState.Cached;
        vcpu.Return(page);
        return false;
    }

    /// <summary>Consecutive entries for consecutive pages.</summary>
    private static unsafe void FillLeaves(ulong* entries, int count, ulong first)
    {
        int i = 0;
        if (Vector256.IsHardwareAccelerated)
        {
            Vector256<ulong> leaf = Vector256.Create(first) + Vector256.Create(0UL, Page.Size, 2 * Page.Size, 3 * Page.Size),
                step = Vector256.Create(4UL * Page.Size);
            for (; i <= count - 4; i += 4, leaf += step)
                leaf.Store(entries + i);
        }
        for (; i < count; i++)
            entries[i] = first + (ulong)i * Page.Size;
    }

    private static unsafe void FillLiveTable(TablePage* page, ulong gfn, ulong end, in Backing backing)
    {
        ulong* table = TablePage.TableOf(page);
        int added = 0;
        for (ulong at = gfn; at < end; at++)
        {
            // Present: as good. MMIO, or lost to another thread: a fault will settle it.
            ref ulong spte = ref table[at & 511];
            if (Volatile.Read(ref spte) == 0 && Interlocked.CompareExchange(ref spte, NewLeaf(backing, at, PgLevel.Level4K, write: false), 0) == 0)
                added++;
        }
        Interlocked.Add(ref page->Leaves, added);
    }
}

using Ring3.Arch;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Consistency checks for tests and for a VM that behaves strangely.</summary>
/// <remarks>SAFETY: (whole file) under mmu_lock-write and RCU nothing reachable is freed.</remarks>
internal sealed class MmuInvariants(TdpMmu mmu)
{
    /// <summary>
    /// Checks, with mmu_lock held for write: every reachable table is live and counted right, every entry is well-formed, every leaf maps exactly what its slot
    /// says, nothing is frozen, and every live page is reachable.
    /// </summary>
    /// <param name="quiet">No vCPU is running and no call is in progress: references must be exactly those that are accounted for.</param>
    /// <exception cref="InvalidOperationException">Names the first violation.</exception>
    public unsafe void Check(bool quiet = false)
    {
        using var slotsLock = mmu.Slots.SlotsLock.Enter();
        using var mmuLock = mmu.Lock.Write();
        using var rcu = Rcu.Read();
        int reachable = 0;
        foreach (TdpRoot root in mmu.Roots)
        {
            Must(root.References > 0, $"{root}: no reference, and still listed");
            Must(!root.HasMmuReference || !root.Invalid, $"{root}: invalid but still referenced by the MMU");
            Must(!root.Zapped || root.Invalid, $"{root}: zapped but valid");
            Must(TdpMmu.HasItsZap(root), $"{root}: invalid, and nobody is going to zap it");
            Must(root.Invalid || !root.ScheduledToZap && !root.Zapping, $"{root}: valid, and about to be zapped");
            if (!root.Zapped || root.References > 0)
                reachable += CheckTable(root, root.Page, 0);
        }
        int live = mmu.Allocator.CountState(TablePageState.Live);
        Must(live == reachable, $"{live} live table pages, {reachable} reachable");
        CheckReferences(quiet);
    }

    private void CheckReferences(bool quiet)
    {
        foreach (TdpRoot root in mmu.Roots)
        {
            int expected = (root.HasMmuReference ? 1 : 0) + (root.ScheduledToZap || root.Zapping ? 1 : 0);
            expected += mmu.CountHolders(root);
            // A walk that has let go of mmu_lock for a moment holds one more.
            Must(root.References >= expected, $"{root}: expected at least {expected} references");
            Must(!quiet || root.References == expected, $"{root}: expected {expected} references, one has leaked");
        }
    }

    private unsafe int CheckTable(TdpRoot root, TablePage* page, ulong baseGfn)
    {
        Must(page->State == TablePageState.Live, $"{root}: table at level {page->Level} gfn 0x{baseGfn:x} is {page->State}");
        Must(page->BaseGfn == baseGfn, $"{root}: table's base gfn is 0x{page->BaseGfn:x}, expected 0x{baseGfn:x}");
        ulong* table = TablePage.TableOf(page);
        int level = page->Level, leaves = 0, tables = 0, reachable = 1;
        for (int i = 0; i < 512; i++)
        {
            ulong spte = Volatile.Read(ref table[i]);
            ulong gfn = baseGfn + (ulong)i * PgLevel.Pages(level);
            Must(Spte.IsWellFormed(spte, level), $"malformed entry 0x{spte:x} at level {level} gfn 0x{gfn:x}");
            Must(!Spte.IsFrozen(spte), $"frozen entry at level {level} gfn 0x{gfn:x}");
            if (Spte.IsTable(spte, level))
            {
                tables++;
                TablePage* child = TablePage.FromSpte(spte);
                Must(child->Level == level - 1, $"table of level {child->Level} below level {level}");
                reachable += CheckTable(root, child, gfn);
            }
            else if (Spte.IsPresent(spte))
            {
                leaves++;
                CheckLeaf(root, spte, gfn, level);
            }
            else if (Spte.IsMmio(spte) && !root.Invalid)
                Must(mmu.Slots.Find(gfn, root.Role.AsId) is null, $"MMIO entry at gfn 0x{gfn:x}, which has a slot");
        }
        Must(leaves == page->Leaves, $"{page->Leaves} leaves counted, {leaves} found at level {level} gfn 0x{baseGfn:x}");
        Must(tables == page->Tables, $"{page->Tables} tables counted, {tables} found at level {level} gfn 0x{baseGfn:x}");
        return reachable;
    }

    private void CheckLeaf(TdpRoot root, ulong spte, ulong gfn, int level)
    {
        if (root.Invalid)
            return;
        Memslot? slot = mmu.Slots.Find(gfn, root.Role.AsId);
        Must(slot is not null && gfn + PgLevel.Pages(level) <= slot.EndGfn, $"leaf of level {level} at gfn 0x{gfn:x} outside any slot");
        Must(Spte.Address(spte) == slot!.HvaOf(gfn), $"leaf at gfn 0x{gfn:x} maps 0x{Spte.Address(spte):x}, slot says 0x{slot.HvaOf(gfn):x}");
        Must(!slot.IsReadOnly || (spte & (Spte.W | Spte.HostWritable)) == 0, $"writable leaf at gfn 0x{gfn:x} of a read-only slot");
    }

    private static void Must(bool condition, string message)
    {
        if (!condition)
            throw new InvalidOperationException(message);
    }
}

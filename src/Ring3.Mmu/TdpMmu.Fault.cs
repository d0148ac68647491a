using Ring3.Arch;
using Ring3.Host;
using Ring3.Memory;
using Ring3.Sync;

namespace Ring3.Mmu;

/// <summary>Nested faults: from a guest-physical address to an installed entry. Allocates nothing on the managed heap.</summary>
/// <remarks>SAFETY: (whole file) entries are reached through iterators, inside RCU sections.</remarks>
public sealed partial class TdpMmu
{
    /// <summary>
    /// Handles a nested fault of a vCPU, on its thread, outside guest mode, outside RCU sections, without locks. Its root must be loaded.
    /// </summary>
    /// <param name="gpa">Guest-physical address, bytes.</param>
    public MmuResult Fault(VcpuMmu vcpu, ulong gpa, AccessKind access)
    {
        vcpu.Stats.PfTaken++;
        ulong gfn = gpa >> Page.Shift;
        if (gfn >= MaxGfn)
        {
            vcpu.Stats.PfEmulate++;
            return MmuResult.NoSlot;
        }
        // A leaf that is old for lack of Accessed bits permits nothing: the processor does not call it present.
        if (((access & AccessKind.Present) != 0 || !AccessedBits) && FastPageFault(vcpu, gfn, access))
            return MmuResult.Fixed;
        vcpu.FailedHva = 0;
        if (!vcpu.TopUp())
            return MmuResult.NoMemory;
        Slots.Residency?.BeforeFault();
        Rcu.Enter();
        MmuResult result = FaultRcu(vcpu, gfn, access);
        Rcu.Exit();
        if (result == MmuResult.Retry)
            vcpu.WaitBeforeRetry();
        else
            vcpu.Progressed();
        return result;
    }

    /// <summary>
    /// After an MMIO exit: true if the address really has no memory for this access. False if a slot has appeared meanwhile: enter the guest again without
    /// completing the exit.
    /// </summary>
    public bool IsMmio(VcpuMmu vcpu, ulong gpa, bool write)
    {
        Rcu.Enter();
        Memslot? slot = Slots.Find(gpa >> Page.Shift, vcpu.AsId, ref vcpu.SlotCache);
        bool mmio = slot is null || write && slot.IsReadOnly;
        Rcu.Exit();
        if (mmio)
            vcpu.Progressed();
        else
            vcpu.WaitBeforeRetry();
        return mmio;
    }

    private MmuResult FaultRcu(VcpuMmu vcpu, ulong gfn, AccessKind access)
    {
        if (vcpu.Root is not { } root)
            return MmuResult.Retry;
        // The order matters: what is noted first is compared last, under mmu_lock (see IsStale).
        ulong generation = Slots.Generation;
        ulong seq = Slots.Notifier.InvalidateSeq;
        MemoryAttributes attributes = Slots.Attributes;
        bool isPrivate = attributes.IsPrivate(gfn);
        Memslot? slot = Slots.Find(gfn, vcpu.AsId, ref vcpu.SlotCache);
        bool write = (access & AccessKind.Write) != 0;
        bool toReadOnly = false;
        ulong hva = 0;
        if (slot is not null)
        {
            if (slot.IsInvalid)
                return MmuResult.Retry;
            if (isPrivate && slot.PrivateMemory is not { IsReleased: false })
                return MmuResult.PrivateMemoryFault;
            // The page is mapped as for a read: its entry tells the processor that writes are device accesses.
            toReadOnly = write && slot.IsReadOnly;
            write &= !toReadOnly;
            hva = isPrivate ? slot.PrivateHvaOf(gfn) : slot.HvaOf(gfn);
            if (!Probe(hva, write))
            {
                (vcpu.FailedGfn, vcpu.FailedHva) = (gfn, hva);
                return MmuResult.MemoryFault;
            }
            if (!isPrivate)
                Slots.Residency?.Touched(hva, 1);
        }
        else if (isPrivate)
            return MmuResult.PrivateMemoryFault;
        Lock.EnterRead();
        MmuResult result = IsStale(root, generation, seq, attributes, hva) ? MmuResult.Retry
            : slot is null ? MapMmio(vcpu, root, gfn, generation)
            : Map(vcpu, root, gfn, new Backing(slot, attributes, isPrivate), write, (access & AccessKind.Execute) != 0);
        Lock.ExitRead();
        if (!toReadOnly || result != MmuResult.Fixed)
            return result;
        vcpu.Stats.PfEmulate++;
        return MmuResult.ReadOnlyWrite;
    }

    /// <summary>
    /// Whether the host page can be accessed; a write makes it present and its own, as the guest's write will. It may wait for the client (userfaultfd). What
    /// the page is worth later is not known:
    /// the processor's own accesses can fail too.
    /// </summary>
    private static bool Probe(ulong hva, bool write) => write ? UserCopy.ProbeWrite(hva) : UserCopy.ProbeRead(hva);

    /// <summary>What a fault maps from: a slot's shared or its private memory.</summary>
    private readonly ref struct Backing(Memslot slot, MemoryAttributes attributes, bool isPrivate)
    {
        public readonly Memslot Slot = slot;
        public readonly MemoryAttributes Attributes = attributes;
        public ulong HvaOf(ulong gfn) => isPrivate ? Slot.PrivateHvaOf(gfn) : Slot.HvaOf(gfn);
    }

    /// <summary>
    /// True if what the fault has found out may be wrong by now. Slots and attributes are published, and roots invalidated, before or while mmu_lock is held
    /// for write to remove what was installed from old knowledge; so a fault that passes this test under mmu_lock-read installs before that removal, and is
    /// removed by it.
    /// </summary>
    private bool IsStale(TdpRoot root, ulong generation, ulong seq, MemoryAttributes attributes, ulong hva)
    {
        Lock.AssertHeldRead();
        return root.Invalid || Slots.Generation != generation || Slots.Attributes != attributes || hva != 0 && Slots.Notifier.NeedsRetry(seq, hva);
    }

    /// <summary>Largest level at which a gfn can be mapped: contained in the slot, alike in its attributes, hva and gpa equal modulo the size, neither
    /// dirty-logged nor kept inside a resident limit.</summary>
    private int GoalLevel(in Backing backing, ulong gfn)
    {
        Memslot slot = backing.Slot;
        if (slot.IsDirtyLogged || Slots.Residency is not null)
            return PgLevel.Level4K;
        ulong misalignment = (backing.HvaOf(gfn) >> Page.Shift) ^ gfn;
        for (int level = MaxLevel; level > PgLevel.Level4K; level--)
        {
            ulong pages = PgLevel.Pages(level), first = PgLevel.AlignDown(gfn, level);
            if ((misalignment & (pages - 1)) == 0 && first >= slot.BaseGfn && first + pages <= slot.EndGfn && backing.Attributes.IsUniform(first, first + pages)
                // The page that is wanted does not change now (IsStale), but others below the same leaf may.
                && !Slots.Notifier.IsChanging(backing.HvaOf(first), backing.HvaOf(first) + PgLevel.Bytes(level)))
                return level;
        }
        return PgLevel.Level4K;
    }

    private unsafe MmuResult Map(VcpuMmu vcpu, TdpRoot root, ulong gfn, in Backing backing, bool write, bool execute)
    {
        int possible = GoalLevel(backing, gfn);
        bool notHuge = execute && NxHugePages;
        int goal = notHuge ? PgLevel.Level4K : possible;
        var it = new TdpIterator(root, gfn, gfn + 1);
        while (it.MoveNext())
        {
            while (true)
            {
                if (Spte.IsFrozen(it.OldSpte))
                    return MmuResult.Retry;
                if (it.IsTable)
                    break;
                // Below a table of an earlier, smaller mapping the goal may be above the current level: the smaller mapping stays. See RecoverHugePages.
                if (it.Level <= goal)
                    return MapLeaf(vcpu, ref it, gfn, backing, write, execute);
                bool huge = it.IsPresentLeaf;
                if (huge ? TrySplit(ref it, vcpu.Take(), vcpu, backing.Slot) : TryLinkTable(ref it, vcpu, root.Role.AsId))
                {
                    if (notHuge && it.Level <= possible)
                        TrackNxSplit(it.OldSpte);
                    break;
                }
            }
        }
        return MmuResult.Retry;
    }

    private MmuResult MapLeaf(VcpuMmu vcpu, ref TdpIterator it, ulong gfn, in Backing backing, bool write, bool execute)
    {
        Memslot slot = backing.Slot;
        ulong newSpte = NewLeaf(backing, PgLevel.AlignDown(gfn, it.Level), it.Level, write);
        bool dirties = write;
        if (it.IsPresentLeaf)
        {
            bool needsW = write && !Spte.IsWritable(it.OldSpte), needsX = execute && (it.OldSpte & Spte.X) == 0;
            if (!needsW && !needsX)
            {
                vcpu.Stats.PfSpurious++;
                return MmuResult.Fixed;
            }
            newSpte = Spte.RestoreAccess(it.OldSpte) | Spte.A | (needsW ? Spte.W | Spte.D : 0) | (needsX ? Spte.X : 0) | newSpte & Spte.LogDirty;
        }
        else
        {
            newSpte = WithoutHugeX(newSpte, it.Level);
            // KVM: the first access maps a page writable, where it can, and what is mapped so is in the log. Clients count on finding the pages of code that
            // the guest has run.
            dirties |= slot.IsDirtyLogged && !slot.IsReadOnly;
        }
        if (!TrySetSpteAtomic(ref it, newSpte))
            return MmuResult.Retry;
        // After the installation: whoever takes the dirty bit afterwards write-protects afterwards.
        if (dirties)
            slot.MarkDirty(gfn);
        vcpu.Stats.PfFixed++;
        return MmuResult.Fixed;
    }

    private static ulong NewLeaf(in Backing backing, ulong gfn, int level, bool write)
    {
        Memslot slot = backing.Slot;
        // A logged page is mapped writable only by a write, or by a read if its D tells of the first write.
        ulong leaf = Spte.MakeLeaf(backing.HvaOf(gfn), level, !slot.IsReadOnly, write || !slot.IsDirtyLogged
            || slot.Tracking != DirtyTracking.WriteProtect, write);
        return slot.IsDirtyLogged && slot.Tracking == DirtyTracking.DirtyLog ? leaf | Spte.LogDirty : leaf;
    }

    private MmuResult MapMmio(VcpuMmu vcpu, TdpRoot root, ulong gfn, ulong generation)
    {
        Volatile.Write(ref _mmioInstalled, 1);
        var it = new TdpIterator(root, gfn, gfn + 1);
        while (it.MoveNext())
        {
            while (!it.IsTable)
            {
                if (Spte.IsFrozen(it.OldSpte) || Spte.IsPresent(it.OldSpte))
                    return MmuResult.Retry;
                if (it.Level > PgLevel.Level4K)
                {
                    TryLinkTable(ref it, vcpu, root.Role.AsId);
                    continue;
                }
                if (!Spte.IsMmio(it.OldSpte) && TrySetSpteAtomic(ref it, Spte.MakeMmio(gfn, generation)))
                    vcpu.Stats.PfMmioSpteCreated++;
                vcpu.Stats.PfEmulate++;
                return MmuResult.Mmio;
            }
        }
        return MmuResult.Retry;
    }

    /// <summary>Puts an empty table under a not-present entry. On success the iterator's entry is the table; on failure it has been read again.</summary>
    private unsafe bool TryLinkTable(ref TdpIterator it, VcpuMmu vcpu, int asId)
    {
        TablePage* page = vcpu.Take();
        page->Level = it.Level - 1;
        page->BaseGfn = it.Gfn;
        page->AsId = asId;
        page->State = TablePageState.Live;
        ulong spte = Spte.MakeTable((ulong)TablePage.TableOf(page));
        if (TrySetSpteAtomic(ref it, spte))
        {
            it.OldSpte = spte;
            return true;
        }
        page->State = TablePageState.Cached;
        vcpu.Return(page);
        return false;
    }

    /// <summary>
    /// Makes a write-protected leaf writable, or an old one accessible, without mmu_lock: under RCU, by compare-exchange of the very value that was judged.
    /// Sound because the value says that W may be set again (MmuWritable), because it names the memory (same value, same page), and because whoever enables
    /// dirty logging waits for a grace period between publishing the bitmap and write-protecting, so the page is either protected again afterwards or marked in
    /// the new bitmap.
    /// In a table that has been unlinked meanwhile the change has no effect.
    /// </summary>
    /// <returns>True if the guest can be entered again.</returns>
    private unsafe bool FastPageFault(VcpuMmu vcpu, ulong gfn, AccessKind access)
    {
        using var _ = Rcu.Read();
        if (vcpu.Root is not { Invalid: false } root)
            return false;
        for (int attempt = 0; attempt < 4; attempt++)
        {
            ulong* sptep = FindLeafRcu(root, gfn, out ulong spte, out int level);
            if (sptep == null)
                return false;
            bool write = (access & AccessKind.Write) != 0;
            ulong young = Spte.RestoreAccess(spte);
            // Execution of a huge leaf without X splits it.
            if ((access & AccessKind.Execute) != 0 && (young & Spte.X) == 0)
                return false;
            if (!write || Spte.IsWritable(spte))
            {
                if (young != spte && Interlocked.CompareExchange(ref *sptep, young, spte) != spte)
                    continue;
                vcpu.Stats.PfSpurious += young == spte ? 1UL : 0;
                vcpu.Stats.PfFixed += young != spte ? 1UL : 0;
                vcpu.Stats.PfFast++;
                return true;
            }
            Memslot? slot = Slots.Find(gfn, vcpu.AsId, ref vcpu.SlotCache);
            if ((spte & Spte.MmuWritable) == 0 || level != PgLevel.Level4K || slot is null || slot.IsInvalid)
                return false;
            if (Interlocked.CompareExchange(ref *sptep, young | Spte.W | Spte.A | Spte.D, spte) != spte)
                continue;
            slot.MarkDirty(gfn);
            vcpu.Stats.PfFixed++;
            vcpu.Stats.PfFast++;
            return true;
        }
        return false;
    }

    /// <summary>The present leaf that maps a gfn, or null.</summary>
    private static unsafe ulong* FindLeafRcu(TdpRoot root, ulong gfn, out ulong spte, out int level)
    {
        Rcu.AssertInSection();
        ulong table = root.Hva;
        for (level = root.Role.Level; ; level--)
        {
            ulong* sptep = (ulong*)table + PgLevel.Index(gfn, level);
            spte = Volatile.Read(ref *sptep);
            if (!Spte.IsPresent(spte))
                return null;
            if (Spte.IsLeaf(spte, level))
                return sptep;
            table = Spte.Address(spte);
        }
    }
}

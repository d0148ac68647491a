using System.Runtime.CompilerServices;
using Ring3.Arch;
using Ring3.Memory;

namespace Ring3.Mmu;

/// <summary>
/// Shadow (nested) page-table entry: the 64-bit format that the processor walks, plus the software's bits in the positions the processor ignores.
/// </summary>
/// <remarks>
/// <code>
/// bit  0      R   processor  readable
/// bit  1      W   processor  writable
/// bit  2      X   processor  executable
/// bits 3-5    MT  processor  memory type, 6 = write-back (leaf only)
/// bit  7      PS  processor  leaf at level 2 or 3
/// bit  8      A   processor  accessed; set by the processor, cleared by aging
/// bit  9      D   processor  dirty (leaf only); set by the processor, cleared by a dirty harvest
/// bit  10     WM  software   read-only slot: a write is a device access for the client, not a missing right (never together with HW)
/// bit  11     P   software   MMU-present: the entry maps memory or points to a table
/// bits 12-51      processor  host virtual address of the page or table
/// bit  54     SX  software   X of a leaf that was made old by taking its permissions (tables without Accessed bits)
/// bit  56     L   processor  log the page when D is set (leaf only); see DirtyLogging.cs
/// bit  57     HW  software   host-writable: the slot allows writes
/// bit  58     MW  software   MMU-writable: W may be set again without mmu_lock (see TdpMmu.FastPageFault)
/// </code>
/// MMIO entry: bits 0-2 = <see cref="NestedPte.MmioValue"/> (a misconfiguration for the processor, which leaves with an MMIO exit), P = 0, bits 3-10 and 52-62
/// = low and high part of the slots' generation at installation, bits 12-51 = gfn.
/// Frozen entry: <see cref="Frozen"/>: not present for everybody; only the thread that wrote it may replace it.
/// INVARIANT: W implies HW, MW and P. MW implies HW. A leaf has either HW or WM. A leaf of level 1 has no PS. A present leaf without R, W and X is old: it has
/// no A, and R is given back by the next access. Every other value without R, W and X bits that is not <see cref="Frozen"/> is 0.
/// </remarks>
public static class Spte
{
    public const ulong R = NestedPte.R, W = NestedPte.W, X = NestedPte.X, RWX = NestedPte.RWX, PS = NestedPte.PS, A = NestedPte.A, D = NestedPte.D;
    public const ulong MemTypeWriteBack = 6 << 3;
    public const ulong WriteIsMmio = NestedPte.WriteIsMmio;
    public const ulong Present = 1UL << 11;
    public const ulong AddressMask = NestedPte.Address;
    public const ulong LogDirty = NestedPte.LogDirty;
    public const ulong HostWritable = 1UL << 57, MmuWritable = 1UL << 58;

    private const ulong SavedX = 1UL << 54;
    private const int SavedXShift = 52;

    /// <summary>The entry is being changed in several steps. Not present, not readable, and distinct from every installed value.</summary>
    public const ulong Frozen = 1UL << 62 | 0x5a0;

    /// <summary>Generation bits that fit into an MMIO entry.</summary>
    public const int MmioGenerationBits = MmioGenLowBits + MmioGenHighBits;
    private const int MmioGenLowBits = 8, MmioGenHighBits = 10;
    private const int MmioGenLowShift = 3, MmioGenHighShift = 52;
    public const ulong MmioGenerationMask = (((1UL << MmioGenLowBits) - 1) << MmioGenLowShift) | (((1UL << MmioGenHighBits) - 1) << MmioGenHighShift);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsPresent(ulong spte) => (spte & Present) != 0;

    public static bool IsFrozen(ulong spte) => spte == Frozen;

    public static bool IsMmio(ulong spte) => (spte & (NestedPte.MmioMask | Present)) == NestedPte.MmioValue;

    /// <summary>A present entry that maps memory rather than pointing to a table.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsLeaf(ulong spte, int level) => level == PgLevel.Level4K || (spte & PS) != 0;

    public static bool IsPresentLeaf(ulong spte, int level) => IsPresent(spte) && IsLeaf(spte, level);

    /// <summary>A present entry that points to a table.</summary>
    public static bool IsTable(ulong spte, int level) => IsPresent(spte) && !IsLeaf(spte, level);

    public static bool IsWritable(ulong spte) => (spte & W) != 0;
    public static bool IsAccessed(ulong spte) => (spte & A) != 0;
    public static bool IsDirty(ulong spte) => (spte & D) != 0;

    /// <summary>Host virtual address of the page or table.</summary>
    public static ulong Address(ulong spte) => spte & AddressMask;

    /// <summary>Entry that points to a table. Full rights: leaves decide.</summary>
    public static ulong MakeTable(ulong tableHva) => tableHva | RWX | Present | A;

    /// <summary>Leaf entry.</summary>
    /// <param name="hva">Host virtual address, aligned to the level's size.</param>
    /// <param name="hostWritable">The slot allows writes.</param>
    /// <param name="writable">Map writable now (false while the page is write-protected for dirty logging).</param>
    /// <param name="dirty">The access that causes the installation is a write.</param>
    public static ulong MakeLeaf(ulong hva, int level, bool hostWritable, bool writable, bool dirty)
    {
        ulong spte = hva | R | X | MemTypeWriteBack | A | Present;
        if (level > PgLevel.Level4K)
            spte |= PS;
        spte |= hostWritable ? HostWritable | MmuWritable : WriteIsMmio;
        if (hostWritable && writable)
            spte |= W;
        if (dirty && (spte & W) != 0)
            spte |= D;
        return spte;
    }

    /// <summary>A leaf without permissions and without A, from which <see cref="RestoreAccess"/> makes a readable one.
    /// W is not kept: a write has to ask for it again.</summary>
    public static ulong MakeAged(ulong leaf) => leaf & ~(RWX | A) | (leaf & X) << SavedXShift;

    /// <summary>The leaf with the permissions that <see cref="MakeAged"/> has taken, W excepted; any other leaf unchanged.</summary>
    public static ulong RestoreAccess(ulong leaf) => (leaf & R) != 0 ? leaf : leaf & ~SavedX | R | A | (leaf & SavedX) >> SavedXShift;

    /// <summary>Entry for a guest frame without memory.</summary>
    public static ulong MakeMmio(ulong gfn, ulong generation)
    {
        ulong low = generation & ((1UL << MmioGenLowBits) - 1), high = generation >> MmioGenLowBits & ((1UL << MmioGenHighBits) - 1);
        return NestedPte.MmioValue | low << MmioGenLowShift | high << MmioGenHighShift | (gfn << Page.Shift & AddressMask);
    }

    /// <summary>Low <see cref="MmioGenerationBits"/> bits of the generation at which an MMIO entry was made.</summary>
    public static ulong MmioGeneration(ulong spte)
        => spte >> MmioGenLowShift & ((1UL << MmioGenLowBits) - 1) | (spte >> MmioGenHighShift & ((1UL << MmioGenHighBits) - 1)) << MmioGenLowBits;

    /// <summary>
    /// What a leaf has to be for the next write to its page to be seen. By D bits: a 4 KiB leaf is clean, and logs if asked to; a larger one, whose D would
    /// stand for 512 pages, is write-protected, and the write splits it. Otherwise write-protected. What the processor has cached of the old value must be
    /// flushed if <see cref="MayBeWrittenUnseen"/>.
    /// </summary>
    public static ulong MakeTracked(ulong spte, int level, DirtyTracking tracking) => tracking switch
    {
        DirtyTracking.WriteProtect => spte & ~(W | LogDirty),
        _ when level > PgLevel.Level4K => spte & ~(W | D),
        DirtyTracking.DirtyScan => spte & ~(D | LogDirty),
        _ => (spte | LogDirty) & ~D,
    };

    /// <summary>Whether a processor may have the leaf cached as one that it can write without looking: <paramref name="oldSpte"/> was writable and
    /// <paramref name="newSpte"/> is not, or was dirty.</summary>
    public static bool MayBeWrittenUnseen(ulong oldSpte, ulong newSpte) => (oldSpte & W) != 0 && ((oldSpte & ~newSpte & (W | D)) != 0);

    /// <summary>Leaf one level down that maps part <paramref name="index"/> of a huge leaf with the same rights and state.</summary>
    /// <param name="logged">Slot of the mapping if it is dirty-logged: a child of 4 KiB tracked by D bits
    /// is writable even if the huge leaf was protected.</param>
    public static ulong MakeSplitChild(ulong hugeSpte, int hugeLevel, int index, Memslot? logged = null)
    {
        int childLevel = hugeLevel - 1;
        ulong child = hugeSpte + ((ulong)index << PgLevel.Shift(childLevel));
        if (childLevel != PgLevel.Level4K)
            return child;
        child &= ~PS;
        // Only huge leaves are ever without X.
        if ((child & R) != 0)
            child |= X;
        if (logged is not { IsDirtyLogged: true } || logged.Tracking == DirtyTracking.WriteProtect)
            return child;
        if (logged.Tracking == DirtyTracking.DirtyLog)
            child |= LogDirty;
        // An old child gets its rights back with the next access.
        return (child & (R | MmuWritable)) == (R | MmuWritable) ? child | W : child;
    }

    /// <summary>Bits by which two leaf values may differ without a TLB flush being owed: state that the processor sets, and the software's bits.</summary>
    public static bool NeedsFlush(ulong oldSpte, ulong newSpte)
    {
        if (!IsPresent(oldSpte))
            return false;
        return !IsPresent(newSpte) || (oldSpte & ~newSpte & RWX) != 0 || Address(oldSpte) != Address(newSpte);
    }

    /// <summary>The list of INVARIANT as code.</summary>
    public static bool IsWellFormed(ulong spte, int level)
    {
        if (!IsPresent(spte))
            return spte == 0 || IsFrozen(spte) || IsMmio(spte) && level == PgLevel.Level4K;
        if (!IsLeaf(spte, level))
            return (spte & RWX) == RWX && (spte & PS) == 0 && level > PgLevel.Level4K;
        if ((spte & R) == 0 && (spte & (RWX | A)) != 0 || (spte & W) != 0 && (spte & MmuWritable) == 0
            || (spte & MmuWritable) != 0 && (spte & HostWritable) == 0)
            return false;
        if ((spte & WriteIsMmio) != 0 == ((spte & HostWritable) != 0))
            return false;
        if (level == PgLevel.Level4K ? (spte & PS) != 0 : level > PgLevel.Level1G)
            return false;
        return (Address(spte) & (PgLevel.Bytes(level) - 1)) == 0;
    }

    public static string Describe(ulong spte, int level)
    {
        if (spte == 0)
            return "none";
        if (IsFrozen(spte))
            return "frozen";
        if (IsMmio(spte))
            return $"mmio gen {MmioGeneration(spte)}";
        if (IsTable(spte, level))
            return $"table 0x{Address(spte):x}";
        return $"leaf 0x{Address(spte):x} {((spte & R) != 0 ? 'r' : '-')}{((spte & W) != 0 ? 'w' : '-')}{((spte & X) != 0 ? 'x' : '-')}"
            + $"{((spte & A) != 0 ? 'a' : '-')}{((spte & D) != 0 ? 'd' : '-')}";
    }
}

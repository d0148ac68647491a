using System.Runtime.InteropServices;

namespace Ring3.Mmu;

/// <summary>State of a table page, for checks.</summary>
internal enum TablePageState : int
{
    /// <summary>On a free list.</summary>
    Free,
    /// <summary>Allocated, in a vCPU's cache or being filled; not reachable.</summary>
    Cached,
    /// <summary>Linked into a root (or a root itself).</summary>
    Live,
    /// <summary>Unlinked; waits for flush and grace period.</summary>
    Unlinked,
}

/// <summary>
/// What the software knows of a table page. 64 bytes each, kept apart from the table itself; found by address arithmetic.
/// </summary>
/// <remarks>SAFETY: (whole type) instances live in the first page of a <see cref="TablePageAllocator"/> chunk and have the lifetime of the chunk.</remarks>
[StructLayout(LayoutKind.Sequential, Size = Size)]
internal struct TablePage
{
    public const int Size = 64;

    /// <summary>First gfn that the table covers.</summary>
    public ulong BaseGfn;
    /// <summary>Link in a free list, a flush batch or the reclaimer.</summary>
    public unsafe TablePage* Next;
    /// <summary>Number of present leaves in the table. Interlocked while the table is live.</summary>
    public int Leaves;
    public int Level;
    public TablePageState State;
    /// <summary>Owner's count of children (present table entries). Interlocked while live.</summary>
    public int Tables;
    /// <summary>Address space, for checks.</summary>
    public int AsId;
    /// <summary>Not 0: the table is there because a huge mapping may not be executed; which of these it is, counted from 1. See TdpMmu.NxHuge.cs.</summary>
    public ulong NxSplit;

    /// <summary>The table that a page's record describes.</summary>
    public static unsafe ulong* TableOf(TablePage* page) => (ulong*)TablePageAllocator.TableOf(page);

    /// <summary>The record of the page at <paramref name="table"/> (any address inside it).</summary>
    public static unsafe TablePage* Of(ulong* table) => TablePageAllocator.PageOf(table);

    /// <summary>The record of the table that an entry points to.</summary>
    public static unsafe TablePage* FromSpte(ulong spte) => Of((ulong*)Spte.Address(spte));
}

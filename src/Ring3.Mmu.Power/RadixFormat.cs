using System.Buffers.Binary;
using System.Runtime.CompilerServices;

namespace Ring3.Mmu.Power;

/// <summary>
/// Partition-scoped radix tree of a Power ISA v3.0 processor with 64 KiB pages: 13, 9, 9 and 5 bits of a 52-bit guest real address, entries in big-endian
/// doublewords. SPEC: Power ISA v3.0 book III, "Radix Tree Translation".
/// </summary>
/// <remarks>
/// <code>
/// bit (0 = most significant)
/// 0       V    valid
/// 1       L    leaf: a page-table entry; else a page-directory entry
/// leaf       7-51 RPN, 55 R referenced, 56 C changed (both set by the processor, atomically), 58-59 ATT, 60 privileged, 61 read, 62 read and write, 63 execute
/// directory  4-55 NLB address of the next table, 59-63 NLS its index bits
/// </code>
/// Directory entries have no R: see <see cref="TablesHaveAccessed"/>. "Real" addresses are host virtual addresses, as in the processor's own tables.
/// </remarks>
internal readonly struct RadixFormat : ITableFormat
{
    public const int PageShift = 16;
    public const int AddressBits = 52;

    private const ulong V = 1UL << 63, L = 1UL << 62, RealPage = 0x01ff_ffff_ffff_f000, NextLevel = 0x0fff_ffff_ffff_ff00;
    private const ulong ReferencedBit = 0x100, ChangedBit = 0x80, Read = 4, Write = 2, Execute = 1;

    public static int RootLevel => 4;

    public static int IndexBits(int level) => level switch { 1 => 5, 4 => 13, _ => 9 };

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int PagesShift(int level) => level == 1 ? 0 : 5 + (level - 2) * 9;

    public static bool IsPresent(ulong entry) => (entry & InMemory(V)) != 0;
    public static bool IsLeaf(ulong entry, int level) => (entry & InMemory(L)) != 0;
    public static ulong TableAddress(ulong entry) => InMemory(entry) & NextLevel;
    public static ulong Accessed => InMemory(ReferencedBit);
    public static ulong Dirty => InMemory(ChangedBit);
    public static ulong YoungLeaf => InMemory(V | L | ReferencedBit);

    /// <summary>Only leaves have R, so nothing can be skipped on the way.</summary>
    public static bool TablesHaveAccessed => false;

    public static bool IsDirty(ulong entry) => (entry & Dirty) != 0;
    public static bool IsWritable(ulong entry) => (entry & InMemory(Write)) != 0;
    public static ulong PageAddress(ulong entry) => InMemory(entry) & RealPage;

    /// <summary>Leaf entry, referenced; with <paramref name="write"/> writable and changed.</summary>
    public static ulong MakeLeaf(ulong hva, bool write) => InMemory(V | L | hva & RealPage | ReferencedBit | Read | Execute | (write ? Write | ChangedBit : 0));

    /// <summary>The leaf after a write that it did not permit.</summary>
    public static ulong MakeWritten(ulong leaf) => leaf | InMemory(Write | ReferencedBit | ChangedBit);

    /// <summary>Directory entry at a level that points to the table below it.</summary>
    public static ulong MakeTable(ulong table, int level) => InMemory(V | table | (uint)IndexBits(level - 1));

    /// <summary>A value of the processor as it lies in memory, and back.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static ulong InMemory(ulong value) => BitConverter.IsLittleEndian ? BinaryPrimitives.ReverseEndianness(value) : value;
}

using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>
/// Header of a decoded block; its ops follow it directly, then the copy of its bytes. Lives in a <see cref="BlockArena"/>. Blocks are shared by all processors
/// of a machine:
/// after publication only <see cref="Stale"/>, the links and the chains change, and ops get the handler of their form when they are first executed.
/// </summary>
/// <remarks>SAFETY: the ops follow the header in the same allocation.</remarks>
[StructLayout(LayoutKind.Sequential, Size = 128)]
internal unsafe struct Block
{
    /// <summary>Most instructions in a block.</summary>
    public const int MaxInstructions = 64;

    /// <summary>Successors in the same host page, or null: target of the branch, and the fall-through.</summary>
    public Block* Taken, Fall;
    /// <summary>Guest instructions in the block.</summary>
    public ushort Instructions;
    /// <summary>Ops, including the last one that only ends the block.</summary>
    public ushort Ops;
    /// <summary>Length of the code in bytes.</summary>
    public ushort Bytes;
    /// <summary>Bytes that lie in the second page.</summary>
    public ushort BytesNext;
    /// <summary>Decode mode with flags, see <see cref="BlockMode"/>.</summary>
    public uint Mode;
    /// <summary>Bytes from this header to the next block's.</summary>
    public uint Stride;
    /// <summary>Host address of the first instruction byte: with <see cref="Mode"/> the block's key.</summary>
    public byte* Host;
    /// <summary>Page-crossing block: host address of the second page. Otherwise null.</summary>
    public byte* HostNext;
    /// <summary>Chain of the block table.</summary>
    public Block* HashNext;
    /// <summary>
    /// With external writers: the machine's entry stamp (<see cref="BlockCache.EntryStamp"/>) before the bytes were last compared with <see cref="Copy"/>; else
    /// 0.
    /// </summary>
    public ulong VerifiedAt;
    /// <summary>Chains of the pages, see <see cref="PageCode.First"/>; a page-crossing block is in two.</summary>
    public Block* PageNext, PageNext2;
    /// <summary>The code bytes as they were decoded when the machine has external writers, else null.</summary>
    public byte* Copy;
    /// <summary>
    /// Where the block's translation is entered, or 0. Written under the decode lock, read without: the code stays readable as long as the block, and tests
    /// whether it is stale.
    /// </summary>
    public nint Code;
    /// <summary>Regions that were made from the block. Decode lock.</summary>
    public RegionUse* Uses;
    /// <summary>
    /// Executions that are left until the translator is asked. BENIGN-RACE: counted without synchronisation; a lost count delays a translation.
    /// </summary>
    public int Heat;
    /// <summary>
    /// Not 0: the code may have been overwritten. A processor inside the block stops before its next instruction, and one that is led here looks anew.
    /// </summary>
    public int Stale;
    /// <summary>
    /// A block of up to eight bytes with a <see cref="Copy"/>, all in one readable word of the page: the code, and which bits of the word at <see cref="Host"/>
    /// it is. Otherwise the mask is 0.
    /// </summary>
    public ulong Word, WordMask;

    public static Op* FirstOp(Block* b) => (Op*)(b + 1);

    /// <summary>Bit per 64-byte granule of <paramref name="page"/> in which a store that touches this block can start.</summary>
    public static ulong GranulesIn(Block* b, byte* page)
    {
        ulong bits = 0;
        if (PageOf(b->Host) == page)
            bits = Granules((int)((nuint)b->Host & 0xfff), b->Bytes - b->BytesNext);
        if (b->HostNext == page)
            bits |= Granules(0, b->BytesNext);
        return bits;
    }

    /// <summary>Whether a store of <paramref name="size"/> bytes at <paramref name="host"/> (within one page) overlaps the code.</summary>
    public static bool Overlaps(Block* b, byte* host, nuint size)
        => (host < b->Host + (b->Bytes - b->BytesNext) && b->Host < host + size)
        || (b->HostNext != null && host < b->HostNext + b->BytesNext && b->HostNext < host + size);

    /// <summary>The next block in the chain of <paramref name="page"/>.</summary>
    public static Block** NextIn(Block* b, byte* page) => PageOf(b->Host) == page ? &b->PageNext : &b->PageNext2;

    public static byte* PageOf(byte* host) => (byte*)((nuint)host & ~(nuint)0xfff);

    private static ulong Granules(int offset, int length)
    {
        int first = Math.Max((offset >> 6) - 1, 0), last = (offset + length - 1) >> 6;
        return ulong.MaxValue >> (63 - last) & ulong.MaxValue << first;
    }
}

/// <summary>Link of the chain from a block to the regions made from it.</summary>
/// <remarks>SAFETY: lives in the region's arena.</remarks>
internal unsafe struct RegionUse
{
    public Region* Region;
    public RegionUse* Next;
}

using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>
/// Header of a decoded block; its ops follow it directly. Lives in a block arena. Blocks are shared by all processors of a machine: only <c>Kind</c> of the ops (see stale ops) and the links change after publication.
/// </summary>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Block
{
    /// <summary>Host address of the first instruction byte: with <see cref="Mode"/> the block's key.</summary>
    public byte* Host;
    /// <summary>Page-crossing block: host address of the second page. Otherwise null.</summary>
    public byte* HostNext;
    /// <summary>Decode mode with flags, see <see cref="BlockMode"/>.</summary>
    public uint Mode;
    /// <summary>Guest instructions in the block.</summary>
    public ushort Instructions;
    /// <summary>Ops, including the last one that only ends the block.</summary>
    public ushort Ops;
    /// <summary>Length of the code in bytes.</summary>
    public ushort Bytes;
    public ushort Reserved;
    public uint Reserved2;
    /// <summary>Chain of the block table.</summary>
    public Block* HashNext;
    /// <summary>Chain of the page, see <see cref="PageCode.First"/>. A page-crossing block is in two chains.</summary>
    public Block* PageNext, PageNext2;
    /// <summary>Successors in the same host page, or null: target of the branch, and the fall-through.</summary>
    public Block* Taken, Fall;
    /// <summary>Copy of the code bytes when the machine has external writers, else null.</summary>
    public byte* Copy;

    public static Op* FirstOp(Block* b) => (Op*)(b + 1);
}

using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>Why translated code calls back.</summary>
internal enum SiteKind : byte
{
    /// <summary>A memory operand missed level 1, or its memory faulted: fill and repeat, or leave before the instruction.</summary>
    Miss,
    /// <summary>A store has met a granule with decoded code; the instruction has retired.</summary>
    Overwritten,
    /// <summary>The handler of an op is to be called; the region goes on behind it.</summary>
    Call,
    /// <summary>The interpreter has to execute the instruction.</summary>
    Leave,
    /// <summary>At a block's begin: something waits, or the region is stale.</summary>
    Poll,
    /// <summary>A direct branch in the page whose target has not been linked.</summary>
    Link,
    /// <summary>A branch to what <see cref="HostRegisters.Address"/> holds, which the translated jumps do not have.</summary>
    Jump,
    /// <summary>With external writers: the region's bytes are to be compared.</summary>
    Verify,
    /// <summary>A trace begins that needs units of the host (<see cref="Site.Size"/>: which) that do not hold the guest's state.</summary>
    Units,
}

/// <summary>What an access of a <see cref="SiteKind.Miss"/> is.</summary>
internal enum AccessForm : byte
{
    Operand, Push, Pop, Leave, BitString,
    /// <summary>An operand that the instruction may reach after exceptions of its own, or not at all: what faults is for the interpreter to find out.</summary>
    LateOperand,
    /// <summary>What RSI and RDI of a repeated string instruction point to. Its handler does what cannot be filled.</summary>
    StringSource, StringTarget,
}

/// <summary>A place of translated code that calls back. The code loads its address into <see cref="HostRegisters.Entry"/>.</summary>
/// <remarks>SAFETY: lives in the region's arena as long as the code.</remarks>
[StructLayout(LayoutKind.Sequential)]
internal unsafe struct Site
{
    /// <summary>
    /// Link: where the branch goes, the slow routine's address while it is not linked. INVARIANT: at offset 0, emitted code jumps through it.
    /// </summary>
    public nint Target;
    /// <summary>Where to go on: again at the access, or behind it.</summary>
    public nint Resume;
    public Region* Region;
    public Block* Block;
    public Op* Op;
    /// <summary>Link: next site that is linked to the same region.</summary>
    public Site* NextIncoming;
    /// <summary>Value of <see cref="FlagB"/> when it is no register.</summary>
    public ulong FlagImmediate;
    /// <summary>Offset in the page of the instruction, or of a branch's target.</summary>
    public int PageOffset;
    /// <summary>Instructions of the block, this one included, that are counted and not executed.</summary>
    public ushort Uncount;
    public SiteKind Kind;
    public AccessForm Form;
    /// <summary>Link: leads behind the checks of the target's entry. See <see cref="Trace.Descends"/>.</summary>
    public bool Onward;
    /// <summary>Bytes of an access.</summary>
    public byte Size;
    /// <summary>Miss: multiple at which the operand must be, or 0.</summary>
    public byte Alignment;
    /// <summary>The access writes.</summary>
    public bool Write;
    /// <summary>Where the flags are: <see cref="FlagKind.Words"/> means CpuState's CcKind.</summary>
    public FlagKind Flags;
    public byte FlagLog2Size;
    /// <summary>Guest registers of the recipe; 254: CpuState's CcA and CcB; 255: the immediate.</summary>
    public byte FlagA, FlagB;
    /// <summary>
    /// Jump: what a return adds to RSP, to be taken back when the target cannot be gone to. Miss: bytes from the region's code to where an access across two
    /// pages goes on (Translator.Splits.cs), or 0.
    /// </summary>
    public uint Popped;
    /// <summary>Miss: what RSP has moved by when it is left here, which the register does not show.</summary>
    public short StackMoves;
    /// <summary>Overwritten: bytes from the address register to the store.</summary>
    public short WindowOffset;
}

/// <summary>A piece of translated code: blocks of one host page that were hot together.</summary>
/// <remarks>SAFETY: lives in the arena of its blocks, and is freed with it.</remarks>
[StructLayout(LayoutKind.Sequential, Size = 128)]
internal unsafe struct Region
{
    /// <summary>Length of the checks at an entry, without external writers.</summary>
    public const int EntryBytes = 47;
    /// <summary>Not 0 when bytes of a block were overwritten. Written under the decode lock.</summary>
    public int Stale;
    /// <summary>The same in front of the code, which tests it where it is entered and where it goes back; the code's writable view.</summary>
    public int* StaleInCode;
    /// <summary>With external writers: the machine's entry stamp before the bytes were last compared.</summary>
    public ulong VerifiedAt;
    /// <summary>Sites of other regions that jump here directly. Decode lock.</summary>
    public Site* Incoming;
    /// <summary>Blocks, and where each is entered.</summary>
    public Block** Blocks;
    public nint Code;
    public int BlockCount, CodeBytes;
    /// <summary>Chain of the arena's regions.</summary>
    public Region* Next;
    /// <summary>Blocks whose bytes the code was made from.</summary>
    public Block** Sources;
    public int SourceCount, Instructions;
    /// <summary>Guest address of the block that it was made for, then.</summary>
    public ulong Address;
    /// <summary>Times that a processor looked at the clock in it. BENIGN-RACE: processors add without a lock; it is a sample.</summary>
    public ulong Samples;
}

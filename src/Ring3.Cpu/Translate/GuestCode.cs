using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>How an instruction is translated.</summary>
internal enum Lowering : byte
{
    /// <summary>The same instruction with other registers.</summary>
    Plain,
    /// <summary>The same, of the vector units.</summary>
    Vector,
    /// <summary>DIV and IDIV; BT and its kin with a bit index in a register and a string in memory; PUSH of memory.</summary>
    Divide, BitString, PushMemory,
    /// <summary>REP MOVS and REP STOS.</summary>
    String,
    /// <summary>REP CMPS and REP SCAS.</summary>
    Compare,
    /// <summary>Written out: flags, interrupts, the time-stamp counter, segments.</summary>
    System,
    Push, Pop, Leave, Call, CallIndirect, Return, Jump, JumpIndirect, Branch,
    /// <summary>SYSCALL, SYSRET and IRET of 64-bit code.</summary>
    Transition,
    /// <summary>Nothing to do.</summary>
    Nothing,
    /// <summary>Its handler is called.</summary>
    Handler,
    /// <summary>Its handler is called and ends the trace.</summary>
    HandlerEnds,
}

/// <remarks>SAFETY: block and op are used within the epoch in which the region is built.</remarks>
/// <summary>One guest instruction of a trace. Addresses are relative to the page: the decoder's IP is the offset in it.</summary>
internal unsafe struct GuestInstruction
{
    public Instruction Code;
    public Block* Block;
    public Op* Op;
    public Lowering Lowering;
    /// <summary>Status flags that it reads and that it writes (undefined ones too: the host writes them).</summary>
    public bool ReadsFlags, WritesFlags;
    /// <summary>It leaves some of the flags, or all under a condition.</summary>
    public bool KeepsFlags;
    /// <summary>Before it, and after its store, the flags must be in a place that a site can name.</summary>
    public bool SiteBefore, SiteAfter;
    /// <summary>What is done with the flags that it writes.</summary>
    public FlagPlan Plan;
    /// <summary>
    /// With <see cref="FlagPlan.Recipe"/>: how the flags are made again; and whether its operand in memory passes through a register for that.
    /// </summary>
    public RegionBuilder.Recipe Recipe;
    public bool ValueFirst;
    /// <summary>What of the host's units must be the guest's.</summary>
    public Units Units;
    /// <summary>Guest registers that it writes, as a mask.</summary>
    public ushort Writes;
    /// <summary>Something can see the flags that hold after it.</summary>
    public bool FlagsNeeded;
    /// <summary>The flags that it writes, if it does, are wanted once the host's own no longer hold them.</summary>
    public bool FlagsSurvive;
    /// <summary>It has an operand in memory.</summary>
    public bool Memory;
    /// <summary>Number of the trace that a direct branch leads to, or -1: references would make copying cost several times as much.</summary>
    public short Target;

    /// <summary>A branch that the trace follows: it is left when the branch is not taken.</summary>
    public bool Inverted;
    /// <summary>A window that an instruction before it has opened is used by it, or behind it.</summary>
    public bool InWindow;
    /// <summary>Number of the window that its access belongs to, or -1, and the constant in its address there.</summary>
    public int Window;
    public long WindowOffset;

    /// <summary>Begins anew in a place that was used before. What else there is, is set by everyone who decodes.</summary>
    public void Begin(Block* block, Op* op)
    {
        Block = block;
        Op = op;
        Target = -1;
        (Plan, ValueFirst, Units, Inverted) = (FlagPlan.None, false, Units.None, false);
    }

    /// <summary>Page offset to which a direct branch leaves the trace.</summary>
    public readonly long LeavesFor => Inverted ? Next : (long)Code.NearBranchTarget;
    public readonly int Offset => (int)Code.IP;
    public readonly int Next => (int)Code.NextIP;
}

/// <summary>How the flags of a producer survive until they are overwritten.</summary>
internal enum FlagPlan : byte { None, Recipe, Packed }

/// <summary>Consecutive blocks, entered only at the first. The builder uses its traces again.</summary>
/// <remarks>SAFETY: the block is used within the epoch in which the region is built.</remarks>
internal sealed unsafe class Trace
{
    public Block* Head;
    public readonly List<GuestInstruction> Instructions = [];
    /// <summary>Page offset at which execution goes on behind the last instruction, or -1.</summary>
    public int FallOffset;
    /// <summary>The trace there, or null.</summary>
    public Trace? Fall;
    /// <summary>As these, behind the call that ends the trace.</summary>
    public int ReturnOffset;
    public Trace? Return;
    /// <summary>The region's traces, and the place among them.</summary>
    public List<Trace> Region = [];
    public int Index;
    /// <summary>
    /// A way without polls that goes down in the page leads here. INVARIANT: links without polls go up, and from other traces; so every cycle has a poll.
    /// </summary>
    public bool Descends;
    /// <summary>Flags of before the trace can be seen in it.</summary>
    public bool NeedsFlags;
    /// <summary>What of the host's units its instructions need.</summary>
    public Units Units;
    /// <summary>
    /// Positions of the entry, of the code behind its checks, and of that behind the test of the units; -1 while not known. Jumps to be bound to the last two.
    /// </summary>
    public int Entry, Body, Live;
    public readonly List<int> Pending = [], PendingLive = [];

    /// <summary>An empty trace that begins with a block.</summary>
    public void Begin(Block* head)
    {
        Head = head;
        Offset = (int)((nuint)head->Host & 0xfff);
        Instructions.Clear();
        Pending.Clear();
        PendingLive.Clear();
        FallOffset = ReturnOffset = Entry = Body = Live = -1;
        (Fall, Return, Index, NeedsFlags, Units, Descends) = (null, null, 0, false, Units.None, false);
    }

    /// <summary>The trace that a direct branch leads to, or null.</summary>
    public Trace? TargetOf(in GuestInstruction g) => g.Target >= 0 ? Region[g.Target] : null;

    /// <summary>Page offset of the first instruction.</summary>
    public int Offset { get; private set; }
}

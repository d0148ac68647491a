using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace Ring3.Cpu;

/// <summary>Segment register with its hidden part. <see cref="Access"/> uses the VMX access-rights layout.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct Segment
{
    public ulong Base;
    public uint Limit;
    /// <summary>Bits 0-3 type, 4 S, 5-6 DPL, 7 P, 12 AVL, 13 L, 14 D/B, 15 G, 16 unusable (null selector).</summary>
    public uint Access;
    public ushort Selector;

    public const uint TypeMask = 0xf, S = 1 << 4, DplMask = 3 << 5, P = 1 << 7, Avl = 1 << 12, L = 1 << 13, DB = 1 << 14, G = 1 << 15, Unusable = 1 << 16;
    public readonly int Dpl => (int)(Access >> 5) & 3;
}

/// <summary>Descriptor-table register.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct TableRegister { public ulong Base; public uint Limit; }

/// <summary>Segment indices, in the encoding order of the ISA; LDTR and TR follow.</summary>
public static class SegmentIndex { public const int ES = 0, CS = 1, SS = 2, DS = 3, FS = 4, GS = 5, LDTR = 6, TR = 7; }

/// <summary>
/// Architectural state of one logical processor. Unmanaged and 64-byte aligned; emitted code and handlers address it by offset.
/// INVARIANT: <see cref="Gpr"/> is at offset 0, <see cref="Zero"/> at 128 and <see cref="BlockRip"/> at 136, because decoded operands are byte offsets into
/// this struct; vector registers are 32-byte aligned.
/// </summary>
/// <remarks>SAFETY: fixed buffers are indexed by decoded register numbers, which the decoder bounds.</remarks>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct CpuState
{
    /// <summary>RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8-R15. Operand offset of register n is 8n, of AH/CH/DH/BH 8n+1.</summary>
    public fixed ulong Gpr[16];
    /// <summary>Always 0: the "no base / no index" operand.</summary>
    public ulong Zero;
    /// <summary>
    /// RIP (not linear) of the first byte of the running block: RIP-relative operands use it as base; instruction RIP = BlockRip + op->Offset.
    /// </summary>
    public ulong BlockRip;
    /// <summary>Exact RIP whenever no block is running (at exits, in exception delivery, and after a handler that ends the block).</summary>
    public ulong Rip;

    /// <summary>
    /// Every RFLAGS bit except the six status flags, which read 0 here: they live in the three lazy words. Use <see cref="Cpu.Flags"/> for the whole register.
    /// </summary>
    public ulong Rflags;

    // Vector and x87 state, here so that each register is naturally aligned. All 256 bits of register n are at Ymm + 32n.
    public fixed byte Ymm[16 * 32];
    /// <summary>
    /// x87 data registers by physical number (not by ST index), 16 bytes each, low 10 used. Stale while <see cref="X87Live"/> is set: see X87Unit.Park.
    /// </summary>
    public fixed byte X87[8 * 16];
    public ulong Fip, Fdp;
    /// <summary>Status bits are stale while <see cref="MxcsrLive"/> is set: see MxcsrUnit.Park.</summary>
    public uint Mxcsr;
    public ushort Fcw, Fsw, Fop;
    public ushort FipSelector, FdpSelector;
    /// <summary>Abridged tag word as FXSAVE stores it: bit n set when physical register n is not empty.</summary>
    public byte Ftw;
    /// <summary>Nonzero while the host's MXCSR holds the guest's: only between Enter and exit.</summary>
    public byte MxcsrLive;
    /// <summary>64-byte aligned FXSAVE image through which the x87 unit is loaded and parked.</summary>
    internal fixed byte X87Image[576];
    /// <summary>Nonzero while the host's x87 unit holds the guest's registers: only between Enter and exit.</summary>
    public byte X87Live;

    /// <summary>
    /// Lazy status flags, see <see cref="Cpu.Flags"/>: ZF is (FlagsZero == 0); SF is bit 63 and PF the parity of the low byte of FlagsSign; CF is bit 63, OF
    /// bit 63 xor bit 62, AF bit 3 of FlagsCarry.
    /// </summary>
    public ulong FlagsZero, FlagsSign, FlagsCarry;

    /// <summary>
    /// Word polled by the running processor at every block end; nonzero makes it leave with <see cref="ExitReason.Request"/>. Written by any thread. 8-byte
    /// aligned, read together with <see cref="Attention"/>.
    /// </summary>
    public int ExitRequest;
    /// <summary>
    /// Nonzero: leave the fast loop at the block end and look at single step, interrupt shadow, windows and debug events. Owning thread only.
    /// </summary>
    public int Attention;

    /// <summary>
    /// The op whose memory access runs, for <see cref="LogicalProcessor"/>.MemoryFailure.cs: the loop stores it before it touches guest memory or calls a
    /// handler.
    /// </summary>
    internal Op* CurrentOp;
    /// <summary>RSP to put back when memory fails under <see cref="KeptBy"/>, an op that moves the stack pointer before its last access.</summary>
    internal ulong KeptRsp;
    internal Op* KeptBy;

    /// <summary>Low 12 bits of every TLB tag: number of the current translation context (ASID, PCID, privilege). See Tlb.cs.</summary>
    public ulong TlbContext;
    /// <summary>User pages in level 1 that the supervisor may access only as long as RFLAGS.AC is set, and their tags: see <see cref="Tlb.Lend"/>.</summary>
    internal int LentPages;
    internal fixed ulong LentTags[Tlb.MaxLent];
    /// <summary>Current decode mode: part of a block's key. See BlockMode.</summary>
    public uint BlockMode;
    /// <summary>CPL 0-3. Equal to SS.DPL; in real mode 0, in virtual-8086 mode 3.</summary>
    public uint Cpl;

    public Segment Es, Cs, Ss, Ds, Fs, Gs, Ldtr, Tr;
    public TableRegister Gdtr, Idtr;
    public ulong Cr0, Cr2, Cr3, Cr4, Cr8, Efer, Xcr0, Xss;
    /// <summary>Rights of protection keys. Outside the guest the owner writes it through <see cref="PagingUnit.Pkru"/>.</summary>
    public uint Pkru;
    /// <summary>PAE page-directory pointers, loaded with CR3 as the hardware does.</summary>
    public fixed ulong Pdptr[4];
    public ulong Dr0, Dr1, Dr2, Dr3, Dr6, Dr7;

    // MSRs that the processor itself reads.
    public ulong KernelGsBase, Star, Lstar, Cstar, Sfmask, SysenterCs, SysenterEsp, SysenterEip, TscAux, Pat, Smbase, DebugCtl;

    // Events.
    public ulong PendingErrorCode, PendingAddress;
    /// <summary>
    /// Exception raised by the current instruction, to be delivered by the loop. Valid while a handler returns <see cref="OpResult.Fault"/> and <see
    /// cref="ExitPending"/> is false.
    /// </summary>
    public byte PendingVector;
    public byte PendingHasErrorCode;
    /// <summary>PendingVector came from INT n / INT3 / INTO / INT1 (type of the event; see EventType).</summary>
    public byte PendingType;
    /// <summary>A handler filled LogicalProcessor.Exit and returned <see cref="OpResult.Fault"/>: leave the guest.</summary>
    public byte ExitPending;
    /// <summary>Blocking by STI (1) or by MOV SS / POP SS (2), for one instruction.</summary>
    public byte InterruptShadow;
    public byte NmiBlocked;
    public byte InSmm;
    /// <summary>
    /// With <see cref="BusLockExits"/>: the processor itself has made a bus lock (accessed or busy bit of a descriptor that crosses a cache line), and has set
    /// <see cref="ExitRequest"/>. The owner clears it.
    /// </summary>
    public byte BusLockSeen;
    public byte Halted;
    /// <summary>DR6 bits (B0-B3, BS, BT) of traps that an instruction has met; delivered at its boundary. See LogicalProcessor.FirstEvent.</summary>
    public ushort PendingDebug;
    /// <summary>
    /// The instruction at RIP is a repeated string instruction between two iterations: frames have RF set, and an instruction breakpoint on it has had its
    /// turn.
    /// </summary>
    public byte BetweenIterations;
    /// <summary>Not 0: the loop runs one instruction at a time and calls the debug hooks around it. See StepReason.</summary>
    public byte StepMode;
    /// <summary>Enabled breakpoints by number, of data, code and ports. See Breakpoints.</summary>
    internal byte DataBreakpoints, CodeBreakpoints, PortBreakpoints;
    /// <summary>Set by an instruction whose single-step trap follows the TF that it leaves, not the one that it found (SYSCALL, SYSRET).</summary>
    internal byte TrapDecided;
    /// <summary>Software events: length of the instruction, added to RIP when the event is delivered.</summary>
    public byte PendingLength;
    /// <summary>
    /// The pending #GP(0) is for a non-canonical address (PendingAddress): it is #SS(0) when the operand's segment is SS or the access was to the stack.
    /// </summary>
    public byte PendingNonCanonical;

    /// <summary>Details of the last exit. Set once, with the processor.</summary>
    internal ExitInfo* Exit;

    // Virtualisation controls, set by the hypervisor before Enter.
    /// <summary>Host address of the top (level 4) nested page table; 0 when guest-physical access is not possible at all.</summary>
    public ulong NestedRoot;
    /// <summary>Tags TLB entries together with the PCID. The owner flushes before it gives an ASID a new root.</summary>
    public uint Asid;
    /// <summary>Exceptions (bit = vector) that leave with <see cref="ExitReason.Exception"/> instead of being delivered.</summary>
    public uint ExceptionIntercepts;
    public byte RequestInterruptWindow, RequestNmiWindow;
    /// <summary>Every RDMSR and WRMSR leaves the guest, those of the processor's own MSRs as well.</summary>
    public byte InterceptMsrs; // MsrIntercepts
    /// <summary>Locked accesses that cross a cache line leave with <see cref="ExitReason.BusLock"/>.</summary>
    public byte BusLockExits;
    /// <summary>A page fault for reserved bits leaves with <see cref="ExitReason.Exception"/>, unless it happened during the delivery of an event.</summary>
    public byte InterceptReservedFaults;
    /// <summary>Leave with <see cref="ExitReason.Notify"/> when no event can be taken for <see cref="NotifyWindow"/> ticks of the host's TSC.</summary>
    public byte NotifyExits;
    public uint NotifyWindow;
    /// <summary>With external writers: number of this stay in the guest, see Block.VerifiedAt; else 0.</summary>
    public ulong EntryStamp;
    /// <summary>Host-requested single step: leave with ExitReason.SingleStep after one instruction.</summary>
    public byte HostSingleStep;
    /// <summary>
    /// With <see cref="HostSingleStep"/>: an instruction has retired by an exit that the owner finished, so that the next entry leaves at once with
    /// ExitReason.SingleStep.
    /// </summary>
    public byte HostStepDone;
    /// <summary>Breakpoints in force are HostDr0-3 and HostDr7. The guest's own registers keep what the guest writes and have no effect.</summary>
    public byte HostBreakpoints;
    /// <summary>Enter only finishes an instruction that has made MMIO accesses and has not retired, then leaves with ExitReason.Request.</summary>
    public byte FinishInstruction;
    public ulong HostDr0, HostDr1, HostDr2, HostDr3, HostDr7;
    /// <summary>Leave on PAUSE after this many PAUSEs in a row of polls; 0 = never.</summary>
    public uint PauseLoopWindow;
    /// <summary>
    /// Host TSC at which the guest is left with <see cref="ExitReason.Timer"/>; 0: never. Looked at on entry and every few microseconds of guest code. SPEC:
    /// SDM volume 3, "VMX-Preemption Timer".
    /// </summary>
    public ulong TimerDeadline;
    public ulong TscOffset;
    /// <summary>Guest TSC = (host TSC * TscMultiplier >> 48) + TscOffset.</summary>
    public ulong TscMultiplier;
    /// <summary>Event to inject on the next Enter: see EventInjection.</summary>
    public EventInjection Inject;

    // Page-modification log. SPEC: SDM volume 3, "Page-Modification Logging"; the entries count upwards here, and only leaves with NestedPte.LogDirty are
    // logged.
    /// <summary>
    /// Guest-physical addresses of pages in whose leaf the processor has set D, oldest first. The owner's memory, at least <see cref="DirtyLogLimit"/> entries.
    /// </summary>
    public ulong* DirtyLog;
    /// <summary>Entries in the log; the owner takes them and writes 0 after each exit.</summary>
    public uint DirtyLogCount;
    /// <summary>With this many entries the next D leaves with <see cref="ExitReason.DirtyLogFull"/> instead.</summary>
    public uint DirtyLogLimit;

    // Statistics.
    public ulong InstructionsRetired, BlocksExecuted;
    /// <summary>The running loop looks at <see cref="TimerDeadline"/> when <see cref="InstructionsRetired"/> has come so far.</summary>
    internal ulong TimerLook;

    // Translated code.
    /// <summary>
    /// Where the status flags are at an edge of translated code: a <see cref="FlagKind"/> with the operand size (log2) in bits 4 and 5, and its two values.
    /// Words outside.
    /// </summary>
    internal uint CcKind;
    internal ulong CcA, CcB;
    /// <summary>RIP of the first byte of the page whose code runs.</summary>
    internal ulong CodeBase;
    /// <summary>Host address of the routine that calls back, and of the managed code that it calls.</summary>
    internal nint SlowRoutine, SlowCallback;
    /// <summary>Host addresses of <see cref="TlbRoutines"/>.</summary>
    internal nint MissRoutine, TakeBackRoutine;
    /// <summary>
    /// An access across two pages (Translator.Splits.cs): its bytes, the level-1 entry that leads there, its linear address, where translated code goes on,
    /// and the bitmap of a page that is all code, so that a store calls back.
    /// </summary>
    internal const int SplitBytesCount = 64;
    internal fixed byte SplitBytes[SplitBytesCount];
    internal TlbEntry SplitEntry;
    internal ulong SplitLinear, SplitCode;
    internal nint SplitResume;
    /// <summary>Host address of <see cref="FlagRoutines.Load"/>.</summary>
    internal nint FlagRoutine;
    /// <summary>The host's RSP where no call is noted, and where there is no room to note another. See <see cref="ReturnFrame"/>.</summary>
    internal nint FirstReturn, LastReturn;
    /// <summary>A value between two accesses of one instruction.</summary>
    internal ulong Between;
    /// <summary>See <see cref="Cpu.Units"/>. 0 outside translated code and its callbacks.</summary>
    internal byte Units;
    /// <summary>32-bit code: FS (bit 0) and GS (bit 1) are writable data segments with all 4 GiB, whatever their base.</summary>
    internal byte FlatSegments;
    /// <summary>
    /// Code whose segments count: offset of the last byte of each segment that can be read, and that can be written, in turn; -1 where the interpreter has to
    /// look.
    /// </summary>
    internal fixed long SegmentEnds[12];
    /// <summary>The same code: base of CS in the upper half, as targets of translated jumps have it; else 0. The CS limit that these were noted with.</summary>
    internal ulong JumpSegment;
    internal uint JumpLimit;
    /// <summary>Effective address of an x87 instruction that is under way.</summary>
    internal ulong X87Operand;
    /// <summary>The host's MXCSR outside translated code.</summary>
    internal uint HostMxcsr;
    /// <summary>GCHandle of the processor's translator.</summary>
    internal nint Self;
    /// <summary>Joined to the context in the keys of translated jumps: changes when targets may have changed. Low 12 bits 0.</summary>
    internal ulong JumpKey;
    /// <summary>
    /// The context with <see cref="JumpKey"/>, as keys of translated jumps have it, and what it adds to their index: so two address spaces have entries for the
    /// same kernel.
    /// </summary>
    internal ulong JumpContext, JumpSalt;
    /// <summary>What IRET has loaded from the GDT.</summary>
    internal ReturnSegments Returned;
    /// <summary>The context of instruction fetches: <see cref="TlbContext"/>, or one for the supervisor's global pages in all address spaces.</summary>
    internal ulong CodeContext;

    public static void CheckLayout()
    {
        CpuState s;
        byte* p = (byte*)&s;
        if ((byte*)s.Gpr != p || (byte*)&s.Zero - p != 128 || (byte*)&s.BlockRip - p != 136)
            throw new InvalidOperationException("CpuState layout: Gpr, Zero and BlockRip must be at 0, 128 and 136.");
        if (s.Ymm - p != 160 || ((s.X87Image - p) & 63) != 0)
            throw new InvalidOperationException("CpuState layout: Ymm must be at 160 and X87Image 64-byte aligned.");
    }

    /// <summary>Segment register by <see cref="SegmentIndex"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Segment* SegmentAt(CpuState* c, int index) => &c->Es + index;
}

/// <summary>Event to inject on entry, or event whose delivery an exit interrupted.</summary>
[StructLayout(LayoutKind.Sequential)]
public struct EventInjection
{
    public byte Valid, Vector, HasErrorCode;
    public EventType Type;
    public uint ErrorCode;
    /// <summary>Software events: RIP advance applied before delivery.</summary>
    public byte InstructionLength;
    /// <summary>For the owner: <see cref="Payload"/> has not reached CR2 or DR6 yet.</summary>
    public byte HasPayload;
    /// <summary>#PF: value of CR2; #DB: DR6 bits. Only exits that interrupted a delivery report it.</summary>
    public ulong Payload;
}

/// <summary>Kinds of event. SPEC: SDM volume 3, "VM-Entry Controls for Event Injection" (same numbers).</summary>
public enum EventType : byte { External = 0, Nmi = 2, HardwareException = 3, SoftwareInterrupt = 4, PrivilegedSoftwareException = 5, SoftwareException = 6 }

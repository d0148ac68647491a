using System.Runtime.InteropServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Why <see cref="LogicalProcessor.Enter"/> returned. The architectural state is exact at every exit.</summary>
public enum ExitReason
{
    None,
    /// <summary>The poll word was set by another thread (kick).</summary>
    Request,
    /// <summary>
    /// Port I/O: Port, Size, IsWrite, Count, Data. A read is finished by CompleteIo and then retires; a write of a string instruction has retired, another
    /// retires with SkipInstruction.
    /// </summary>
    Io,
    /// <summary>Nested table entry absent or without the permission: Gpa, Access. RIP is at the instruction; re-entering restarts it.</summary>
    NestedFault,
    /// <summary>
    /// Access to a guest-physical address marked as MMIO: Gpa, Size, IsWrite, Data. Finish with CompleteMmio; the instruction then continues where it stopped.
    /// With InstructionLength not 0 it is a plain store: SkipStore ends it as well.
    /// </summary>
    Mmio,
    /// <summary>HLT has retired.</summary>
    Hlt,
    /// <summary>CPUID at RIP, not retired: the owner writes RAX..RDX and calls SkipInstruction.</summary>
    Cpuid,
    /// <summary>RDMSR of an MSR the processor does not own (index in RCX), not retired: finish with CompleteMsr.</summary>
    MsrRead,
    /// <summary>WRMSR (index in RCX, value EDX:EAX), not retired: finish with CompleteMsr.</summary>
    MsrWrite,
    /// <summary>
    /// VMCALL (Payload 0) or VMMCALL (Payload 1) at RIP, not retired: the owner writes RAX and calls SkipInstruction, or injects an exception.
    /// </summary>
    Hypercall,
    /// <summary>
    /// MOV to CR8 (Data = value, Register = 8), not retired: the owner acts and calls SkipInstruction. Writes to CR0/CR3/CR4/EFER are done by the processor
    /// itself.
    /// </summary>
    Cr8Write,
    /// <summary>XSETBV with valid CPL, not retired: owner validates and calls SkipInstruction or injects #GP.</summary>
    Xsetbv,
    /// <summary>PAUSE loop. Retired.</summary>
    Pause,
    /// <summary>Triple fault.</summary>
    Shutdown,
    /// <summary>The guest can take an interrupt now.</summary>
    InterruptWindow,
    /// <summary>The guest can take an NMI now.</summary>
    NmiWindow,
    /// <summary>An exception in ExceptionIntercepts: Vector, ErrorCode, Payload (CR2 or DR6 bits). Not delivered, RIP as the exception would save it.</summary>
    Exception,
    /// <summary>HostSingleStep: one instruction retired.</summary>
    SingleStep,
    /// <summary>RSM executed in SMM, not retired: the owner restores the state from SMRAM.</summary>
    Rsm,
    /// <summary>
    /// Host memory behind a present nested entry could not be accessed: Host, Access. RIP is at the instruction, which did not retire; re-entering restarts it.
    /// </summary>
    MemoryFailure,
    /// <summary>The processor met something it cannot execute exactly: InstructionBytes, Length. KVM_INTERNAL_ERROR_EMULATION.</summary>
    EmulationFailure,
    /// <summary>
    /// A write would set D in a leaf with NestedPte.LogDirty, and the dirty log is full. RIP is at the instruction; re-entering with an emptied log restarts
    /// it.
    /// </summary>
    DirtyLogFull,
    /// <summary>A locked access crossed a cache line and CpuState.BusLockExits is set. Retired.</summary>
    BusLock,
    /// <summary>
    /// CpuState.NotifyExits: exceptions follow each other inside event delivery and no event could be taken for the whole window. IdtVectoring is the one that
    /// was being delivered.
    /// </summary>
    Notify,
    /// <summary>The host's TSC has reached CpuState.TimerDeadline. At an instruction boundary, or between two iterations of a repeated instruction.</summary>
    Timer,
    /// <summary>WBINVD / INVD / MONITOR / MWAIT and similar never exit; reserved for owners that ask.</summary>
    Reserved,
}

/// <summary>Details of the last exit.</summary>
/// <remarks>SAFETY: plain data.</remarks>
[StructLayout(LayoutKind.Sequential)]
public unsafe struct ExitInfo
{
    public ExitReason Reason;
    public AccessKind Access;
    public ulong Gpa;
    /// <summary>Linear address of the access, when there is one.</summary>
    public ulong Gva;
    /// <summary>MemoryFailure: host address of the access.</summary>
    public ulong Host;
    public ushort Port;
    /// <summary>Bytes of one element (I/O: 1, 2, 4; MMIO: 1..64).</summary>
    public byte Size;
    public byte IsWrite;
    /// <summary>I/O: string instruction.</summary>
    public byte IsString;
    public byte Vector;
    public byte HasErrorCode;
    /// <summary>Length of the instruction at RIP for exits that are not retired.</summary>
    public byte InstructionLength;
    /// <summary>I/O: number of elements in Data (string I/O batches up to 4096/Size).</summary>
    public uint Count;
    public uint ErrorCode;
    public ulong Payload;
    /// <summary>Event whose delivery this exit interrupted; the owner injects it again on the next entry.</summary>
    public EventInjection IdtVectoring;
    public fixed byte InstructionBytes[15];
    /// <summary>Value written, or room for the value read. Writes fill it before the exit.</summary>
    public fixed byte Data[4096];
}

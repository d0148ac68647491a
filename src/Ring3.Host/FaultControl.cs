using System.Runtime.InteropServices;

namespace Ring3.Host;

/// <summary>Host memory: behind a guest, or paged. Valid for the handler when its end is above its begin.</summary>
internal struct GuestRange
{
    public ulong Begin, End;
}

/// <summary>A range of emitted code. Fixup is an address or a <see cref="ThunkKind"/>.</summary>
internal struct FaultRoutine
{
    public ulong Begin, End, Fixup;
}

/// <summary>The kernel's struct sigaction.</summary>
internal struct KernelAction
{
    public ulong Handler, Flags, Restorer, Mask;
}

/// <summary>What the handler reads (<see cref="FaultHandlerCode"/>).</summary>
/// <remarks>SAFETY: unmanaged, and never freed; so is everything that it points to.</remarks>
[StructLayout(LayoutKind.Sequential)]
internal struct FaultControl
{
    public KernelAction PreviousSegv, PreviousBus;
    public unsafe FaultRoutine* Routines;
    public unsafe GuestRange* Ranges, RangesEnd;
    public unsafe FaultRecord* Records;
    public ulong TrampolineBegin, TrampolineEnd;
    /// <summary>Where managed code can be.</summary>
    public ulong CodeBegin, CodeEnd;
    public unsafe GuestRange* Paged, PagedEnd;
    /// <summary>How long a thread sleeps before it tries again to write to paged memory: struct timespec.</summary>
    public long WaitSeconds, WaitNanoseconds;
}

/// <summary>What the handler knows and leaves about a thread.</summary>
/// <remarks>SAFETY: lives in a table that is never freed; only its thread and the handler on that thread write it, except for the claim.</remarks>
[StructLayout(LayoutKind.Explicit, Size = 1 << SizeShift)]
public struct FaultRecord
{
    /// <summary>Where the search for a thread's record begins: the low 32 bits of its thread pointer, shifted right, times the factor, shifted right again. The
    /// table has a power of two of them.</summary>
    internal const int HashDrop = 6, HashShift = 20;
    internal const uint HashFactor = 0x9E3779B1;
    /// <summary>Records of the table, and the size of one as a shift.</summary>
    internal const int Count = 1 << 32 - HashShift, SizeShift = 10;

    /// <summary>Thread pointer of the owner; 0 = free.</summary>
    [FieldOffset(0)] internal ulong Thread;
    /// <summary>Host address of the last fault.</summary>
    [FieldOffset(8)] public ulong Address;
    /// <summary>Page-fault error code of the last fault: bit 1 = write. 0 when the processor gave none.</summary>
    [FieldOffset(16)] public ulong Error;
    /// <summary>Nonzero: the thread runs guest code, so its faults on guest memory are the guest's.</summary>
    [FieldOffset(40)] public int Inside;
    /// <summary>Nonzero: a null reference has been raised for a fault.</summary>
    [FieldOffset(44)] public int Pending;
    /// <summary>FXSAVE image of the host's units at the fault; afterwards they were clean.</summary>
    [FieldOffset(64)] public unsafe fixed byte Units[512];
}

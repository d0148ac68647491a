using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Host memory that is gone under a translation: the access faults, <see cref="FaultGuard"/> raises a null reference at it, and who catches that has <see
/// cref="Failed"/> make it an <see cref="ExitReason.MemoryFailure"/>.
/// </summary>
/// <remarks>SAFETY: the record belongs to the thread that runs the processor.</remarks>
internal sealed unsafe class MemoryGuard
{
    private const int ImageMxcsr = 24;

    internal FaultRecord* Record;

    /// <summary>Called by a handler before anything else when it moves the stack pointer early.</summary>
    internal static ulong Keep(CpuState* c, Op* op)
    {
        c->KeptRsp = c->Gpr[4];
        c->KeptBy = op;
        return c->Gpr[4];
    }

    /// <summary>Turns the fault that is pending into an exit.</summary>
    internal void Failed(CpuState* c)
    {
        FaultRecord* faults = Record;
        faults->Pending = 0;
        MxcsrUnit.ParkFrom(c, *(uint*)(faults->Units + ImageMxcsr));
        X87Unit.ParkFrom(c, faults->Units);
        Outcome.LeaveForMemory(c, faults->Address, (faults->Error & 2) != 0 ? AccessKind.Write : AccessKind.Read);
    }
}

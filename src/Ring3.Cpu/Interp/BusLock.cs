using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>
/// Bus locks: locked accesses that cross a cache line, which stop every processor of a real machine. SPEC: SDM volume 3, "Bus-Lock Detection" (trap-like, after
/// the instruction).
/// </summary>
/// <remarks>SAFETY: the op lies in a block of the running epoch.</remarks>
internal static unsafe class BusLock
{
    internal const ulong CacheLine = 64;

    /// <summary>Whether an access crosses a cache line. Only locked accesses ask, so the common path pays nothing.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool IsSplit(ulong linear, int bytes) => (linear & (CacheLine - 1)) + (ulong)bytes > CacheLine;

    /// <summary>
    /// A locked instruction has made a split access, with the result <paramref name="end"/>. Leaves behind the instruction when the owner wants to know.
    /// </summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal static OpResult BusLocked(CpuState* c, Op* op, OpResult end)
    {
        if (c->BusLockExits == 0 || end != OpResult.Next)
            return end;
        Interpreter.Uncount(c, Interpreter.BlockOf(op), op + 1);
        c->Rip = Addressing.NextRip(c, op);
        c->Exit->Reason = ExitReason.BusLock;
        return OpResult.RetiredExit;
    }

    /// <summary>
    /// The locked write of a descriptor's accessed or busy bit. Its instruction may still have much to do, so the processor leaves at the next boundary where
    /// it looks for requests.
    /// </summary>
    internal static void Note(CpuState* c, ulong descriptor)
    {
        if (c->BusLockExits == 0 || !IsSplit(descriptor, sizeof(ulong)))
            return;
        c->BusLockSeen = 1;
        Volatile.Write(ref c->ExitRequest, 1);
    }
}

using System.Runtime.CompilerServices;

namespace Ring3.Cpu;

/// <summary>The processor at the machine's bus: locked accesses across a cache line.</summary>
/// <remarks>SAFETY: host pointers come from the translation of this access.</remarks>
public sealed unsafe partial class LogicalProcessor
{
    /// <summary>Not 0: the processor waits for the machine's bus inside the guest, or leaves without having had it.</summary>
    internal int AtBus;

    internal bool IsExitRequested => Volatile.Read(ref State->ExitRequest) != 0;

    /// <summary>Whether the processor does nothing in the guest as long as the bus is taken. For the bus's holder.</summary>
    internal bool IsStopped => Volatile.Read(ref Fetch.ActiveEpoch) == long.MaxValue || Volatile.Read(ref AtBus) != 0;

    [MethodImpl(MethodImplOptions.NoInlining)]
    private void AwaitBus()
    {
        do
        {
            Fetch.LeaveEpoch();
            Machine.AwaitBus();
            Fetch.EnterEpoch();
        }
        while (Machine.IsBusTaken);
    }

    /// <summary>A locked change of an operand that crosses a cache line. <paramref name="old"/> is what it was.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    internal OpResult ChangeSplit<F>(CpuState* c, ulong linear, int size, ref F change, out ulong old) where F : struct, ISplitChange
    {
        old = 0;
        byte* ptr = Access.ModifyPtr(c, linear, size);
        if (ptr == null)
            return OpResult.Fault;
        int lowBytes = (int)(BusLock.CacheLine - (linear & BusLock.CacheLine - 1));
        byte* low = Access.HostByte(ptr, 0), high = Access.HostByte(ptr, lowBytes);
        if (low == null || high == null)
        {
            // One half is a device's. No processor makes that one access, and KVM's emulator does not either.
            old = SlowOperands.Load(ptr, size);
            if (change.Apply(old, out ulong value))
                SlowOperands.Store(ptr, size, value);
            return Access.EndWrite(c, ptr, linear, size);
        }
        if (!Machine.TakeBus(this))
            return Outcome.Leave(c, ExitReason.Request);
        try
        {
            old = new SplitAccess(low, high, lowBytes, size).Change(ref change);
        }
        finally
        {
            Machine.ReleaseBus();
        }
        Paging.CodeMayHaveChanged(low, lowBytes);
        Paging.CodeMayHaveChanged(high, size - lowBytes);
        return OpResult.Next;
    }
}

using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>
/// Everything that goes to other code through descriptors: exceptions and interrupts on their way to a handler, software interrupts, IRET, far calls and
/// returns, task switches, and the loads of segment registers.
/// It decides which event is next at an instruction boundary, combines faults, honours intercepts, and says what was being delivered when an exit came in
/// between.
/// </summary>
/// <remarks>
/// It stands on translation (<see cref="PagingUnit"/>), guest access and the memory guard.
/// SAFETY: tables, frames and task state segments are reached through the checked accessors; pointers to segments are to fields of the state.
/// </remarks>
internal sealed unsafe partial class EventUnit
{
    private readonly CpuState* _state;
    private readonly Identity _identity;
    private readonly PagingUnit _paging;
    private readonly GuestAccess _access;
    private readonly MemoryGuard _guard;

    public EventUnit(CpuState* state, Identity identity, PagingUnit paging, GuestAccess access, MemoryGuard guard)
    {
        _state = state;
        _identity = identity;
        _paging = paging;
        _access = access;
        _guard = guard;
    }

    /// <summary>
    /// An instruction has made an MMIO access that the owner completed, or half of a task switch, and has not retired. Until it has, the state is between two
    /// instructions: see <see cref="CpuState.FinishInstruction"/>.
    /// </summary>
    public bool IsInstructionInProgress => _access.Replay.InProgress || _unfinishedTask.Valid;

    private bool DeliverGuarded(CpuState* c, in PendingEvent e)
    {
        try
        {
            return DeliverOnce(c, e);
        }
        catch (NullReferenceException) when (_guard.Record->Pending != 0)
        {
            _guard.Failed(c);
            return false;
        }
    }

    /// <summary>The part of a task switch that belongs to the new task, which is current already.</summary>
    private bool LoadTaskGuarded(CpuState* c, bool wide, TaskImage* t, bool hasErrorCode, uint errorCode)
    {
        try
        {
            return LoadTask(c, wide, t, hasErrorCode, errorCode);
        }
        catch (NullReferenceException) when (_guard.Record->Pending != 0)
        {
            _guard.Failed(c);
            ModeChanged(c);
            return false;
        }
    }

    /// <summary>Whether something must happen at this instruction boundary before the fast loop goes on.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    internal static bool NeedsAttention(CpuState* c)
        => (c->InterruptShadow | c->StepMode | c->PendingDebug) != 0
        || (c->RequestInterruptWindow != 0 && (c->Rflags & Arch.Rflags.IF) != 0)
        || (c->RequestNmiWindow != 0 && c->NmiBlocked == 0);
}

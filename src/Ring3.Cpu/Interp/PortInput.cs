using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Input that an exit has asked the owner for: where IN or INS wants it, and how it gets there. Elements of INS go to guest memory as the guest's own stores
/// would.
/// </summary>
/// <remarks>
/// It stands on translation, guest access and the memory guard.
/// SAFETY: elements are written where the checked accessors say, one at a time.
/// </remarks>
internal sealed unsafe class PortInput
{
    private readonly CpuState* _state;
    private readonly PagingUnit _paging;
    private readonly GuestAccess _access;
    private readonly MemoryGuard _guard;

    public PortInput(CpuState* state, PagingUnit paging, GuestAccess access, MemoryGuard guard)
    {
        _state = state;
        _paging = paging;
        _access = access;
        _guard = guard;
    }

    /// <summary>The INS of the last input exit; Length 0 for IN.</summary>
    internal Op Pending;

    /// <summary>
    /// Elements of the input, those that CompleteIo has stored before it met an obstacle, and bytes of one: <see cref="LogicalProcessor.Exit"/> may describe an
    /// access to where they go.
    /// </summary>
    private uint _inputCount, _inputDone;

    private int _inputSize;

    internal void Begin(Op* op, int size, uint count) => (Pending, _inputSize, _inputCount, _inputDone) = (*op, size, count, 0);

    /// <summary>Bytes that <see cref="CompleteIo"/> wants for the INS of the last input exit.</summary>
    public int InputBytes => _inputSize * (int)_inputCount;

    /// <summary>
    /// Whether the input of the last <see cref="ExitReason.Io"/> exit goes to guest memory: <see cref="CompleteIo"/> then follows translations and nested
    /// tables as the guest does.
    /// </summary>
    public bool InputGoesToMemory => Pending.Length != 0;

    /// <summary>
    /// Finishes the input of the last <see cref="ExitReason.Io"/> exit with IsWrite 0 and retires it: Size * Count bytes, in port order. Missing bytes read as
    /// zero.
    /// </summary>
    /// <returns>Anything but Done: to be called again with the same data, before the next entry. After Mmio the owner has first made the access that <see
    /// cref="LogicalProcessor.Exit"/> describes, and called CompleteMmio.</returns>
    public InputResult CompleteIo(ReadOnlySpan<byte> data)
    {
        CpuState* c = _state;
        if (Pending.Length == 0)
        {
            int size = c->Exit->Size;
            ulong value = 0;
            data[..Math.Min(data.Length, size)].CopyTo(new Span<byte>(&value, 8));
            SlowOperands.Set(c, 0, size, value);
            Outcome.Retire(c, c->Exit->InstructionLength);
            Breakpoints.NotePort(c, c->Exit->Port, size);
            return InputResult.Done;
        }
        FaultRecord* faults = _guard.Record = FaultGuard.RecordOfThread(_guard.Record);
        faults->Inside = 1;
        try
        {
            return StoreInput(c, data, _inputSize);
        }
        catch (NullReferenceException) when (faults->Pending != 0)
        {
            faults->Pending = 0;
            return InputResult.HostMemoryGone;
        }
        finally { faults->Inside = 0; }
    }

    private InputResult StoreInput(CpuState* c, ReadOnlySpan<byte> data, int size)
    {
        _paging.UpdateContext(c);
        _access.Replay.Begin();
        byte length = Pending.Length;
        c->Exit->Reason = ExitReason.Io;
        Op op = Pending;
        StringRun run = new(c, &op, size);
        ulong count = (op.Flags & (OpFlags.Rep | OpFlags.Repne)) != 0 ? c->Gpr[1] & run.Mask : 1;
        // The owner may have changed the count register: it decides how many elements are still wanted.
        for (uint i = _inputDone; i < _inputCount && count != 0; _inputDone = ++i)
        {
            ulong value = 0;
            ReadOnlySpan<byte> rest = data.Length > (int)i * size ? data[((int)i * size)..] : [];
            rest[..Math.Min(rest.Length, size)].CopyTo(new Span<byte>(&value, 8));
            byte* target = run.Linear(c, 7, SegmentIndex.ES, AccessKind.Write, out ulong to) ? _access.WritePtr(c, to, size) : null;
            bool stored = false;
            if (target != null)
            {
                SlowOperands.Store(target, size, value);
                stored = _access.EndWrite(c, target, to, size) == OpResult.Next;
            }
            if (!stored)
            {
                c->ExitPending = 0;
                switch (c->Exit->Reason)
                {
                    case ExitReason.NestedFault: return InputResult.NestedFault;
                    case ExitReason.DirtyLogFull: return InputResult.DirtyLogFull;
                    case ExitReason.Mmio: return InputResult.Mmio;
                }
                // Ins checked the destination; the guest or the owner has taken it away meanwhile, and then the input has nowhere to go.
                break;
            }
            run.Advance(c, 7, 1);
            count = run.CountDown(_access, c, &op, count, 1);
        }
        _inputDone = 0;
        c->ExitPending = 0;
        if (count == 0)
            Outcome.Retire(c, length);
        else
            Outcome.RetireIteration(c);
        Breakpoints.NotePort(c, c->Exit->Port, size);
        return InputResult.Done;
    }
}

using Iced.Intel;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// The interpreter: executes blocks, one op after the other, until something is for the processor to decide. It is the oracle of the other engine, and does
/// what that leaves to it.
/// </summary>
/// <remarks>
/// Host memory that is gone under a translation raises a null reference, which is caught here. What makes the state exact then: <see
/// cref="CpuState.CurrentOp"/> is stored before every handler, and an
/// instruction changes registers only after its last access, keeps the old stack pointer with <see cref="MemoryGuard.Keep"/>, or can be executed again from
/// what it has left (REP, gathers, task switches), as page faults demand anyway.
/// SAFETY: the op lies in a block of the running epoch; the record belongs to this thread.
/// </remarks>
internal sealed unsafe partial class Interpreter
{
    /// <summary>Handlers are written against the whole processor.</summary>
    private readonly LogicalProcessor _p;
    private readonly CodeFetch _fetch;
    private readonly GuestAccess _access;
    private readonly MemoryGuard _guard;

    public Interpreter(LogicalProcessor p, CodeFetch fetch) : this(p, fetch, p.Access, p.Guard) { }

    /// <summary>What the loop executes itself needs no more than this; <paramref name="p"/> is for handlers and hot blocks.</summary>
    internal Interpreter(LogicalProcessor p, CodeFetch fetch, GuestAccess access, MemoryGuard guard)
    {
        _p = p;
        _fetch = fetch;
        _access = access;
        _guard = guard;
    }

    /// <summary>Executes from a block whose code is at RIP.</summary>
    internal LoopExit LoopGuarded(CpuState* c, Block* block)
    {
        try
        {
            return RunLoop(c, block);
        }
        catch (NullReferenceException) when (_guard.Record->Pending != 0)
        {
            _guard.Failed(c);
            if (c->KeptBy == c->CurrentOp)
                c->Gpr[4] = c->KeptRsp;
            return Interrupt(c, BlockOf(c->CurrentOp), c->CurrentOp);
        }
    }

    /// <summary>Only a block's first op has offset 0.</summary>
    internal static Block* BlockOf(Op* op)
    {
        while (op->Offset != 0)
            op--;
        return (Block*)op - 1;
    }

    private const ulong Dr7Enables = 0xff;

    /// <summary>
    /// With an <see cref="ExitReason.Mmio"/> exit: says whether the access is all that is left of its instruction, a plain store. Breakpoints on data are noted
    /// by the store itself, so with them it is not.
    /// </summary>
    private void NoteLastAccess(CpuState* c, Op* op)
    {
        int size = (Code)op->Code switch
        {
            Code.Mov_rm8_r8 or Code.Mov_rm8_imm8 or Code.Mov_moffs8_AL => 1,
            Code.Mov_rm16_r16 or Code.Mov_rm16_imm16 or Code.Mov_moffs16_AX => 2,
            Code.Mov_rm32_r32 or Code.Mov_rm32_imm32 or Code.Mov_moffs32_EAX => 4,
            Code.Mov_rm64_r64 or Code.Mov_rm64_imm32 or Code.Mov_moffs64_RAX => 8,
            _ => 0,
        };
        if (size == c->Exit->Size && c->Exit->IsWrite != 0 && _access.Replay.IsFirst && (c->Dr7 & Dr7Enables) == 0 && c->HostBreakpoints == 0)
            c->Exit->InstructionLength = op->Length;
    }
}

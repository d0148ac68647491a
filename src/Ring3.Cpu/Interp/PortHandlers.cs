using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// IN, OUT, INS and OUTS. Every access leaves the guest. As in KVM, OUTS carries one element, so that a client that looks at one loses none; INS reads ahead for as many as lie in one page.
/// SPEC: SDM volume 1, "I/O Protection Mechanism".
/// </summary>
/// <remarks>SAFETY: Exit->Data holds 4096 bytes and a batch never leaves its page.</remarks>
internal static unsafe class PortHandlers
{
    private const int Rcx = 1, Rdx = 2, Rsi = 6, Rdi = 7;
    /// <summary>Most bytes that INS reads ahead.</summary>
    private const uint MaxBatch = 1024;

    internal static void Register()
    {
        Set(&In, Code.In_AL_imm8, Code.In_AX_imm8, Code.In_EAX_imm8, Code.In_AL_DX, Code.In_AX_DX, Code.In_EAX_DX);
        Set(&Out8, Code.Out_imm8_AL, Code.Out_DX_AL);
        Set(&Out16, Code.Out_imm8_AX, Code.Out_DX_AX);
        Set(&Out32, Code.Out_imm8_EAX, Code.Out_DX_EAX);
        Set(&Ins, Code.Insb_m8_DX, Code.Insw_m16_DX, Code.Insd_m32_DX);
        Set(&Outs, Code.Outsb_DX_m8, Code.Outsw_DX_m16, Code.Outsd_DX_m32);
    }

    private static void Set(delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler, params ReadOnlySpan<Code> codes)
    {
        foreach (Code code in codes)
            HandlerTable.Set(code, handler, endsBlock: true);
    }

    /// <summary>Bytes of an access, OUT's excepted, whose handlers know.</summary>
    private static int SizeOf(Op* op) => (Code)op->Code switch
    {
        Code.In_AL_imm8 or Code.In_AL_DX or Code.Insb_m8_DX or Code.Outsb_DX_m8 => 1,
        Code.In_AX_imm8 or Code.In_AX_DX or Code.Insw_m16_DX or Code.Outsw_DX_m16 => 2,
        _ => 4,
    };

    private static ushort PortOf(CpuState* c, Op* op) => (Code)op->Code is Code.In_AL_imm8 or Code.In_AX_imm8 or Code.In_EAX_imm8 or Code.Out_imm8_AL or Code.Out_imm8_AX or Code.Out_imm8_EAX
        ? (byte)op->Imm : (ushort)c->Gpr[Rdx];

    /// <summary>IOPL, or the I/O permission bitmap of a 32- or 64-bit TSS. False: a fault is pending.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static bool Allowed(LogicalProcessor p, CpuState* c, ushort port, int size)
        => (c->Cr0 & Cr0.PE) == 0 || ((c->Rflags & Rflags.VM) == 0 && c->Cpl <= (c->Rflags >> Rflags.IoplShift & 3)) || AllowedByBitmap(p, c, port, size);

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static bool AllowedByBitmap(LogicalProcessor p, CpuState* c, ushort port, int size)
    {
        // Types 9 and 11: available and busy 32- or 64-bit TSS.
        if ((c->Tr.Access & (Segment.P | Segment.Unusable)) == Segment.P && (c->Tr.Access & 0xd) == 9 && c->Tr.Limit >= 0x67)
        {
            if (!p.Access.LoadSystem16(c, c->Tr.Base + 0x66, out ushort map))
                return false;
            uint at = map + (uint)(port >> 3);
            if (at + 1 <= c->Tr.Limit)
            {
                if (!p.Access.LoadSystem16(c, c->Tr.Base + at, out ushort bits))
                    return false;
                if ((bits >> (port & 7) & ((1 << size) - 1)) == 0)
                    return true;
            }
        }
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    private static void Describe(LogicalProcessor p, CpuState* c, Op* op, ushort port, int size, bool write, bool isString, uint count)
    {
        ExitInfo* exit = p.Exit;
        exit->Port = port;
        exit->Size = (byte)size;
        exit->IsWrite = write ? (byte)1 : (byte)0;
        exit->IsString = isString ? (byte)1 : (byte)0;
        exit->Count = count;
        exit->InstructionLength = op->Length;
        Outcome.Leave(c, ExitReason.Io);
    }

    private static OpResult Out8(LogicalProcessor p, CpuState* c, Op* op) => Out(p, c, op, 1);
    private static OpResult Out16(LogicalProcessor p, CpuState* c, Op* op) => Out(p, c, op, 2);
    private static OpResult Out32(LogicalProcessor p, CpuState* c, Op* op) => Out(p, c, op, 4);

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult Out(LogicalProcessor p, CpuState* c, Op* op, int size)
    {
        ushort port = PortOf(c, op);
        if (!Allowed(p, c, port, size))
            return OpResult.Fault;
        *(uint*)p.Exit->Data = (uint)c->Gpr[0];
        Describe(p, c, op, port, size, true, false, 1);
        Breakpoints.NotePort(c, port, size);
        return OpResult.Fault;
    }

    private static OpResult In(LogicalProcessor p, CpuState* c, Op* op)
    {
        ushort port = PortOf(c, op);
        int size = SizeOf(op);
        if (!Allowed(p, c, port, size))
            return OpResult.Fault;
        p.InputOp = default;
        Describe(p, c, op, port, size, false, false, 1);
        return OpResult.Fault;
    }

    private static bool Repeats(Op* op) => (op->Flags & (OpFlags.Rep | OpFlags.Repne)) != 0;

    private static OpResult Nothing(CpuState* c, Op* op)
    {
        c->Rip = Addressing.NextRip(c, op);
        c->BetweenIterations = 0;
        return OpResult.EndBlock;
    }

    private static OpResult Outs(LogicalProcessor p, CpuState* c, Op* op)
    {
        ushort port = (ushort)c->Gpr[Rdx];
        int size = SizeOf(op);
        if (!Allowed(p, c, port, size))
            return OpResult.Fault;
        StringRun run = new(c, op, size);
        ulong count = Repeats(op) ? c->Gpr[Rcx] & run.Mask : 1;
        if (count == 0)
            return Nothing(c, op);
        if (!run.Linear(p, c, Rsi, op->Seg, AccessKind.Read, out ulong from))
            return OpResult.Fault;
        byte* source = p.Access.ReadPtr(c, from, size);
        if (source == null)
            return OpResult.Fault;
        *(uint*)p.Exit->Data = (uint)SlowOperands.Load(source, size);
        run.Advance(c, Rsi, 1);
        count = run.CountDown(p, c, op, count, 1);
        Describe(p, c, op, port, size, true, true, 1);
        Breakpoints.NotePort(c, port, size);
        c->Rip = count == 0 ? Addressing.NextRip(c, op) : Addressing.RipOf(c, op);
        c->BetweenIterations = count == 0 ? (byte)0 : (byte)1;
        return OpResult.RetiredExit;
    }

    private static OpResult Ins(LogicalProcessor p, CpuState* c, Op* op)
    {
        ushort port = (ushort)c->Gpr[Rdx];
        int size = SizeOf(op);
        if (!Allowed(p, c, port, size))
            return OpResult.Fault;
        StringRun run = new(c, op, size);
        ulong count = Repeats(op) ? c->Gpr[Rcx] & run.Mask : 1, n = 1;
        if (count == 0)
            return Nothing(c, op);
        // A breakpoint on the port traps behind each iteration.
        ulong batch = Breakpoints.WatchesPorts(c) ? 1 : Math.Min(count, MaxBatch / (uint)size);
        // The destination is checked before the device is read, so that no input is lost to a page fault.
        if (run.Direct(p, c, Rdi, SegmentIndex.ES, true, batch, ref n) == null
            && (!run.Linear(p, c, Rdi, SegmentIndex.ES, AccessKind.Write, out ulong to) || p.Access.WritePtr(c, to, size) == null))
            return OpResult.Fault;
        p.BeginStringInput(op, size, (uint)n);
        Describe(p, c, op, port, size, false, true, (uint)n);
        return OpResult.Fault;
    }
}

public sealed unsafe partial class LogicalProcessor
{
    /// <summary>The INS of the last input exit; Length 0 for IN.</summary>
    internal Op InputOp;

    /// <summary>Elements of the input, those that CompleteIo has stored before it met an obstacle, and bytes of one: <see cref="Exit"/> may describe an access to where they go.</summary>
    private uint _inputCount, _inputDone;
    private int _inputSize;

    internal void BeginStringInput(Op* op, int size, uint count) => (InputOp, _inputSize, _inputCount, _inputDone) = (*op, size, count, 0);

    /// <summary>Bytes that <see cref="CompleteIo"/> wants for the INS of the last input exit.</summary>
    public int InputBytes => _inputSize * (int)_inputCount;

    /// <summary>Whether the input of the last <see cref="ExitReason.Io"/> exit goes to guest memory: <see cref="CompleteIo"/> then follows translations and nested tables as the guest does.</summary>
    public bool InputGoesToMemory => InputOp.Length != 0;

    /// <summary>Finishes the input of the last <see cref="ExitReason.Io"/> exit with IsWrite 0 and retires it: Size * Count bytes, in port order. Missing bytes read as zero.</summary>
    /// <returns>Anything but Done: to be called again with the same data, before the next entry. After Mmio the owner has first made the access that <see cref="Exit"/> describes, and called CompleteMmio.</returns>
    public InputResult CompleteIo(ReadOnlySpan<byte> data)
    {
        CpuState* c = State;
        if (InputOp.Length == 0)
        {
            int size = Exit->Size;
            ulong value = 0;
            data[..Math.Min(data.Length, size)].CopyTo(new Span<byte>(&value, 8));
            SlowOperands.Set(c, 0, size, value);
            SkipInstruction();
            Breakpoints.NotePort(c, Exit->Port, size);
            return InputResult.Done;
        }
        FaultRecord* faults = Guard.Record = FaultGuard.RecordOfThread(Guard.Record);
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
        Paging.UpdateContext(c);
        Access.Replay.Begin();
        byte length = InputOp.Length;
        Exit->Reason = ExitReason.Io;
        Op op = InputOp;
        StringRun run = new(c, &op, size);
        ulong count = (op.Flags & (OpFlags.Rep | OpFlags.Repne)) != 0 ? c->Gpr[1] & run.Mask : 1;
        // The owner may have changed the count register: it decides how many elements are still wanted.
        for (uint i = _inputDone; i < _inputCount && count != 0; _inputDone = ++i)
        {
            ulong value = 0;
            ReadOnlySpan<byte> rest = data.Length > (int)i * size ? data[((int)i * size)..] : [];
            rest[..Math.Min(rest.Length, size)].CopyTo(new Span<byte>(&value, 8));
            byte* target = run.Linear(this, c, 7, SegmentIndex.ES, AccessKind.Write, out ulong to) ? Access.WritePtr(c, to, size) : null;
            bool stored = false;
            if (target != null)
            {
                SlowOperands.Store(target, size, value);
                stored = Access.EndWrite(c, target, to, size) == OpResult.Next;
            }
            if (!stored)
            {
                c->ExitPending = 0;
                switch (Exit->Reason)
                {
                    case ExitReason.NestedFault: return InputResult.NestedFault;
                    case ExitReason.DirtyLogFull: return InputResult.DirtyLogFull;
                    case ExitReason.Mmio: return InputResult.Mmio;
                }
                // Ins checked the destination; the guest or the owner has taken it away meanwhile, and then the input has nowhere to go.
                break;
            }
            run.Advance(c, 7, 1);
            count = run.CountDown(this, c, &op, count, 1);
        }
        _inputDone = 0;
        c->ExitPending = 0;
        if (count == 0)
            Outcome.Retire(c, length);
        else
            Outcome.RetireIteration(c);
        Breakpoints.NotePort(c, Exit->Port, size);
        return InputResult.Done;
    }
}

/// <summary>How far <see cref="LogicalProcessor.CompleteIo"/> came.</summary>
public enum InputResult
{
    Done,
    /// <summary>Host memory for the rest of the input is gone.</summary>
    HostMemoryGone,
    /// <summary>The nested tables do not map the destination: Exit.Gpa and Exit.Access say what is missing, as for an exit of that kind.</summary>
    NestedFault,
    /// <summary>The dirty log has to be emptied first.</summary>
    DirtyLogFull,
    /// <summary>The destination is MMIO: Exit describes the write, as for an exit of that kind.</summary>
    Mmio,
}

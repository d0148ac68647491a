using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// IN, OUT, INS and OUTS. Every access leaves the guest. As in KVM, OUTS carries one element, so that a client that looks at one loses none; INS reads ahead
/// for as many as lie in one page.
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

    private static ushort PortOf(CpuState* c, Op* op) =>
        (Code)op->Code is Code.In_AL_imm8 or Code.In_AX_imm8 or Code.In_EAX_imm8 or Code.Out_imm8_AL or Code.Out_imm8_AX or Code.Out_imm8_EAX
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
        p.Input.Pending = default;
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
        if (!run.Linear(c, Rsi, op->Seg, AccessKind.Read, out ulong from))
            return OpResult.Fault;
        byte* source = p.Access.ReadPtr(c, from, size);
        if (source == null)
            return OpResult.Fault;
        *(uint*)p.Exit->Data = (uint)SlowOperands.Load(source, size);
        run.Advance(c, Rsi, 1);
        count = run.CountDown(p.Access, c, op, count, 1);
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
        if (run.Direct(p.Access, c, Rdi, SegmentIndex.ES, true, batch, ref n) == null
            && (!run.Linear(c, Rdi, SegmentIndex.ES, AccessKind.Write, out ulong to) || p.Access.WritePtr(c, to, size) == null))
            return OpResult.Fault;
        p.Input.Begin(op, size, (uint)n);
        Describe(p, c, op, port, size, false, true, (uint)n);
        return OpResult.Fault;
    }
}

public sealed unsafe partial class LogicalProcessor
{
}

/// <summary>How far <see cref="PortInput.CompleteIo"/> came.</summary>
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

using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>x87 control instructions: words, environment and whole state. They work on the parked registers, except for the cheap cases.</summary>
/// <remarks>SAFETY: buffers on the stack are as large as the largest format (108 bytes).</remarks>
internal static unsafe class X87Control
{
    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong> s_readStatus = Emit(Code.Fnstsw_m2byte);
    private static readonly delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong> s_loadControl = Emit(Code.Fldcw_m2byte);

    private static delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong> Emit(Code code)
    {
        ThunkAssembler a = new();
        a.Unary(code, Iced.Intel.Register.RDI);
        a.Plain(Code.Retnq);
        return (delegate* unmanaged[SuppressGCTransition]<byte*, ulong, ulong>)a.Finish();
    }

    internal static void Register()
    {
        HandlerTable.Set(Code.Fldcw_m2byte, &LoadControl);
        HandlerTable.Set(Code.Fnstcw_m2byte, &StoreControl);
        HandlerTable.Set(Code.Fnstsw_m2byte, &StoreStatus);
        HandlerTable.Set(Code.Fnstsw_AX, &StatusToAx);
        HandlerTable.Set(Code.Fninit, &Initialize);
        HandlerTable.Set(Code.Fnclex, &ClearExceptions);
        HandlerTable.Set(Code.Fneni, &Nothing);
        HandlerTable.Set(Code.Fndisi, &Nothing);
        HandlerTable.Set(Code.Fnsetpm, &Nothing);
        HandlerTable.Set(Code.Wait, &Wait);
        HandlerTable.Set(Code.Fnstenv_m14byte, &StoreEnvironment);
        HandlerTable.Set(Code.Fnstenv_m28byte, &StoreEnvironment);
        HandlerTable.Set(Code.Fldenv_m14byte, &LoadEnvironment);
        HandlerTable.Set(Code.Fldenv_m28byte, &LoadEnvironment);
        HandlerTable.Set(Code.Fnsave_m94byte, &Save);
        HandlerTable.Set(Code.Fnsave_m108byte, &Save);
        HandlerTable.Set(Code.Frstor_m94byte, &Restore);
        HandlerTable.Set(Code.Frstor_m108byte, &Restore);
    }

    private static bool IsAvailable(CpuState* c) => (c->Cr0 & (Cr0.EM | Cr0.TS)) == 0;

    /// <summary>Status word, whether the registers are live or parked.</summary>
    private static ushort Status(CpuState* c)
    {
        if (c->X87Live == X87Unit.Parked)
            return c->Fsw;
        ushort status;
        s_readStatus((byte*)&status, 0);
        return status;
    }

    private static OpResult Nothing(LogicalProcessor p, CpuState* c, Op* op) => IsAvailable(c) ? OpResult.Next : Outcome.Raise(c, Arch.Vector.NM);

    private static OpResult Wait(LogicalProcessor p, CpuState* c, Op* op)
    {
        if ((c->Cr0 & (Cr0.MP | Cr0.TS)) == (Cr0.MP | Cr0.TS))
            return Outcome.Raise(c, Arch.Vector.NM);
        return (c->Fsw & X87Status.ES) != 0 && (c->Cr0 & Cr0.NE) != 0 ? Outcome.Raise(c, Arch.Vector.MF) : OpResult.Next;
    }

    private static OpResult LoadControl(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!X87Handlers.IsOpen(c) && X87Handlers.Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        if (!Addressing.LinearAddress(c, op, 2, AccessKind.Read, out ulong linear) || !p.Access.Load16(c, linear, out ushort value))
            return OpResult.Fault;
        // Bit 6 reads as one, the other reserved bits as zero.
        value = (ushort)(value & 0x1f3f | 0x40);
        if ((value & X87Status.Exceptions) != X87Status.Exceptions)
            X87Unit.Park(c);
        c->Fcw = value;
        if (c->X87Live != X87Unit.Parked)
            s_loadControl((byte*)&value, 0);
        else
            c->Fsw = X87Status.WithSummary(c->Fsw, value);
        return OpResult.Next;
    }

    private static OpResult StoreControl(LogicalProcessor p, CpuState* c, Op* op) => StoreWord(p, c, op, c->Fcw);
    private static OpResult StoreStatus(LogicalProcessor p, CpuState* c, Op* op) => StoreWord(p, c, op, Status(c));

    private static OpResult StoreWord(LogicalProcessor p, CpuState* c, Op* op, ushort value)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        return Addressing.LinearAddress(c, op, 2, AccessKind.Write, out ulong linear) && p.Access.Store16(c, linear, value) ? OpResult.Next : OpResult.Fault;
    }

    private static OpResult StatusToAx(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        *(ushort*)c->Gpr = Status(c);
        return OpResult.Next;
    }

    private static OpResult Initialize(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        X87Unit.Initialize(c);
        return OpResult.Next;
    }

    private static OpResult ClearExceptions(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        X87Unit.Park(c);
        c->Fsw &= unchecked((ushort)~(X87Status.Exceptions | X87Status.StackFault | X87Status.ES | X87Status.B));
        return OpResult.Next;
    }

    private static OpResult StoreEnvironment(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        X87Unit.Park(c);
        byte* buffer = stackalloc byte[28];
        int size = X87Environment.Write(c, buffer, IsWide(op));
        if (!GuestArea.Open(p, c, op, size, 0, AccessKind.Write, out ulong linear) || !GuestArea.Write(p, c, linear, buffer, size))
            return OpResult.Fault;
        c->Fcw |= X87Status.Exceptions;
        c->Fsw = X87Status.WithSummary(c->Fsw, c->Fcw);
        return OpResult.Next;
    }

    private static OpResult LoadEnvironment(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!X87Handlers.IsOpen(c) && X87Handlers.Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        X87Unit.Park(c);
        byte* buffer = stackalloc byte[28];
        int size = IsWide(op) ? 28 : 14;
        if (!GuestArea.Open(p, c, op, size, 0, AccessKind.Read, out ulong linear) || !GuestArea.Read(p, c, linear, buffer, size))
            return OpResult.Fault;
        X87Environment.Read(c, buffer, IsWide(op));
        X87Unit.TrimPointers(p, c);
        return OpResult.Next;
    }

    private static OpResult Save(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsAvailable(c))
            return Outcome.Raise(c, Arch.Vector.NM);
        X87Unit.Park(c);
        byte* buffer = stackalloc byte[108];
        int size = X87Environment.Write(c, buffer, IsWide(op));
        int top = X87Status.TopOf(c->Fsw);
        for (int i = 0; i < 8; i++)
            Buffer.MemoryCopy(c->X87 + 16 * (top + i & 7), buffer + size + 10 * i, 10, 10);
        size += 80;
        if (!GuestArea.Open(p, c, op, size, 0, AccessKind.Write, out ulong linear) || !GuestArea.Write(p, c, linear, buffer, size))
            return OpResult.Fault;
        X87Unit.Initialize(c);
        return OpResult.Next;
    }

    private static OpResult Restore(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!X87Handlers.IsOpen(c) && X87Handlers.Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        X87Unit.Park(c);
        byte* buffer = stackalloc byte[108];
        int environment = IsWide(op) ? 28 : 14;
        if (!GuestArea.Open(p, c, op, environment + 80, 0, AccessKind.Read, out ulong linear) || !GuestArea.Read(p, c, linear, buffer, environment + 80))
            return OpResult.Fault;
        X87Environment.Read(c, buffer, IsWide(op));
        X87Unit.TrimPointers(p, c);
        int top = X87Status.TopOf(c->Fsw);
        for (int i = 0; i < 8; i++)
            Buffer.MemoryCopy(buffer + environment + 10 * i, c->X87 + 16 * (top + i & 7), 10, 10);
        return OpResult.Next;
    }

    private static bool IsWide(Op* op)
        => (Code)op->Code is Code.Fnstenv_m28byte or Code.Fldenv_m28byte or Code.Fnsave_m108byte or Code.Frstor_m108byte;
}

using System.Runtime.CompilerServices;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>x87 instructions that run on the live stack, and the registration of all of them.</summary>
/// <remarks>SAFETY: memory operands come from the processor's memory interface, valid for the form's size.</remarks>
internal static unsafe class X87Handlers
{
    internal static void Register()
    {
        nint first = (nint)(delegate*<LogicalProcessor, CpuState*, Op*, OpResult>)&First;
        for (int i = 0; i < VectorHandlers.CodeCount; i++)
        {
            Code code = (Code)i;
            if (code.Encoding() == EncodingKind.Legacy && Array.Exists(code.CpuidFeatures(), IsX87))
            {
                HandlerTable.Set(code, (delegate*<LogicalProcessor, CpuState*, Op*, OpResult>)first);
                s_hasOpcode[i] = code != Code.Wait;
            }
        }
        X87Control.Register();
        for (int i = 0; i < VectorHandlers.CodeCount; i++)
            s_hasForm[i] = (nint)HandlerTable.Get((Code)i) == first;
    }

    /// <summary>
    /// FOP of a non-control instruction: the low three bits of the first opcode byte, then ModRM. <paramref name="bytes"/>: the instruction's.
    /// SPEC: SDM volume 1, "Last Instruction Opcode"; APM volume 1, "Pointers and Opcode State".
    /// </summary>
    public static ushort Opcode(byte* bytes, int length)
    {
        // Behind the prefixes, whatever they are, comes one of the eight escapes; no prefix looks like one.
        int at = 0;
        while (at < length - 2 && bytes[at] is < 0xd8 or > 0xdf)
            at++;
        return (ushort)((bytes[at] & 7) << 8 | bytes[at + 1]);
    }

    /// <summary>Whether decoding notes <see cref="Opcode"/> in the op.</summary>
    public static bool HasOpcode(Code code) => s_hasOpcode[(int)code];

    private static readonly bool[] s_hasOpcode = new bool[HandlerTable.Count];

    private static bool IsX87(CpuidFeature feature)
        => feature is CpuidFeature.FPU or CpuidFeature.FPU287 or CpuidFeature.FPU387;

    /// <summary>Whether an instruction is executed on the live stack by a thunk.</summary>
    internal static bool HasForm(Code code) => s_hasForm[(int)code];

    private static readonly bool[] s_hasForm = new bool[HandlerTable.Count];

    /// <summary>Whether the unit is available and no exception is pending. While the registers are live, Fsw has ES clear.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static bool IsOpen(CpuState* c) => ((uint)c->Cr0 & (uint)(Cr0.EM | Cr0.TS) | c->Fsw & (uint)X87Status.ES) == 0;

    /// <summary>#NM, #MF, or Next when CR0.NE sends the exception to an external pin that nothing is wired to.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    public static OpResult Refuse(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr0 & (Cr0.EM | Cr0.TS)) != 0)
            return Outcome.Raise(c, Arch.Vector.NM);
        return (c->Cr0 & Cr0.NE) != 0 ? Outcome.Raise(c, Arch.Vector.MF) : OpResult.Next;
    }

    private static OpResult First(LogicalProcessor p, CpuState* c, Op* op)
    {
        VectorUnit.Park(c);
        Code code = (Code)op->Code;
        bool memory = (op->Flags & OpFlags.HasMemory) != 0;
        int sti = memory ? 0 : op->Reg0 | op->Reg1;
        uint index = VectorForms.GetX87(code, sti);
        VectorForm* f = VectorForms.At(index);
        delegate*<LogicalProcessor, CpuState*, Op*, OpResult> handler =
            !memory ? (f->Flags & (VectorFormFlags.ReadsFlags | VectorFormFlags.WritesFlags)) != 0 ? &WithFlags : &Registers
            : (f->Flags & VectorFormFlags.StoresMemory) != 0 ? &Store : &Load;
        Volatile.Write(ref op->Aux, index);
        Volatile.Write(ref *(nint*)&op->Handler, (nint)handler);
        return handler(p, c, op);
    }

    private static OpResult Registers(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(c) && Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        if (c->X87Live == X87Unit.Parked)
            X87Unit.Enter(c);
        (p.Forms + op->Aux)->X87Entry(null, 0);
        X87Unit.Finish(p, c, op);
        return OpResult.Next;
    }

    /// <summary>FCMOVcc and FCOMI.</summary>
    private static OpResult WithFlags(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(c) && Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        if (c->X87Live == X87Unit.Parked)
            X87Unit.Enter(c);
        VectorForm* f = p.Forms + op->Aux;
        ulong before = Flags.GetStatus(c);
        ulong after = f->X87Entry(null, before);
        X87Unit.Finish(p, c, op);
        if ((f->Flags & VectorFormFlags.WritesFlags) != 0)
            Flags.SetStatus(c, after);
        return OpResult.Next;
    }

    private static OpResult Load(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(c) && Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        VectorForm* f = p.Forms + op->Aux;
        if (!Addressing.LinearAddress(c, op, f->MemorySize, AccessKind.Read, out ulong linear))
            return OpResult.Fault;
        byte* m = p.Access.ReadPtr(c, linear, f->MemorySize);
        if (m == null)
            return OpResult.Fault;
        if (c->X87Live == X87Unit.Parked)
            X87Unit.Enter(c);
        f->X87Entry(m, 0);
        X87Unit.Finish(p, c, op);
        return OpResult.Next;
    }

    private static OpResult Store(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!IsOpen(c) && Refuse(p, c) != OpResult.Next)
            return OpResult.Fault;
        VectorForm* f = p.Forms + op->Aux;
        int size = f->MemorySize;
        // An unmasked exception suppresses the store, so the old bytes must be there to be written back.
        bool unmasked = (c->Fcw & X87Status.Exceptions) != X87Status.Exceptions;
        byte* m = !Addressing.LinearAddress(c, op, size, AccessKind.Write, out ulong linear) ? null : unmasked ? p.Access.ModifyPtr(c, linear, size)
            : p.Access.WritePtr(c, linear, size);
        if (m == null)
            return c->ExitPending == 0 && p.Model.ConvertsBeforeStore ? ConvertForFault(p, c, op, f, linear) : OpResult.Fault;
        if (c->X87Live == X87Unit.Parked)
            X87Unit.Enter(c);
        f->X87Entry(m, 0);
        if (unmasked)
            X87Unit.Park(c);
        OpResult r = p.Access.EndWrite(c, m, linear, size);
        if (r == OpResult.Next)
            X87Unit.Finish(p, c, op);
        else if ((f->Flags & VectorFormFlags.Pops) != 0)
            Unpop(c);
        return r;
    }

    /// <summary>
    /// The memory of a store has faulted. When an unmasked exception of the conversion suppresses the store, nothing has been accessed: the instruction
    /// retires, with the exception pending. Ten bytes are stored as eight, then two: the first have been
    /// written when the others fault.
    /// </summary>
    private static OpResult ConvertForFault(LogicalProcessor p, CpuState* c, Op* op, VectorForm* f, ulong linear)
    {
        X87Unit.Park(c);
        byte* nowhere = stackalloc byte[16];
        byte* registers = stackalloc byte[128];
        Buffer.MemoryCopy(c->X87, registers, 128, 128);
        (ushort fsw, byte ftw) = (c->Fsw, c->Ftw);
        X87Unit.Enter(c);
        f->X87Entry(nowhere, 0);
        X87Unit.Park(c);
        if ((c->Fsw & ~c->Fcw & X87Status.Exceptions & ~X87Status.Precision) == 0)
        {
            Buffer.MemoryCopy(registers, c->X87, 128, 128);
            (c->Fsw, c->Ftw) = (fsw, ftw);
            return f->MemorySize == 10 && c->PendingVector == Arch.Vector.PF ? StorePieces(p, c, linear, nowhere) : OpResult.Fault;
        }
        X87Unit.Finish(p, c, op);
        c->PendingNonCanonical = 0;
        return OpResult.Next;
    }

    private static OpResult StorePieces(LogicalProcessor p, CpuState* c, ulong linear, byte* from)
    {
        if ((c->PendingAddress & ~0xfffUL) == (linear & ~0xfffUL))
            return OpResult.Fault;
        (ulong address, uint error) = (c->PendingAddress, (uint)c->PendingErrorCode);
        byte* m = p.Access.WritePtr(c, linear, 8);
        if (m == null)
            return OpResult.Fault;
        *(ulong*)m = *(ulong*)from;
        return p.Access.EndWrite(c, m, linear, 8) == OpResult.Next ? Outcome.RaisePageFault(c, address, error) : OpResult.Fault;
    }

    /// <summary>The store has left for a device and will be restarted: put the popped register back.</summary>
    private static void Unpop(CpuState* c)
    {
        X87Unit.Park(c);
        int top = X87Status.TopOf(c->Fsw) - 1 & 7;
        c->Fsw = (ushort)(c->Fsw & ~X87Status.Top | top << X87Status.TopShift);
        c->Ftw |= (byte)(1 << top);
    }
}

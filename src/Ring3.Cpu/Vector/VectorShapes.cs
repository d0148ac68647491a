using System.Runtime.CompilerServices;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Compile-time boolean.</summary>
internal interface IFlag { static abstract bool Value { get; } }
internal readonly struct Yes : IFlag { public static bool Value => true; }
internal readonly struct No : IFlag { public static bool Value => false; }

/// <summary>
/// Handlers of forms whose register operands are all vector registers. One method per place of the memory operand; the gate and the use of MXCSR are type
/// arguments, so each instance is straight code.
/// </summary>
/// <remarks>
/// SAFETY: operand pointers are computed from decoded register numbers (0-15) or come from the processor's memory interface, valid for MemorySize bytes.
/// </remarks>
internal static unsafe class VectorShapes<TGate, TFp> where TGate : struct, IVectorGate where TFp : struct, IFlag
{
    public static OpResult Registers(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        byte* y = c->Ymm;
        return Execute(p, c, p.Forms + op->Aux, y + op->Reg0 * 32, y + op->Reg1 * 32, y + op->Reg2 * 32, y + op->Reg3 * 32);
    }

    public static OpResult Load1(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* m = VectorMemory.Read(p, c, op, f->MemorySize, f->AlignMask);
        if (m == null)
            return OpResult.Fault;
        return Execute(p, c, f, c->Ymm + op->Reg0 * 32, m, null, null);
    }

    /// <summary>
    /// As <see cref="Load1"/>, for an operand of less than 16 bytes that the model spares alignment checks: with those enabled it is read by bytes.
    /// </summary>
    public static OpResult LoadSpared(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.Model.SparesVectorAlignment || !CpuMode.AlignmentChecked(c))
            return Load1(p, c, op);
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        if (!Addressing.LinearAddress(c, op, f->MemorySize, AccessKind.Read, out ulong linear))
            return OpResult.Fault;
        byte* bytes = stackalloc byte[16];
        for (int i = 0; i < f->MemorySize; i++)
        {
            byte* m = p.Access.ReadPtr(c, VectorMemory.At(c, linear, i), 1);
            if (m == null)
                return OpResult.Fault;
            bytes[i] = *m;
        }
        return Execute(p, c, f, c->Ymm + op->Reg0 * 32, bytes, null, null);
    }

    /// <summary>As <see cref="Load1"/>, where the model decides whether the operand must be aligned. The host's own unit always gets an aligned one.</summary>
    public static OpResult LoadAnywhere(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.Model.LoadsShaAnywhere)
            return Load1(p, c, op);
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* m = VectorMemory.Read(p, c, op, f->MemorySize, 0);
        if (m == null)
            return OpResult.Fault;
        if (((nuint)m & f->AlignMask) == 0)
            return Execute(p, c, f, c->Ymm + op->Reg0 * 32, m, null, null);
        byte* room = stackalloc byte[32];
        byte* aligned = (byte*)((nuint)room + 15 & ~(nuint)15);
        Buffer.MemoryCopy(m, aligned, 16, f->MemorySize);
        return Execute(p, c, f, c->Ymm + op->Reg0 * 32, aligned, null, null);
    }

    public static OpResult Load2(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* m = VectorMemory.Read(p, c, op, f->MemorySize, f->AlignMask);
        if (m == null)
            return OpResult.Fault;
        byte* y = c->Ymm;
        return Execute(p, c, f, y + op->Reg0 * 32, y + op->Reg1 * 32, m, y + op->Reg3 * 32);
    }

    public static OpResult Store(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* m = VectorMemory.Write(p, c, op, f->MemorySize, f->AlignMask, out ulong linear);
        if (m == null)
            return TFp.Value ? ConvertForFault(p, c, op, f) : OpResult.Fault;
        byte* y = c->Ymm;
        OpResult r = Execute(p, c, f, m, y + op->Reg1 * 32, y + op->Reg2 * 32, y + op->Reg3 * 32);
        return r == OpResult.Next ? p.Access.EndWrite(c, m, linear, f->MemorySize) : r;
    }

    /// <summary>
    /// As <see cref="Store"/>, for an operand of less than 16 bytes that the model spares alignment checks: with those enabled it is written by bytes, once all
    /// of them can be.
    /// </summary>
    public static OpResult StoreSpared(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.Model.SparesVectorAlignment || !CpuMode.AlignmentChecked(c))
            return Store(p, c, op);
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        if (!Addressing.LinearAddress(c, op, f->MemorySize, AccessKind.Write, out ulong linear) || !VectorMemory.CanWrite(p, c, linear, f->MemorySize))
            return TFp.Value ? ConvertForFault(p, c, op, f) : OpResult.Fault;
        byte* bytes = stackalloc byte[16];
        byte* y = c->Ymm;
        OpResult r = Execute(p, c, f, bytes, y + op->Reg1 * 32, y + op->Reg2 * 32, y + op->Reg3 * 32);
        return r != OpResult.Next || VectorMemory.WriteBytes(p, c, linear, bytes, f->MemorySize) ? r : OpResult.Fault;
    }

    /// <summary>The memory of a store has faulted: by the model the exceptions of the conversion have come before, as status flags or as #XM instead.</summary>
    [MethodImpl(MethodImplOptions.NoInlining)]
    private static OpResult ConvertForFault(LogicalProcessor p, CpuState* c, Op* op, VectorForm* f)
    {
        if (c->ExitPending != 0 || !p.Model.ConvertsBeforeStore)
            return OpResult.Fault;
        byte* nowhere = stackalloc byte[64];
        byte* y = c->Ymm;
        if (Execute(p, c, f, nowhere, y + op->Reg1 * 32, y + op->Reg2 * 32, y + op->Reg3 * 32) != OpResult.Next)
            c->PendingNonCanonical = 0;
        return OpResult.Fault;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult Execute(LogicalProcessor p, CpuState* c, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3)
    {
        if (TFp.Value && c->MxcsrLive == 0 && !MxcsrUnit.TryEnter(c))
            return VectorSlow.Execute(p, c, f, a0, a1, a2, a3);
        f->Entry(a0, a1, a2, a3, c);
        return OpResult.Next;
    }
}

/// <summary>Handlers of forms with general-purpose or MMX registers or with a flags result: operand places come from the form.</summary>
/// <remarks>SAFETY: as <see cref="VectorShapes{TGate, TFp}"/>.</remarks>
internal static unsafe class MixedShapes<TGate, TFp> where TGate : struct, IVectorGate where TFp : struct, IFlag
{
    public static OpResult Registers(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* s = (byte*)c;
        return Execute(p, c, f, s + f->Base0 + (op->Reg0 << f->Shift0), s + f->Base1 + (op->Reg1 << f->Shift1), s + f->Base2 + (op->Reg2 << f->Shift2), null);
    }

    public static OpResult Memory(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!TGate.IsOpen(c))
            return TGate.Refuse(p, c);
        VectorForm* f = p.Forms + op->Aux;
        byte* s = (byte*)c;
        byte* a1 = s + f->Base1 + (op->Reg1 << f->Shift1);
        if ((f->Flags & VectorFormFlags.StoresMemory) != 0)
        {
            byte* w = VectorMemory.Write(p, c, op, f->MemorySize, f->AlignMask, out ulong linear);
            if (w == null)
                return OpResult.Fault;
            OpResult r = Execute(p, c, f, w, a1, null, null);
            return r == OpResult.Next ? p.Access.EndWrite(c, w, linear, f->MemorySize) : r;
        }
        byte* m = VectorMemory.Read(p, c, op, f->MemorySize, f->AlignMask);
        if (m == null)
            return OpResult.Fault;
        byte* a0 = s + f->Base0 + (op->Reg0 << f->Shift0);
        return f->MemoryIndex == 1 ? Execute(p, c, f, a0, m, null, null) : Execute(p, c, f, a0, a1, m, null);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static OpResult Execute(LogicalProcessor p, CpuState* c, VectorForm* f, byte* a0, byte* a1, byte* a2, byte* a3)
    {
        if (TFp.Value && c->MxcsrLive == 0 && !MxcsrUnit.TryEnter(c))
            return VectorSlow.Execute(p, c, f, a0, a1, a2, a3);
        ulong flags = f->Entry(a0, a1, a2, a3, c);
        if ((f->Flags & VectorFormFlags.WritesFlags) != 0)
            Flags.SetStatus(c, flags);
        return OpResult.Next;
    }
}

/// <summary>Handlers of forms with an MMX register: the first MMX instruction switches the x87 unit over (TOP 0, every tag valid).</summary>
/// <remarks>SAFETY: as <see cref="VectorShapes{TGate, TFp}"/>.</remarks>
internal static unsafe class MmxShapes<TFp> where TFp : struct, IFlag
{
    public static OpResult Registers(LogicalProcessor p, CpuState* c, Op* op) => Run(p, c, op, &MixedShapes<NoGate, TFp>.Registers);

    public static OpResult Memory(LogicalProcessor p, CpuState* c, Op* op) => Run(p, c, op, &MixedShapes<NoGate, TFp>.Memory);

    private static OpResult Run(LogicalProcessor p, CpuState* c, Op* op, delegate*<LogicalProcessor, CpuState*, Op*, OpResult> shape)
    {
        if (!MmxGate.IsOpen(c))
        {
            OpResult refused = MmxGate.Refuse(p, c);
            if (refused != OpResult.Next)
                return refused;
        }
        // SSE forms with an MMX operand (CVTPI2PS, MOVQ2DQ and the like) need SSE state too.
        if (((p.Forms + op->Aux)->Flags & VectorFormFlags.NeedsSse) != 0 && !SseGate.IsOpen(c))
            return SseGate.Refuse(p, c);
        if (((p.Forms + op->Aux)->Flags & VectorFormFlags.StoresMemory) != 0 && p.Model.MmxStoresClearTop)
            c->Fsw &= unchecked((ushort)~X87Status.Top);
        OpResult r = shape(p, c, op);
        // The switch to MMX precedes the conversion, so an unmasked exception of the conversion does not prevent it.
        if (r == OpResult.Next || (TFp.Value && c->ExitPending == 0 && c->PendingVector == Arch.Vector.XM))
        {
            c->Fsw &= unchecked((ushort)~X87Status.Top);
            c->Ftw = 0xff;
        }
        return r;
    }
}

/// <summary>Already checked by the caller.</summary>
internal readonly unsafe struct NoGate : IVectorGate
{
    public static bool IsOpen(CpuState* c) => true;
    public static OpResult Refuse(LogicalProcessor p, CpuState* c) => OpResult.Next;
}

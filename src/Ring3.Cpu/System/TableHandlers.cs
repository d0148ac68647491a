using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Descriptor-table registers and the instructions that inspect descriptors.</summary>
/// <remarks>SAFETY: SGDT and SIDT write where limit and base were translated as one; ARPL's registers are offsets that the decoder wrote.</remarks>
internal static unsafe class TableHandlers
{
    private static OpResult LoadTable(LogicalProcessor p, CpuState* c, Op* op, TableRegister* target, int baseBits)
    {
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        int size = baseBits == 64 ? 8 : 4;
        if (!Addressing.LinearAddress(c, op, size + 2, AccessKind.Read, out ulong linear) || !p.Access.Load16(c, linear, out ushort limit))
            return OpResult.Fault;
        ulong address = 0;
        ulong at = size == 8 ? linear + 2 : (uint)(linear + 2);
        if (size == 8 ? !p.Access.Load64(c, at, out address) : !Load32(p, c, at, out address))
            return OpResult.Fault;
        if (baseBits == 24)
            address &= 0xff_ffff;
        if (size == 8 && !p.Paging.IsCanonicalForMsr(address))
            return Outcome.Raise(c, Vector.GP, 0);
        target->Base = address;
        target->Limit = limit;
        return OpResult.Next;
    }

    private static bool Load32(LogicalProcessor p, CpuState* c, ulong linear, out ulong value)
    {
        bool ok = p.Access.Load32(c, linear, out uint v);
        value = v;
        return ok;
    }

    public static OpResult Lgdt24(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Gdtr, 24);
    public static OpResult Lgdt32(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Gdtr, 32);
    public static OpResult Lgdt64(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Gdtr, 64);
    public static OpResult Lidt24(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Idtr, 24);
    public static OpResult Lidt32(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Idtr, 32);
    public static OpResult Lidt64(LogicalProcessor p, CpuState* c, Op* op) => LoadTable(p, c, op, &c->Idtr, 64);

    private static OpResult StoreTable(LogicalProcessor p, CpuState* c, Op* op, TableRegister* source, int size)
    {
        if (!Operands.UmipAllows(p, c) || !Addressing.LinearAddress(c, op, size + 2, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        byte* at = p.Access.WritePtr(c, linear, size + 2);
        if (at == null)
            return OpResult.Fault;
        *(ushort*)at = (ushort)source->Limit;
        if (size == 8)
            *(ulong*)(at + 2) = source->Base;
        else
            *(uint*)(at + 2) = (uint)source->Base;
        return p.Access.EndWrite(c, at, linear, size + 2);
    }

    public static OpResult Sgdt32(LogicalProcessor p, CpuState* c, Op* op) => StoreTable(p, c, op, &c->Gdtr, 4);
    public static OpResult Sgdt64(LogicalProcessor p, CpuState* c, Op* op) => StoreTable(p, c, op, &c->Gdtr, 8);
    public static OpResult Sidt32(LogicalProcessor p, CpuState* c, Op* op) => StoreTable(p, c, op, &c->Idtr, 4);
    public static OpResult Sidt64(LogicalProcessor p, CpuState* c, Op* op) => StoreTable(p, c, op, &c->Idtr, 8);

    public static OpResult Lldt(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.NeedsProtectedMode(p, c) && Operands.Privileged(p, c) && Operands.Read16(p, c, op, op->Reg0, out ushort selector)
            && p.Events.LoadLdt(c, selector, Vector.GP)
            ? OpResult.Next : OpResult.Fault;

    public static OpResult Ltr(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.NeedsProtectedMode(p, c) && Operands.Privileged(p, c) && Operands.Read16(p, c, op, op->Reg0, out ushort selector)
            && p.Events.LoadTaskRegister(c, selector)
            ? OpResult.Next : OpResult.Fault;

    public static OpResult Sldt(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.NeedsProtectedMode(p, c) && Operands.UmipAllows(p, c) ? Operands.Write16OrRegister(p, c, op, c->Ldtr.Selector) : OpResult.Fault;

    public static OpResult Str(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.NeedsProtectedMode(p, c) && Operands.UmipAllows(p, c) ? Operands.Write16OrRegister(p, c, op, c->Tr.Selector) : OpResult.Fault;

    /// <summary>
    /// Descriptor for LAR, LSL, VERR, VERW: <paramref name="visible"/> is false when the selector names nothing that CPL and RPL may see. False: the read
    /// faulted.
    /// </summary>
    private static bool Inspect(LogicalProcessor p, CpuState* c, Op* op, byte register, uint systemTypes, out ulong raw, out bool visible)
    {
        raw = 0;
        visible = false;
        if (!Operands.NeedsProtectedMode(p, c) || !Operands.Read16(p, c, op, register, out ushort selector))
            return false;
        if (Descriptor.IsNull(selector))
            return true;
        if (!p.Events.TryReadDescriptor(c, selector, out raw, out bool found))
            return false;
        if (!found)
            return true;
        uint type = Descriptor.Type(raw);
        if (type < 16 && (systemTypes >> (int)type & 1) == 0)
            return true;
        int dpl = Descriptor.Dpl(raw);
        bool conforming = Descriptor.IsCode(raw) && Descriptor.IsConforming(raw);
        visible = conforming || ((int)c->Cpl <= dpl && (selector & 3) <= dpl);
        return true;
    }

    public static OpResult Lar(LogicalProcessor p, CpuState* c, Op* op)
    {
        uint types = CpuMode.LongMode(c) ? 0x1a04u : 0x1a3eu;
        if (!Inspect(p, c, op, op->Reg1, types, out ulong raw, out bool visible))
            return OpResult.Fault;
        if (visible)
            Operands.SetRegister(c, op->Reg0, op->Size, raw >> 32 & 0x00ff_ff00);
        Flags.SetZF(c, visible);
        return OpResult.Next;
    }

    public static OpResult Lsl(LogicalProcessor p, CpuState* c, Op* op)
    {
        uint types = CpuMode.LongMode(c) ? 0x0a04u : 0x0a0eu;
        if (!Inspect(p, c, op, op->Reg1, types, out ulong raw, out bool visible))
            return OpResult.Fault;
        if (visible)
            Operands.SetRegister(c, op->Reg0, op->Size, Descriptor.Limit(raw));
        Flags.SetZF(c, visible);
        return OpResult.Next;
    }

    public static OpResult Verr(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Inspect(p, c, op, op->Reg0, 0, out ulong raw, out bool visible))
            return OpResult.Fault;
        Flags.SetZF(c, visible && Descriptor.IsReadable(raw));
        return OpResult.Next;
    }

    public static OpResult Verw(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Inspect(p, c, op, op->Reg0, 0, out ulong raw, out bool visible))
            return OpResult.Fault;
        Flags.SetZF(c, visible && Descriptor.IsWritableData(raw));
        return OpResult.Next;
    }

    public static OpResult Arpl(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.NeedsProtectedMode(p, c))
            return OpResult.Fault;
        uint wanted = *(ushort*)((byte*)c + op->Reg1) & 3u;
        if ((op->Flags & OpFlags.HasMemory) == 0)
        {
            ushort* register = (ushort*)((byte*)c + op->Reg0);
            bool raised = (*register & 3) < wanted;
            if (raised)
                *register = (ushort)((*register & ~3u) | wanted);
            Flags.SetZF(c, raised);
            return OpResult.Next;
        }
        // A read; the write follows only when the selector changes.
        if (!Addressing.LinearAddress(c, op, 2, AccessKind.Read, out ulong linear) || !p.Access.Load16(c, linear, out ushort selector))
            return OpResult.Fault;
        bool lower = (selector & 3) < wanted;
        if (lower && (!Addressing.LinearAddress(c, op, 2, AccessKind.Write, out linear) || !p.Access.Store16(c, linear, (ushort)((selector & ~3u) | wanted))))
            return OpResult.Fault;
        Flags.SetZF(c, lower);
        return OpResult.Next;
    }
}

internal sealed unsafe partial class EventUnit
{
    /// <summary>Reads a descriptor without raising anything when it lies beyond its table. False: the read faulted.</summary>
    internal bool TryReadDescriptor(CpuState* c, ushort selector, out ulong raw, out bool found)
    {
        raw = 0;
        found = FindDescriptor(c, selector, 8, out ulong address);
        return !found || _access.LoadSystem64(c, address, out raw);
    }
}

using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Operand access and checks that the system instructions share.</summary>
/// <remarks>SAFETY: register operands are offsets that the decoder wrote.</remarks>
internal static unsafe class Operands
{
    public static ulong Register(CpuState* c, byte offset, int size) => size switch
    {
        2 => *(ushort*)((byte*)c + offset),
        4 => *(uint*)((byte*)c + offset),
        _ => *(ulong*)((byte*)c + offset),
    };

    /// <summary>Writes a general register; 4 bytes zero-extend.</summary>
    public static void SetRegister(CpuState* c, byte offset, int size, ulong value)
    {
        if (size == 2)
            *(ushort*)((byte*)c + offset) = (ushort)value;
        else
            *(ulong*)((byte*)c + offset) = size == 4 ? (uint)value : value;
    }

    /// <summary>Reads an r/m16 source whose register form is operand <paramref name="register"/>.</summary>
    public static bool Read16(LogicalProcessor p, CpuState* c, Op* op, byte register, out ushort value)
    {
        value = *(ushort*)((byte*)c + register);
        if ((op->Flags & OpFlags.HasMemory) == 0)
            return true;
        return Addressing.LinearAddress(c, op, 2, AccessKind.Read, out ulong linear) && p.Access.Load16(c, linear, out value);
    }

    /// <summary>Writes a destination that is a register of op->Size bytes or 16 bits of memory.</summary>
    public static OpResult Write16OrRegister(LogicalProcessor p, CpuState* c, Op* op, ulong value)
    {
        if ((op->Flags & OpFlags.HasMemory) == 0)
        {
            SetRegister(c, op->Reg0, op->Size, value);
            return OpResult.Next;
        }
        return Addressing.LinearAddress(c, op, 2, AccessKind.Write, out ulong linear)
            && p.Access.Store16(c, linear, (ushort)value) ? OpResult.Next : OpResult.Fault;
    }

    /// <summary>CPL 0 or #GP(0).</summary>
    public static bool Privileged(LogicalProcessor p, CpuState* c)
    {
        if (c->Cpl == 0)
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>CR4.UMIP keeps SGDT, SIDT, SLDT, STR and SMSW to CPL 0.</summary>
    public static bool UmipAllows(LogicalProcessor p, CpuState* c)
    {
        if (c->Cpl == 0 || (c->Cr4 & Cr4.UMIP) == 0)
            return true;
        Outcome.Raise(c, Vector.GP, 0);
        return false;
    }

    /// <summary>Instructions that do not exist in real and virtual-8086 mode.</summary>
    public static bool NeedsProtectedMode(LogicalProcessor p, CpuState* c)
    {
        if (CpuMode.ProtectedMode(c))
            return true;
        Outcome.Raise(c, Vector.UD);
        return false;
    }

    public static OpResult EndBlock(CpuState* c, Op* op)
    {
        c->Rip = Addressing.NextRip(c, op);
        return OpResult.EndBlock;
    }

    /// <summary>Leaves at the instruction, not retired.</summary>
    public static OpResult Leave(LogicalProcessor p, CpuState* c, Op* op, ExitReason reason)
    {
        p.Exit->InstructionLength = op->Length;
        return Outcome.Leave(c, reason);
    }
}

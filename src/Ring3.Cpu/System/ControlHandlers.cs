using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>MOV CRn and DRn, LMSW, SMSW, CLTS, INVLPG, INVPCID, XGETBV, XSETBV, STAC, CLAC, RDPKRU, WRPKRU.</summary>
/// <remarks>SAFETY: debug registers 0 to 3 are four fields in a row, and n is below 4 there; INVPCID's descriptor is translated for its 16 bytes.</remarks>
internal static unsafe class ControlHandlers
{
    public static OpResult MovFromControl(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (op->Reg1 is not (0 or 2 or 3 or 4 or 8))
            return Outcome.Raise(c, Vector.UD);
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        ulong value = op->Reg1 switch { 0 => c->Cr0, 2 => c->Cr2, 3 => c->Cr3, 4 => c->Cr4, _ => c->Cr8 };
        Operands.SetRegister(c, op->Reg0, CpuMode.Is64(c) ? 8 : 4, value);
        return OpResult.Next;
    }

    public static OpResult MovToControl(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (op->Reg0 is not (0 or 2 or 3 or 4 or 8))
            return Outcome.Raise(c, Vector.UD);
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        ulong value = Operands.Register(c, op->Reg1, CpuMode.Is64(c) ? 8 : 4);
        ulong next = Addressing.NextRip(c, op);
        bool done = true;
        switch (op->Reg0)
        {
            case 0: done = p.Control.WriteCr0(c, value); break;
            case 2: c->Cr2 = value; break;
            case 3: done = p.Control.WriteCr3(c, value); break;
            case 4: done = p.Control.WriteCr4(c, value); break;
            default: return WriteCr8(p, c, op, value);
        }
        if (!done)
            return OpResult.Fault;
        c->Rip = next;
        return OpResult.EndBlock;
    }

    private static OpResult WriteCr8(LogicalProcessor p, CpuState* c, Op* op, ulong value)
    {
        if (value > 15)
            return Outcome.Raise(c, Vector.GP, 0);
        *(ulong*)p.Exit->Data = value;
        return Operands.Leave(p, c, op, ExitReason.Cr8Write);
    }

    public static OpResult Lmsw(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.Privileged(p, c) || !Operands.Read16(p, c, op, op->Reg0, out ushort value))
            return OpResult.Fault;
        ulong next = Addressing.NextRip(c, op);
        const ulong loaded = Cr0.MP | Cr0.EM | Cr0.TS;
        ulong cr0 = (c->Cr0 & ~loaded) | (value & (loaded | Cr0.PE));
        if (!p.Control.WriteCr0(c, cr0))
            return OpResult.Fault;
        c->Rip = next;
        return OpResult.EndBlock;
    }

    public static OpResult Smsw(LogicalProcessor p, CpuState* c, Op* op) =>
        Operands.UmipAllows(p, c) ? Operands.Write16OrRegister(p, c, op, c->Cr0) : OpResult.Fault;

    public static OpResult Clts(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        c->Cr0 &= ~Cr0.TS;
        return Operands.EndBlock(c, op);
    }

    /// <summary>#UD, #GP and #DB of MOV to and from debug registers; <paramref name="number"/> comes back without the DR4/DR5 alias.</summary>
    private static bool CheckDebug(LogicalProcessor p, CpuState* c, ref byte number)
    {
        if (number >= 8 || (number is 4 or 5 && (c->Cr4 & Cr4.DE) != 0))
        {
            Outcome.Raise(c, Vector.UD);
            return false;
        }
        if (number is 4 or 5)
            number += 2;
        if (!Operands.Privileged(p, c))
            return false;
        if ((Breakpoints.EffectiveDr7(c) & Dr.Dr7GD) == 0)
            return true;
        Outcome.Raise(c, Vector.DB);
        c->PendingAddress = Dr.Dr6BD;
        return false;
    }

    public static OpResult MovFromDebug(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte n = op->Reg1;
        if (!CheckDebug(p, c, ref n))
            return OpResult.Fault;
        ulong value = n switch { 6 => c->Dr6, 7 => c->Dr7, _ => (&c->Dr0)[n] };
        Operands.SetRegister(c, op->Reg0, CpuMode.Is64(c) ? 8 : 4, value);
        return OpResult.Next;
    }

    public static OpResult MovToDebug(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte n = op->Reg0;
        if (!CheckDebug(p, c, ref n))
            return OpResult.Fault;
        ulong value = Operands.Register(c, op->Reg1, CpuMode.Is64(c) ? 8 : 4);
        if (n >= 6 && value >> 32 != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        switch (n)
        {
            case 6: c->Dr6 = (value & 0xe00f) | Dr.Dr6Fixed1; break;
            case 7: c->Dr7 = (value & 0xffff_23ff) | Dr.Dr7Fixed1; break;
            default: (&c->Dr0)[n] = value; break;
        }
        p.Paging.DebugRegistersChanged(c);
        return Operands.EndBlock(c, op);
    }

    public static OpResult Invlpg(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!Operands.Privileged(p, c))
            return OpResult.Fault;
        ulong linear = Addressing.EffectiveAddress(c, op) & Addressing.AddressMask(op->AddressSize);
        bool wide = CpuMode.Is64(c);
        if (!wide || op->Seg >= SegmentIndex.FS)
            linear += CpuState.SegmentAt(c, op->Seg)->Base;
        p.Paging.InvalidatePage(c, wide ? linear : (uint)linear);
        return Operands.EndBlock(c, op);
    }

    public static OpResult Invpcid(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!p.CpuidFeatures.Invpcid)
            return Outcome.Raise(c, Vector.UD);
        if (!Operands.Privileged(p, c) || !Addressing.LinearAddress(c, op, 16, AccessKind.Read, out ulong at))
            return OpResult.Fault;
        byte* descriptor = p.Access.ReadPtr(c, at, 16);
        if (descriptor == null)
            return OpResult.Fault;
        ulong type = Operands.Register(c, op->Reg0, CpuMode.Is64(c) ? 8 : 4), pcid = *(ulong*)descriptor, linear = *(ulong*)(descriptor + 8);
        bool invalid = type > 3 || pcid > 0xfff || (type <= 1 && pcid != 0 && (c->Cr4 & Cr4.PCIDE) == 0) || (type == 0 && !p.Paging.IsCanonicalForMsr(linear));
        if (invalid)
            return Outcome.Raise(c, Vector.GP, 0);
        p.Paging.InvalidatePcid(c, (int)type, (uint)pcid, linear);
        return Operands.EndBlock(c, op);
    }

    private static bool XsaveEnabled(LogicalProcessor p, CpuState* c)
    {
        if ((c->Cr4 & Cr4.OSXSAVE) != 0)
            return true;
        Outcome.Raise(c, Vector.UD);
        return false;
    }

    public static OpResult Xgetbv(LogicalProcessor p, CpuState* c, Op* op)
    {
        if (!XsaveEnabled(p, c))
            return OpResult.Fault;
        if ((uint)c->Gpr[1] > 1)
            return Outcome.Raise(c, Vector.GP, 0);
        c->Gpr[0] = (uint)c->Xcr0;
        c->Gpr[2] = c->Xcr0 >> 32;
        return OpResult.Next;
    }

    public static OpResult Xsetbv(LogicalProcessor p, CpuState* c, Op* op) =>
        XsaveEnabled(p, c) && Operands.Privileged(p, c) ? Operands.Leave(p, c, op, ExitReason.Xsetbv) : OpResult.Fault;

    public static OpResult Rdpkru(LogicalProcessor p, CpuState* c, Op* op)
    {
        if ((c->Cr4 & Cr4.PKE) == 0)
            return Outcome.Raise(c, Vector.UD);
        if ((uint)c->Gpr[1] != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        c->Gpr[0] = c->Pkru;
        c->Gpr[2] = 0;
        return OpResult.Next;
    }

    public static OpResult Wrpkru(LogicalProcessor p, CpuState* c, Op* op)
    {
        if ((c->Cr4 & Cr4.PKE) == 0)
            return Outcome.Raise(c, Vector.UD);
        if ((uint)c->Gpr[1] != 0 || (uint)c->Gpr[2] != 0)
            return Outcome.Raise(c, Vector.GP, 0);
        p.Paging.SetPkru(c, (uint)c->Gpr[0]);
        return OpResult.Next;
    }

    private static OpResult SetAc(LogicalProcessor p, CpuState* c, bool on)
    {
        if (!p.CpuidFeatures.Smap || c->Cpl != 0)
            return Outcome.Raise(c, Vector.UD);
        c->Rflags = on ? c->Rflags | Rflags.AC : c->Rflags & ~Rflags.AC;
        p.Paging.UpdatePrivilege(c);
        return OpResult.Next;
    }

    public static OpResult Stac(LogicalProcessor p, CpuState* c, Op* op) => SetAc(p, c, true);
    public static OpResult Clac(LogicalProcessor p, CpuState* c, Op* op) => SetAc(p, c, false);
}

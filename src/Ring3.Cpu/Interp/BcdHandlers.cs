using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Decimal adjustment. SPEC: SDM volume 2, the instructions by name.</summary>
/// <remarks>SAFETY: touches the processor's own state only.</remarks>
internal static unsafe class BcdHandlers
{
    internal static void Register()
    {
        HandlerTable.Set(Code.Daa, &Daa);
        HandlerTable.Set(Code.Das, &Das);
        HandlerTable.Set(Code.Aaa, &Aaa);
        HandlerTable.Set(Code.Aas, &Aas);
        HandlerTable.Set(Code.Aam_imm8, &Aam);
        HandlerTable.Set(Code.Aad_imm8, &Aad);
    }

    private static OpResult Daa(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte* al = (byte*)c->Gpr;
        byte old = *al;
        bool cf = Flags.CF(c), carry = false, adjust = (old & 15) > 9 || Flags.AF(c);
        if (adjust)
        {
            carry = cf || old > 0xff - 6;
            *al += 6;
        }
        if (old > 0x99 || cf)
        {
            *al += 0x60;
            carry = true;
        }
        return Finish(c, *al, carry, adjust);
    }

    private static OpResult Das(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte* al = (byte*)c->Gpr;
        byte old = *al;
        bool cf = Flags.CF(c), carry = false, adjust = (old & 15) > 9 || Flags.AF(c);
        if (adjust)
        {
            carry = cf || old < 6;
            *al -= 6;
        }
        if (old > 0x99 || cf)
        {
            *al -= 0x60;
            carry = true;
        }
        return Finish(c, *al, carry, adjust);
    }

    private static OpResult Aaa(LogicalProcessor p, CpuState* c, Op* op)
    {
        ushort* ax = (ushort*)c->Gpr;
        bool adjust = (*ax & 15) > 9 || Flags.AF(c);
        if (adjust)
            *ax += 0x106;
        *ax &= 0xff0f;
        return Finish(c, (byte)*ax, adjust, adjust);
    }

    private static OpResult Aas(LogicalProcessor p, CpuState* c, Op* op)
    {
        ushort* ax = (ushort*)c->Gpr;
        bool adjust = (*ax & 15) > 9 || Flags.AF(c);
        if (adjust)
            *ax -= 0x106;
        *ax &= 0xff0f;
        return Finish(c, (byte)*ax, adjust, adjust);
    }

    private static OpResult Aam(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte divisor = (byte)op->Imm;
        if (divisor == 0)
            return Outcome.Raise(c, Vector.DE);
        byte* al = (byte*)c->Gpr;
        al[1] = (byte)(*al / divisor);
        *al %= divisor;
        return Finish(c, *al, false, false);
    }

    private static OpResult Aad(LogicalProcessor p, CpuState* c, Op* op)
    {
        byte* al = (byte*)c->Gpr;
        *al = (byte)(*al + al[1] * (byte)op->Imm);
        al[1] = 0;
        return Finish(c, *al, false, false);
    }

    private static OpResult Finish(CpuState* c, byte al, bool carry, bool adjust)
    {
        Width.FlagsShift<W8>(c, al, carry, of: false);
        Flags.SetAF(c, adjust);
        return OpResult.Next;
    }
}

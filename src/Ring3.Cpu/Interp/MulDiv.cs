using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>MUL, IMUL, DIV, IDIV, MULX, ADCX and ADOX.</summary>
/// <remarks>SAFETY: the high half is RDX or AH, both inside the state; other operands go through <see cref="Shape"/>.</remarks>
internal static unsafe class MulDivHandlers
{
    /// <summary>High and low halves of RDX:RAX at a width; for 8 bits AH:AL.</summary>
    private static byte* High<W>(CpuState* c) where W : IWidth => W.Bytes == 1 ? (byte*)c + 1 : (byte*)&c->Gpr[2];

    private static void MulCore<W>(CpuState* c, ulong b) where W : IWidth
    {
        ulong a = W.Get((byte*)c), low, high;
        if (W.Bytes == 8)
            high = Math.BigMul(a, b, out low);
        else
        {
            low = a * b;
            high = low >> Width.Bits<W>();
        }
        W.Set((byte*)c, low);
        W.Set(High<W>(c), high);
        Flags.SetCFOF(c, high != 0, high != 0);
    }

    private static void ImulCore<W>(CpuState* c, ulong b) where W : IWidth
    {
        ulong a = W.SignExtend(W.Get((byte*)c)), low, high;
        b = W.SignExtend(b);
        if (W.Bytes == 8)
        {
            high = (ulong)Math.BigMul((long)a, (long)b, out long signedLow);
            low = (ulong)signedLow;
        }
        else
        {
            low = a * b;
            high = low >> Width.Bits<W>();
        }
        W.Set((byte*)c, low);
        W.Set(High<W>(c), high);
        bool over = W.Bytes == 8 ? high != (ulong)((long)low >> 63) : W.SignExtend(low) != low;
        Flags.SetCFOF(c, over, over);
    }

    private static ulong Imul2<W>(CpuState* c, ulong a, ulong b) where W : IWidth
    {
        a = W.SignExtend(a);
        b = W.SignExtend(b);
        ulong low = a * b;
        bool over = W.Bytes == 8 ? (ulong)Math.BigMul((long)a, (long)b, out _) != (ulong)((long)low >> 63) : W.SignExtend(low) != low;
        Flags.SetCFOF(c, over, over);
        return low;
    }

    /// <summary>False: #DE.</summary>
    private static bool DivCore<W>(CpuState* c, ulong b) where W : IWidth
    {
        ulong low = W.Get((byte*)c), high = W.Get(High<W>(c));
        if (high >= b)
            return false;
        ulong quotient, remainder;
        if (W.Bytes == 8 && high != 0)
        {
            (UInt128 q, UInt128 r) = UInt128.DivRem(new UInt128(high, low), b);
            quotient = (ulong)q;
            remainder = (ulong)r;
        }
        else
        {
            ulong n = W.Bytes == 8 ? low : high << Width.Bits<W>() | low;
            (quotient, remainder) = Math.DivRem(n, b);
        }
        W.Set((byte*)c, quotient);
        W.Set(High<W>(c), remainder);
        return true;
    }

    private static bool IdivCore<W>(CpuState* c, ulong divisor) where W : IWidth
    {
        long b = (long)W.SignExtend(divisor);
        if (b == 0)
            return false;
        ulong low = W.Get((byte*)c), high = W.Get(High<W>(c));
        Int128 n = W.Bytes == 8 ? new Int128(high, low) : (long)(W.SignExtend(high) << Width.Bits<W>() | low);
        if (W.Bytes < 8 || high == (ulong)((long)low >> 63))
            return IdivNarrow<W>(c, (long)n, b);
        // Divided by -1, only 2^63 gives a quotient that fits; MIN / -1 would overflow Int128 itself.
        if (b == -1 && n != (Int128)1 << 63)
            return false;
        (Int128 q, Int128 r) = Int128.DivRem(n, b);
        if (q != (long)q)
            return false;
        W.Set((byte*)c, (ulong)(long)q);
        W.Set(High<W>(c), (ulong)(long)r);
        return true;
    }

    private static bool IdivNarrow<W>(CpuState* c, long n, long b) where W : IWidth
    {
        if (b == -1 && n == long.MinValue)
            return false;
        (long q, long r) = Math.DivRem(n, b);
        if ((ulong)q != W.SignExtend((ulong)q))
            return false;
        W.Set((byte*)c, (ulong)q);
        W.Set(High<W>(c), (ulong)r);
        return true;
    }

    private static OpResult MulReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth { MulCore<W>(c, Shape.Reg0<W>(c, op)); return OpResult.Next; }
    private static OpResult ImulReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth { ImulCore<W>(c, Shape.Reg0<W>(c, op)); return OpResult.Next; }
    private static OpResult DivReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        DivCore<W>(c, Shape.Reg0<W>(c, op)) ? OpResult.Next : Outcome.Raise(c, Vector.DE);
    private static OpResult IdivReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        IdivCore<W>(c, Shape.Reg0<W>(c, op)) ? OpResult.Next : Outcome.Raise(c, Vector.DE);

    private static OpResult MulMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong b))
            return OpResult.Fault;
        MulCore<W>(c, b);
        return OpResult.Next;
    }

    private static OpResult ImulMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong b))
            return OpResult.Fault;
        ImulCore<W>(c, b);
        return OpResult.Next;
    }

    private static OpResult DivMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => !Shape.Load<W>(p, c, op, out ulong b) ? OpResult.Fault : DivCore<W>(c, b) ? OpResult.Next : Outcome.Raise(c, Vector.DE);

    private static OpResult IdivMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => !Shape.Load<W>(p, c, op, out ulong b) ? OpResult.Fault : IdivCore<W>(c, b) ? OpResult.Next : Outcome.Raise(c, Vector.DE);

    private static OpResult ImulRegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, Imul2<W>(c, Shape.Reg0<W>(c, op), Shape.Reg1<W>(c, op)));
        return OpResult.Next;
    }

    private static OpResult ImulRegMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong b))
            return OpResult.Fault;
        Shape.SetReg0<W>(c, op, Imul2<W>(c, Shape.Reg0<W>(c, op), b));
        return OpResult.Next;
    }

    private static OpResult ImulRegRegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, Imul2<W>(c, Shape.Reg1<W>(c, op), op->Imm));
        return OpResult.Next;
    }

    private static OpResult ImulRegMemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong a))
            return OpResult.Fault;
        Shape.SetReg0<W>(c, op, Imul2<W>(c, a, op->Imm));
        return OpResult.Next;
    }

    /// <summary>MULX: Reg0 the high half, Reg1 the low half (the high one wins when they are the same), no flags.</summary>
    private static void MulxCore<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        ulong a = W.Get((byte*)&c->Gpr[2]), low, high;
        if (W.Bytes == 8)
            high = Math.BigMul(a, b, out low);
        else
        {
            low = a * b;
            high = low >> 32;
        }
        W.Set((byte*)c + op->Reg1, low);
        W.Set((byte*)c + op->Reg0, high);
    }

    private static OpResult MulxReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        MulxCore<W>(c, op, W.Get((byte*)c + op->Reg2));
        return OpResult.Next;
    }

    private static OpResult MulxMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        if (!Shape.Load<W>(p, c, op, out ulong b))
            return OpResult.Fault;
        MulxCore<W>(c, op, b);
        return OpResult.Next;
    }

    /// <summary>ADCX adds with CF and writes only CF; ADOX does it with OF.</summary>
    private static OpResult AddCarry<W>(CpuState* c, Op* op, ulong b, bool overflow) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op), carry = (overflow ? Flags.OF(c) : Flags.CF(c)) ? 1UL : 0, r = (a + b + carry) & Width.Mask<W>();
        bool cout = Width.Sign<W>(a & b | (a | b) & ~r);
        Shape.SetReg0<W>(c, op, r);
        if (overflow)
            Flags.SetOF(c, cout);
        else
            Flags.SetCF(c, cout);
        return OpResult.Next;
    }

    private static OpResult AdcxReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => AddCarry<W>(c, op, Shape.Reg1<W>(c, op), false);
    private static OpResult AdcxMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? AddCarry<W>(c, op, b, false) : OpResult.Fault;
    private static OpResult AdoxReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => AddCarry<W>(c, op, Shape.Reg1<W>(c, op), true);
    private static OpResult AdoxMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? AddCarry<W>(c, op, b, true) : OpResult.Fault;

    public static void Register()
    {
        Widths<W16>(0);
        Widths<W32>(1);
        Widths<W64>(2);
        HandlerTable.Set(Code.Mul_rm8, &MulMem<W8>, &MulReg<W8>);
        HandlerTable.Set(Code.Imul_rm8, &ImulMem<W8>, &ImulReg<W8>);
        HandlerTable.Set(Code.Div_rm8, &DivMem<W8>, &DivReg<W8>);
        HandlerTable.Set(Code.Idiv_rm8, &IdivMem<W8>, &IdivReg<W8>);
        Extensions<W32>(0);
        Extensions<W64>(1);
    }

    private static void Widths<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.Mul_rm16 + n, &MulMem<W>, &MulReg<W>);
        HandlerTable.Set(Code.Imul_rm16 + n, &ImulMem<W>, &ImulReg<W>);
        HandlerTable.Set(Code.Div_rm16 + n, &DivMem<W>, &DivReg<W>);
        HandlerTable.Set(Code.Idiv_rm16 + n, &IdivMem<W>, &IdivReg<W>);
        HandlerTable.Set(Code.Imul_r16_rm16 + n, &ImulRegMem<W>, &ImulRegReg<W>);
        HandlerTable.Set(Code.Imul_r16_rm16_imm16 + n, &ImulRegMemImm<W>, &ImulRegRegImm<W>);
        HandlerTable.Set(Code.Imul_r16_rm16_imm8 + n, &ImulRegMemImm<W>, &ImulRegRegImm<W>);
    }

    private static void Extensions<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.VEX_Mulx_r32_r32_rm32 + n, &MulxMem<W>, &MulxReg<W>);
        HandlerTable.Set(Code.Adcx_r32_rm32 + n, &AdcxMem<W>, &AdcxReg<W>);
        HandlerTable.Set(Code.Adox_r32_rm32 + n, &AdoxMem<W>, &AdoxReg<W>);
    }
}

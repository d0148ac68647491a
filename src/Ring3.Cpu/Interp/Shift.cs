using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Shifts and rotates. The source is the count, already masked to 5 or 6 bits. Counts of zero change neither operand nor flags.</summary>
internal struct ShlOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => a << (int)n;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        if (n == 0)
            return;
        bool cf = Width.Sign<W>(a << (int)(n - 1));
        Width.FlagsShift<W>(c, r, cf, Width.Sign<W>(r) != cf);
    }
}

internal struct ShrOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => a >> (int)n;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        if (n != 0)
            Width.FlagsShift<W>(c, r, (a >> (int)(n - 1) & 1) != 0, Width.Sign<W>(r ^ r << 1));
    }
}

internal struct SarOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => (ulong)((long)W.SignExtend(a) >> (int)n);
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        if (n != 0)
            Width.FlagsShift<W>(c, r, ((long)W.SignExtend(a) >> (int)(n - 1) & 1) != 0, false);
    }
}

internal struct RolOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth
    {
        int s = (int)n & (Width.Bits<W>() - 1);
        return s == 0 ? a : a << s | a >> (Width.Bits<W>() - s);
    }

    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        if (n != 0)
            Flags.SetCFOF(c, (r & 1) != 0, (r & 1) != 0 != Width.Sign<W>(r));
    }
}

internal struct RorOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth
    {
        int s = (int)n & (Width.Bits<W>() - 1);
        return s == 0 ? a : a >> s | a << (Width.Bits<W>() - s);
    }

    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        if (n != 0)
            Flags.SetCFOF(c, Width.Sign<W>(r), Width.Sign<W>(r ^ r << 1));
    }
}

/// <summary>Rotate through carry: the operand and CF form a word of one bit more.</summary>
internal struct RclOp : IModify
{
    public static int Count<W>(ulong n) where W : IWidth => W.Bytes >= 4 ? (int)n : (int)n % (Width.Bits<W>() + 1);

    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth
    {
        int s = Count<W>(n), bits = Width.Bits<W>();
        if (s == 0)
            return a;
        ulong carry = c->FlagsCarry >> 63;
        return (s == 64 ? 0 : a << s) | carry << (s - 1) | (s == 1 ? 0 : a >> (bits + 1 - s));
    }

    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        int s = Count<W>(n);
        if (s == 0)
            return;
        bool cf = (a >> (Width.Bits<W>() - s) & 1) != 0;
        Flags.SetCFOF(c, cf, cf != Width.Sign<W>(r));
    }
}

internal struct RcrOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth
    {
        int s = RclOp.Count<W>(n), bits = Width.Bits<W>();
        if (s == 0)
            return a;
        ulong carry = c->FlagsCarry >> 63;
        return (s == 64 ? 0 : a >> s) | carry << (bits - s) | (s == 1 ? 0 : a << (bits + 1 - s));
    }

    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth
    {
        int s = RclOp.Count<W>(n);
        if (s != 0)
            Flags.SetCFOF(c, (a >> (s - 1) & 1) != 0, Width.Sign<W>(r ^ r << 1));
    }
}

/// <summary>One shift in all widths and shapes.</summary>
/// <remarks>SAFETY: operands are reached through <see cref="Shape"/>; the count in CL is a field of the state.</remarks>
internal static unsafe class Shift<O> where O : struct, IModify
{
    private static ulong Masked<W>(ulong count) where W : IWidth => count & (W.Bytes == 8 ? 63UL : 31);

    private static OpResult OnRegister<W>(CpuState* c, Op* op, ulong count) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op), r = O.Compute<W>(c, a, count) & Width.Mask<W>();
        O.Finish<W>(c, op, a, count, r);
        Shape.SetReg0<W>(c, op, r);
        return OpResult.Next;
    }

    private static OpResult RegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, Masked<W>(op->Imm));
    private static OpResult RegCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, Masked<W>(c->Gpr[1]));
    private static OpResult MemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Modify<W, O>(p, c, op, Masked<W>(op->Imm));
    private static OpResult MemCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Modify<W, O>(p, c, op, Masked<W>(c->Gpr[1]));

    public static void Register(Code imm8, Code imm16, Code one8, Code one16, Code cl8, Code cl16)
    {
        Immediates(imm8, imm16);
        Immediates(one8, one16);
        HandlerTable.Set(cl8, &MemCl<W8>, &RegCl<W8>);
        HandlerTable.Set(cl16, &MemCl<W16>, &RegCl<W16>);
        HandlerTable.Set(cl16 + 1, &MemCl<W32>, &RegCl<W32>);
        HandlerTable.Set(cl16 + 2, &MemCl<W64>, &RegCl<W64>);
    }

    private static void Immediates(Code first8, Code first16)
    {
        HandlerTable.Set(first8, &MemImm<W8>, &RegImm<W8>);
        HandlerTable.Set(first16, &MemImm<W16>, &RegImm<W16>);
        HandlerTable.Set(first16 + 1, &MemImm<W32>, &RegImm<W32>);
        HandlerTable.Set(first16 + 2, &MemImm<W64>, &RegImm<W64>);
    }
}

/// <summary>SHLD and SHRD. Reg1 is the register that is shifted in.</summary>
/// <remarks>SAFETY: both registers are reached through <see cref="Shape"/>; shifts are by less than the width, or decided by a comparison.</remarks>
internal static unsafe class DoubleShift
{
    private static ulong Result<W>(LogicalProcessor p, bool left, ulong a, ulong b, int n) where W : IWidth
    {
        int bits = Width.Bits<W>();
        if (n > bits)
        {
            // Undefined for 16 bits and counts above 16.
            n -= bits;
            (a, b) = (b, p.Model.ShiftsFirstOperandIn ? a : b);
        }
        ulong r = left ? a << n | (n == bits ? b : b >> (bits - n)) : a >> n | (n == bits ? b : b << (bits - n));
        return n == 64 ? b : r & Width.Mask<W>();
    }

    private static void SetFlags<W>(CpuState* c, bool left, ulong a, ulong b, ulong r, int n) where W : IWidth
    {
        int bits = Width.Bits<W>();
        ulong last = n > bits ? b : a;
        int m = n > bits ? n - bits : n;
        bool cf = left ? (last >> (bits - m) & 1) != 0 : (last >> (m - 1) & 1) != 0;
        Width.FlagsShift<W>(c, r, cf, Width.Sign<W>(r) != Width.Sign<W>(a));
    }

    private static OpResult OnRegister<W>(LogicalProcessor p, CpuState* c, Op* op, bool left, int n) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op);
        if (n == 0)
        {
            Shape.SetReg0<W>(c, op, a);
            return OpResult.Next;
        }
        ulong b = Shape.Reg1<W>(c, op), r = Result<W>(p, left, a, b, n);
        SetFlags<W>(c, left, a, b, r, n);
        Shape.SetReg0<W>(c, op, r);
        return OpResult.Next;
    }

    private static OpResult OnMemory<W>(LogicalProcessor p, CpuState* c, Op* op, bool left, int n) where W : IWidth
    {
        if (!Addressing.LinearAddress(c, op, W.Bytes, AccessKind.Write, out ulong linear))
            return OpResult.Fault;
        byte* ptr = p.Access.ModifyPtr(c, linear, W.Bytes);
        if (ptr == null)
            return OpResult.Fault;
        ulong a = W.Get(ptr), b = Shape.Reg1<W>(c, op), r = n == 0 ? a : Result<W>(p, left, a, b, n);
        W.Put(ptr, r);
        OpResult end = p.Access.EndWrite(c, ptr, linear, W.Bytes);
        if (end == OpResult.Next && n != 0)
            SetFlags<W>(c, left, a, b, r, n);
        return end;
    }

    private static int Masked<W>(ulong count) where W : IWidth => (int)(count & (W.Bytes == 8 ? 63UL : 31));

    private static OpResult LeftRegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(p, c, op, true, Masked<W>(op->Imm));
    private static OpResult LeftRegCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(p, c, op, true, Masked<W>(c->Gpr[1]));
    private static OpResult LeftMemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnMemory<W>(p, c, op, true, Masked<W>(op->Imm));
    private static OpResult LeftMemCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnMemory<W>(p, c, op, true, Masked<W>(c->Gpr[1]));
    private static OpResult RightRegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(p, c, op, false, Masked<W>(op->Imm));
    private static OpResult RightRegCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(p, c, op, false, Masked<W>(c->Gpr[1]));
    private static OpResult RightMemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnMemory<W>(p, c, op, false, Masked<W>(op->Imm));
    private static OpResult RightMemCl<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnMemory<W>(p, c, op, false, Masked<W>(c->Gpr[1]));

    private static void Widths<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.Shld_rm16_r16_imm8 + n, &LeftMemImm<W>, &LeftRegImm<W>);
        HandlerTable.Set(Code.Shld_rm16_r16_CL + n, &LeftMemCl<W>, &LeftRegCl<W>);
        HandlerTable.Set(Code.Shrd_rm16_r16_imm8 + n, &RightMemImm<W>, &RightRegImm<W>);
        HandlerTable.Set(Code.Shrd_rm16_r16_CL + n, &RightMemCl<W>, &RightRegCl<W>);
    }

    public static void Register()
    {
        Widths<W16>(0);
        Widths<W32>(1);
        Widths<W64>(2);
    }
}

/// <summary>Registration of the shift family.</summary>
internal static class ShiftHandlers
{
    public static void Register()
    {
        Shift<RolOp>.Register(Code.Rol_rm8_imm8, Code.Rol_rm16_imm8, Code.Rol_rm8_1, Code.Rol_rm16_1, Code.Rol_rm8_CL, Code.Rol_rm16_CL);
        Shift<RorOp>.Register(Code.Ror_rm8_imm8, Code.Ror_rm16_imm8, Code.Ror_rm8_1, Code.Ror_rm16_1, Code.Ror_rm8_CL, Code.Ror_rm16_CL);
        Shift<RclOp>.Register(Code.Rcl_rm8_imm8, Code.Rcl_rm16_imm8, Code.Rcl_rm8_1, Code.Rcl_rm16_1, Code.Rcl_rm8_CL, Code.Rcl_rm16_CL);
        Shift<RcrOp>.Register(Code.Rcr_rm8_imm8, Code.Rcr_rm16_imm8, Code.Rcr_rm8_1, Code.Rcr_rm16_1, Code.Rcr_rm8_CL, Code.Rcr_rm16_CL);
        Shift<ShlOp>.Register(Code.Shl_rm8_imm8, Code.Shl_rm16_imm8, Code.Shl_rm8_1, Code.Shl_rm16_1, Code.Shl_rm8_CL, Code.Shl_rm16_CL);
        Shift<ShlOp>.Register(Code.Sal_rm8_imm8, Code.Sal_rm16_imm8, Code.Sal_rm8_1, Code.Sal_rm16_1, Code.Sal_rm8_CL, Code.Sal_rm16_CL);
        Shift<ShrOp>.Register(Code.Shr_rm8_imm8, Code.Shr_rm16_imm8, Code.Shr_rm8_1, Code.Shr_rm16_1, Code.Shr_rm8_CL, Code.Shr_rm16_CL);
        Shift<SarOp>.Register(Code.Sar_rm8_imm8, Code.Sar_rm16_imm8, Code.Sar_rm8_1, Code.Sar_rm16_1, Code.Sar_rm8_CL, Code.Sar_rm16_CL);
        DoubleShift.Register();
    }
}

using System.Numerics;
using System.Runtime.Intrinsics.X86;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

internal struct BtsOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => a | 1UL << (int)n;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth => Flags.SetCF(c, (a >> (int)n & 1) != 0);
}

internal struct BtrOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => a & ~(1UL << (int)n);
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth => Flags.SetCF(c, (a >> (int)n & 1) != 0);
}

internal struct BtcOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong n) where W : IWidth => a ^ 1UL << (int)n;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong n, ulong r) where W : IWidth => Flags.SetCF(c, (a >> (int)n & 1) != 0);
}

/// <summary>BTS, BTR and BTC. With a register index a memory operand is a bit string: the index, signed, moves the address.</summary>
/// <remarks>SAFETY: the bit number is reduced to the width; a bit string's word is translated before <see cref="Shape"/> touches it.</remarks>
internal static unsafe class BitTest<O> where O : struct, IModify
{
    private static ulong Bit<W>(ulong index) where W : IWidth => index & (ulong)(Width.Bits<W>() - 1);

    private static OpResult OnRegister<W>(CpuState* c, Op* op, ulong index) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op), n = Bit<W>(index);
        O.Finish<W>(c, op, a, n, 0);
        Shape.SetReg0<W>(c, op, O.Compute<W>(c, a, n) & Width.Mask<W>());
        return OpResult.Next;
    }

    private static OpResult RegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult RegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, op->Imm);
    private static OpResult MemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Modify<W, O>(p, c, op, Bit<W>(op->Imm));

    private static OpResult MemReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong index = Shape.Reg1<W>(c, op);
        return BitString.Address<W>(p, c, op, index, AccessKind.Write, out ulong linear) ? Shape.ModifyAt<W, O>(p, c, op, linear, Bit<W>(index))
            : OpResult.Fault;
    }

    private static void Widths<W>(Code rmReg, Code rmImm) where W : IWidth
    {
        HandlerTable.Set(rmReg, &MemReg<W>, &RegReg<W>);
        HandlerTable.Set(rmImm, &MemImm<W>, &RegImm<W>);
    }

    public static void Register(Code rmReg, Code rmImm)
    {
        Widths<W16>(rmReg, rmImm);
        Widths<W32>(rmReg + 1, rmImm + 1);
        Widths<W64>(rmReg + 2, rmImm + 2);
    }
}

/// <summary>Address of the word that holds a bit of a bit string.</summary>
/// <remarks>SAFETY: computes a linear address; reads a field of the state and follows nothing.</remarks>
internal static unsafe class BitString
{
    public static bool Address<W>(LogicalProcessor p, CpuState* c, Op* op, ulong index, AccessKind access, out ulong linear) where W : IWidth
    {
        long words = (long)W.SignExtend(index) >> (W.Bytes == 8 ? 6 : W.Bytes == 4 ? 5 : 4);
        ulong offset = (Addressing.EffectiveAddress(c, op) + (ulong)(words * W.Bytes)) & Addressing.AddressMask(op->AddressSize);
        return Addressing.SegmentLinear(c, op->Seg, offset, W.Bytes, access, out linear);
    }
}

/// <summary>BT, bit scans, counts, BMI1, BMI2, CRC32.</summary>
/// <remarks>SAFETY: the one pointer that is read here has been translated for the operand's width; the rest goes through <see cref="Shape"/>.</remarks>
internal static unsafe class BitHandlers
{
    private static OpResult Bt<W>(CpuState* c, ulong a, ulong index) where W : IWidth
    {
        Flags.SetCF(c, (a >> (int)(index & (ulong)(Width.Bits<W>() - 1)) & 1) != 0);
        return OpResult.Next;
    }

    private static OpResult BtRegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Bt<W>(c, Shape.Reg0<W>(c, op), Shape.Reg1<W>(c, op));
    private static OpResult BtRegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Bt<W>(c, Shape.Reg0<W>(c, op), op->Imm);
    private static OpResult BtMemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong a) ? Bt<W>(c, a, op->Imm) : OpResult.Fault;

    private static OpResult BtMemReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
    {
        ulong index = Shape.Reg1<W>(c, op);
        if (!BitString.Address<W>(p, c, op, index, AccessKind.Read, out ulong linear))
            return OpResult.Fault;
        byte* ptr = p.Access.ReadPtr(c, linear, W.Bytes);
        return ptr != null ? Bt<W>(c, W.Get(ptr), index) : OpResult.Fault;
    }

    private static OpResult Bsf<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        // A zero source leaves the whole destination alone, also its upper half in the 32-bit form (documented by AMD); the other flags are undefined and kept.
        if (b != 0)
            Shape.SetReg0<W>(c, op, (ulong)BitOperations.TrailingZeroCount(b));
        Flags.SetZF(c, b == 0);
        return OpResult.Next;
    }

    private static OpResult Bsr<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        if (b != 0)
            Shape.SetReg0<W>(c, op, (ulong)BitOperations.Log2(b));
        Flags.SetZF(c, b == 0);
        return OpResult.Next;
    }

    private static OpResult Tzcnt<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        ulong r = b == 0 ? (ulong)Width.Bits<W>() : (ulong)BitOperations.TrailingZeroCount(b);
        return Counted<W>(c, op, b, r);
    }

    private static OpResult Lzcnt<W>(CpuState* c, Op* op, ulong b) where W : IWidth =>
        Counted<W>(c, op, b, (ulong)(BitOperations.LeadingZeroCount(b) - (64 - Width.Bits<W>())));

    private static OpResult Counted<W>(CpuState* c, Op* op, ulong b, ulong r) where W : IWidth
    {
        Flags.SetCF(c, b == 0);
        Flags.SetZF(c, r == 0);
        Shape.SetReg0<W>(c, op, r);
        return OpResult.Next;
    }

    private static OpResult Popcnt<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        Flags.SetStatus(c, b == 0 ? Arch.Rflags.ZF : 0);
        Shape.SetReg0<W>(c, op, (ulong)BitOperations.PopCount(b));
        return OpResult.Next;
    }

    private static OpResult BsfReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Bsf<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult BsfMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Bsf<W>(c, op, b) : OpResult.Fault;
    private static OpResult BsrReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Bsr<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult BsrMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Bsr<W>(c, op, b) : OpResult.Fault;
    private static OpResult TzcntReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Tzcnt<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult TzcntMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Tzcnt<W>(c, op, b) : OpResult.Fault;
    private static OpResult LzcntReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Lzcnt<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult LzcntMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Lzcnt<W>(c, op, b) : OpResult.Fault;
    private static OpResult PopcntReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Popcnt<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult PopcntMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Popcnt<W>(c, op, b) : OpResult.Fault;

    /// <summary>CRC32 of S accumulates into a 32-bit value; the destination's upper half becomes zero.</summary>
    private static OpResult Crc<S>(CpuState* c, Op* op, ulong b) where S : IWidth
    {
        uint crc = (uint)Shape.Reg0<W32>(c, op);
        crc = S.Bytes switch
        {
            1 => BitOperations.Crc32C(crc, (byte)b),
            2 => BitOperations.Crc32C(crc, (ushort)b),
            4 => BitOperations.Crc32C(crc, (uint)b),
            _ => BitOperations.Crc32C(crc, b),
        };
        Shape.SetReg0<W32>(c, op, crc);
        return OpResult.Next;
    }

    private static OpResult CrcReg<S>(LogicalProcessor p, CpuState* c, Op* op) where S : IWidth => Crc<S>(c, op, Shape.Reg1<S>(c, op));
    private static OpResult CrcMem<S>(LogicalProcessor p, CpuState* c, Op* op) where S : IWidth =>
        Shape.Load<S>(p, c, op, out ulong b) ? Crc<S>(c, op, b) : OpResult.Fault;

    public static void Register()
    {
        BitTest<BtsOp>.Register(Code.Bts_rm16_r16, Code.Bts_rm16_imm8);
        BitTest<BtrOp>.Register(Code.Btr_rm16_r16, Code.Btr_rm16_imm8);
        BitTest<BtcOp>.Register(Code.Btc_rm16_r16, Code.Btc_rm16_imm8);
        Widths<W16>(0);
        Widths<W32>(1);
        Widths<W64>(2);
        HandlerTable.Set(Code.Crc32_r32_rm8, &CrcMem<W8>, &CrcReg<W8>);
        HandlerTable.Set(Code.Crc32_r64_rm8, &CrcMem<W8>, &CrcReg<W8>);
        HandlerTable.Set(Code.Crc32_r32_rm16, &CrcMem<W16>, &CrcReg<W16>);
        HandlerTable.Set(Code.Crc32_r32_rm32, &CrcMem<W32>, &CrcReg<W32>);
        HandlerTable.Set(Code.Crc32_r64_rm64, &CrcMem<W64>, &CrcReg<W64>);
        BmiHandlers.Register();
    }

    private static void Widths<W>(int n) where W : IWidth
    {
        HandlerTable.Set(Code.Bt_rm16_r16 + n, &BtMemReg<W>, &BtRegReg<W>);
        HandlerTable.Set(Code.Bt_rm16_imm8 + n, &BtMemImm<W>, &BtRegImm<W>);
        HandlerTable.Set(Code.Bsf_r16_rm16 + n, &BsfMem<W>, &BsfReg<W>);
        HandlerTable.Set(Code.Bsr_r16_rm16 + n, &BsrMem<W>, &BsrReg<W>);
        HandlerTable.Set(Code.Tzcnt_r16_rm16 + n, &TzcntMem<W>, &TzcntReg<W>);
        HandlerTable.Set(Code.Lzcnt_r16_rm16 + n, &LzcntMem<W>, &LzcntReg<W>);
        HandlerTable.Set(Code.Popcnt_r16_rm16 + n, &PopcntMem<W>, &PopcntReg<W>);
    }
}

/// <summary>A three-operand BMI operation: destination, first source, second source.</summary>
internal unsafe interface IBmi
{
    static abstract ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth;
}

/// <summary>Flags of the BMI operations: ZF and SF from the result, OF zero; AF and PF are undefined and cleared.</summary>
/// <remarks>SAFETY: writes the processor's own state.</remarks>
internal static unsafe class BmiFlags
{
    public static ulong Set<W>(CpuState* c, ulong r, bool cf) where W : IWidth
    {
        r &= Width.Mask<W>();
        Flags.SetStatus(c, (r == 0 ? Arch.Rflags.ZF : 0) | (Width.Sign<W>(r) ? Arch.Rflags.SF : 0) | (cf ? Arch.Rflags.CF : 0));
        return r;
    }
}

internal struct AndnOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => BmiFlags.Set<W>(c, ~a & b, false); }
internal struct BlsrOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => BmiFlags.Set<W>(c, b & (b - 1), b == 0); }
internal struct BlsmskOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => BmiFlags.Set<W>(c, b ^ (b - 1), b == 0); }
internal struct BlsiOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => BmiFlags.Set<W>(c, b & (0 - b), b != 0); }
internal struct PextOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => Bmi2.X64.ParallelBitExtract(a, b); }
internal struct PdepOp : IBmi { public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth => Bmi2.X64.ParallelBitDeposit(a, b); }

/// <summary>Sources in the other order: a is r/m, b the register that follows it.</summary>
internal struct BzhiOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth
    {
        int n = (int)(b & 0xff), bits = Width.Bits<W>();
        return BmiFlags.Set<W>(c, n >= bits ? a : a & ((1UL << n) - 1), n >= bits);
    }
}

internal struct BextrOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth
    {
        int start = (int)(b & 0xff), length = (int)(b >> 8 & 0xff);
        ulong r = start >= 64 ? 0 : a >> start;
        r = length >= 64 ? r : r & ((1UL << length) - 1);
        Flags.SetStatus(c, r == 0 ? Arch.Rflags.ZF : 0);
        return r;
    }
}

internal struct ShlxOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth =>
        a << (int)(b & (ulong)(Width.Bits<W>() - 1));
}

internal struct ShrxOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth =>
        a >> (int)(b & (ulong)(Width.Bits<W>() - 1));
}

internal struct SarxOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth =>
        (ulong)((long)W.SignExtend(a) >> (int)(b & (ulong)(Width.Bits<W>() - 1)));
}


internal struct RorxOp : IBmi
{
    public static unsafe ulong Do<W>(CpuState* c, ulong a, ulong b) where W : IWidth =>
        W.Bytes == 8 ? BitOperations.RotateRight(a, (int)b) : BitOperations.RotateRight((uint)a, (int)b);
}

/// <summary>Operand orders of BMI.</summary>
/// <remarks>SAFETY: the third operand is a register whose offset the decoder wrote, as the two that <see cref="Shape"/> reads.</remarks>
internal static unsafe class Bmi<O> where O : struct, IBmi
{
    /// <summary>dest, a register, r/m: ANDN, PEXT, PDEP.</summary>
    private static OpResult Rrm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Done<W>(c, op, Shape.Reg1<W>(c, op), W.Get((byte*)c + op->Reg2));
    private static OpResult RrmMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Done<W>(c, op, Shape.Reg1<W>(c, op), b) : OpResult.Fault;
    /// <summary>dest, r/m, register: BZHI, BEXTR, shifts.</summary>
    private static OpResult RmR<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Done<W>(c, op, Shape.Reg1<W>(c, op), W.Get((byte*)c + op->Reg2));
    private static OpResult RmRMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong a) ? Done<W>(c, op, a, W.Get((byte*)c + op->Reg2)) : OpResult.Fault;
    /// <summary>dest, r/m: BLSR, BLSMSK, BLSI. dest, r/m, immediate: RORX.</summary>
    private static OpResult Rm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Done<W>(c, op, 0, Shape.Reg1<W>(c, op));
    private static OpResult RmMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong b) ? Done<W>(c, op, 0, b) : OpResult.Fault;
    private static OpResult RmImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Done<W>(c, op, Shape.Reg1<W>(c, op), op->Imm);
    private static OpResult RmImmMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Shape.Load<W>(p, c, op, out ulong a) ? Done<W>(c, op, a, op->Imm) : OpResult.Fault;

    private static OpResult Done<W>(CpuState* c, Op* op, ulong a, ulong b) where W : IWidth
    {
        Shape.SetReg0<W>(c, op, O.Do<W>(c, a, b));
        return OpResult.Next;
    }

    public static void RegisterRrm(Code code32)
    {
        HandlerTable.Set(code32, &RrmMem<W32>, &Rrm<W32>);
        HandlerTable.Set(code32 + 1, &RrmMem<W64>, &Rrm<W64>);
    }

    public static void RegisterRmR(Code code32)
    {
        HandlerTable.Set(code32, &RmRMem<W32>, &RmR<W32>);
        HandlerTable.Set(code32 + 1, &RmRMem<W64>, &RmR<W64>);
    }

    public static void RegisterRm(Code code32)
    {
        HandlerTable.Set(code32, &RmMem<W32>, &Rm<W32>);
        HandlerTable.Set(code32 + 1, &RmMem<W64>, &Rm<W64>);
    }

    public static void RegisterRmImm(Code code32)
    {
        HandlerTable.Set(code32, &RmImmMem<W32>, &RmImm<W32>);
        HandlerTable.Set(code32 + 1, &RmImmMem<W64>, &RmImm<W64>);
    }
}

/// <summary>Registration of BMI1 and BMI2.</summary>
internal static class BmiHandlers
{
    public static void Register()
    {
        Bmi<AndnOp>.RegisterRrm(Code.VEX_Andn_r32_r32_rm32);
        if (Bmi2.X64.IsSupported)
        {
            Bmi<PextOp>.RegisterRrm(Code.VEX_Pext_r32_r32_rm32);
            Bmi<PdepOp>.RegisterRrm(Code.VEX_Pdep_r32_r32_rm32);
        }
        Bmi<BzhiOp>.RegisterRmR(Code.VEX_Bzhi_r32_rm32_r32);
        Bmi<BextrOp>.RegisterRmR(Code.VEX_Bextr_r32_rm32_r32);
        Bmi<ShlxOp>.RegisterRmR(Code.VEX_Shlx_r32_rm32_r32);
        Bmi<ShrxOp>.RegisterRmR(Code.VEX_Shrx_r32_rm32_r32);
        Bmi<SarxOp>.RegisterRmR(Code.VEX_Sarx_r32_rm32_r32);
        Bmi<BlsrOp>.RegisterRm(Code.VEX_Blsr_r32_rm32);
        Bmi<BlsmskOp>.RegisterRm(Code.VEX_Blsmsk_r32_rm32);
        Bmi<BlsiOp>.RegisterRm(Code.VEX_Blsi_r32_rm32);
        Bmi<RorxOp>.RegisterRmImm(Code.VEX_Rorx_r32_rm32_imm8);
    }
}

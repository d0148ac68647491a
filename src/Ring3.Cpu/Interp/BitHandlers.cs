using System.Numerics;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Cpu;

/// <summary>Bit test, bit scan, double shifts and rotates through carry. SPEC: SDM volume 2, the instructions by name.</summary>
/// <remarks>SAFETY: operands go through <see cref="SlowOperands"/>.</remarks>
internal static unsafe class BitHandlers
{
    internal static void Register()
    {
        BitTests();
        Scans();
        foreach (Code code in (Code[])[Code.Shld_rm16_r16_imm8, Code.Shld_rm32_r32_imm8, Code.Shld_rm64_r64_imm8, Code.Shld_rm16_r16_CL, Code.Shld_rm32_r32_CL, Code.Shld_rm64_r64_CL])
            HandlerTable.Set(code, &SlowOperands.Modify<ShiftLeftDouble>);
        foreach (Code code in (Code[])[Code.Shrd_rm16_r16_imm8, Code.Shrd_rm32_r32_imm8, Code.Shrd_rm64_r64_imm8, Code.Shrd_rm16_r16_CL, Code.Shrd_rm32_r32_CL, Code.Shrd_rm64_r64_CL])
            HandlerTable.Set(code, &SlowOperands.Modify<ShiftRightDouble>);
        foreach (Code code in (Code[])[Code.Rcl_rm8_1, Code.Rcl_rm16_1, Code.Rcl_rm32_1, Code.Rcl_rm64_1, Code.Rcl_rm8_CL, Code.Rcl_rm16_CL, Code.Rcl_rm32_CL, Code.Rcl_rm64_CL,
            Code.Rcl_rm8_imm8, Code.Rcl_rm16_imm8, Code.Rcl_rm32_imm8, Code.Rcl_rm64_imm8])
            HandlerTable.Set(code, &SlowOperands.Modify<RotateLeftCarry>);
        foreach (Code code in (Code[])[Code.Rcr_rm8_1, Code.Rcr_rm16_1, Code.Rcr_rm32_1, Code.Rcr_rm64_1, Code.Rcr_rm8_CL, Code.Rcr_rm16_CL, Code.Rcr_rm32_CL, Code.Rcr_rm64_CL,
            Code.Rcr_rm8_imm8, Code.Rcr_rm16_imm8, Code.Rcr_rm32_imm8, Code.Rcr_rm64_imm8])
            HandlerTable.Set(code, &SlowOperands.Modify<RotateRightCarry>);
    }

    private static void BitTests()
    {
        foreach (Code code in (Code[])[Code.Bt_rm16_r16, Code.Bt_rm32_r32, Code.Bt_rm64_r64])
            HandlerTable.Set(code, &BitTestRegister);
        foreach (Code code in (Code[])[Code.Bt_rm16_imm8, Code.Bt_rm32_imm8, Code.Bt_rm64_imm8])
            HandlerTable.Set(code, &BitTestImmediate);
        foreach (Code code in (Code[])[Code.Bts_rm16_r16, Code.Bts_rm32_r32, Code.Bts_rm64_r64])
            HandlerTable.Set(code, &ModifyBit<SetBit>);
        foreach (Code code in (Code[])[Code.Btr_rm16_r16, Code.Btr_rm32_r32, Code.Btr_rm64_r64])
            HandlerTable.Set(code, &ModifyBit<ResetBit>);
        foreach (Code code in (Code[])[Code.Btc_rm16_r16, Code.Btc_rm32_r32, Code.Btc_rm64_r64])
            HandlerTable.Set(code, &ModifyBit<ComplementBit>);
        foreach (Code code in (Code[])[Code.Bts_rm16_imm8, Code.Bts_rm32_imm8, Code.Bts_rm64_imm8])
            HandlerTable.Set(code, &SlowOperands.Modify<SetBitImmediate>);
        foreach (Code code in (Code[])[Code.Btr_rm16_imm8, Code.Btr_rm32_imm8, Code.Btr_rm64_imm8])
            HandlerTable.Set(code, &SlowOperands.Modify<ResetBitImmediate>);
        foreach (Code code in (Code[])[Code.Btc_rm16_imm8, Code.Btc_rm32_imm8, Code.Btc_rm64_imm8])
            HandlerTable.Set(code, &SlowOperands.Modify<ComplementBitImmediate>);
    }

    private static void Scans()
    {
        foreach (Code code in (Code[])[Code.Bsf_r16_rm16, Code.Bsf_r32_rm32, Code.Bsf_r64_rm64])
            HandlerTable.Set(code, &ScanForward);
        foreach (Code code in (Code[])[Code.Bsr_r16_rm16, Code.Bsr_r32_rm32, Code.Bsr_r64_rm64])
            HandlerTable.Set(code, &ScanReverse);
        foreach (Code code in (Code[])[Code.Tzcnt_r16_rm16, Code.Tzcnt_r32_rm32, Code.Tzcnt_r64_rm64])
            HandlerTable.Set(code, &TrailingZeros);
        foreach (Code code in (Code[])[Code.Lzcnt_r16_rm16, Code.Lzcnt_r32_rm32, Code.Lzcnt_r64_rm64])
            HandlerTable.Set(code, &LeadingZeros);
        foreach (Code code in (Code[])[Code.Popcnt_r16_rm16, Code.Popcnt_r32_rm32, Code.Popcnt_r64_rm64])
            HandlerTable.Set(code, &PopulationCount);
    }

    /// <summary>
    /// Address of the operand-sized word that holds the bit. A bit offset in a register is signed and reaches beyond the operand; it moves the address in whole operands.
    /// </summary>
    private static bool BitAddress(LogicalProcessor p, CpuState* c, Op* op, AccessKind access, out ulong linear)
    {
        int size = op->Size;
        long offset = size switch { 2 => (short)SlowOperands.Get(c, op->Reg1, 2), 4 => (int)SlowOperands.Get(c, op->Reg1, 4), _ => (long)SlowOperands.Get(c, op->Reg1, 8) };
        Op moved = *op;
        moved.Disp += (offset >> BitOperations.Log2((uint)size * 8)) * size;
        return p.LinearAddress(c, &moved, size, access, out linear);
    }

    private static OpResult BitTestRegister(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        ulong value;
        if ((op->Flags & OpFlags.HasMemory) == 0)
            value = SlowOperands.Get(c, op->Reg0, size);
        else
        {
            if (!BitAddress(p, c, op, AccessKind.Read, out ulong linear))
                return OpResult.Fault;
            byte* ptr = p.ReadPtr(c, linear, size);
            if (ptr == null)
                return OpResult.Fault;
            value = SlowOperands.Load(ptr, size);
        }
        Flags.SetCF(c, (value >> BitIndex(c, op, size) & 1) != 0);
        return OpResult.Next;
    }

    private static OpResult BitTestImmediate(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg0, size, out ulong value))
            return OpResult.Fault;
        Flags.SetCF(c, (value >> ((int)op->Imm & (8 * size - 1)) & 1) != 0);
        return OpResult.Next;
    }

    private static OpResult ModifyBit<T>(LogicalProcessor p, CpuState* c, Op* op) where T : IReadModifyWrite
    {
        if ((op->Flags & OpFlags.HasMemory) == 0)
            return SlowOperands.Modify<T>(p, c, op);
        return BitAddress(p, c, op, AccessKind.Read | AccessKind.Write, out ulong linear) ? SlowOperands.ModifyAt<T>(p, c, op, linear, op->Size) : OpResult.Fault;
    }

    private static int BitIndex(CpuState* c, Op* op, int size) => (int)SlowOperands.Get(c, op->Reg1, size) & (8 * size - 1);
    private static int ImmediateIndex(Op* op, int size) => (int)op->Imm & (8 * size - 1);

    private static ulong Carry(ulong old, int bit, ref ulong status)
    {
        status = status & ~Rflags.CF | old >> bit & 1;
        return 1UL << bit;
    }

    private struct SetBit : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old | Carry(old, BitIndex(c, op, size), ref status);
    }

    private struct ResetBit : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old & ~Carry(old, BitIndex(c, op, size), ref status);
    }

    private struct ComplementBit : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old ^ Carry(old, BitIndex(c, op, size), ref status);
    }

    private struct SetBitImmediate : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old | Carry(old, ImmediateIndex(op, size), ref status);
    }

    private struct ResetBitImmediate : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old & ~Carry(old, ImmediateIndex(op, size), ref status);
    }

    private struct ComplementBitImmediate : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status) => old ^ Carry(old, ImmediateIndex(op, size), ref status);
    }

    private static OpResult ScanForward(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        // A zero source leaves the destination unchanged, as processors do.
        if (value != 0)
            SlowOperands.Set(c, op->Reg0, size, (ulong)BitOperations.TrailingZeroCount(value));
        Flags.SetZF(c, value == 0);
        return OpResult.Next;
    }

    private static OpResult ScanReverse(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        if (value != 0)
            SlowOperands.Set(c, op->Reg0, size, (ulong)BitOperations.Log2(value));
        Flags.SetZF(c, value == 0);
        return OpResult.Next;
    }

    private static OpResult TrailingZeros(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        return Count(c, op, size, value == 0 ? 8 * size : BitOperations.TrailingZeroCount(value));
    }

    private static OpResult LeadingZeros(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        return Count(c, op, size, BitOperations.LeadingZeroCount(value) - (64 - 8 * size));
    }

    private static OpResult Count(CpuState* c, Op* op, int size, int count)
    {
        SlowOperands.Set(c, op->Reg0, size, (ulong)count);
        Flags.SetCF(c, count == 8 * size);
        Flags.SetZF(c, count == 0);
        return OpResult.Next;
    }

    private static OpResult PopulationCount(LogicalProcessor p, CpuState* c, Op* op)
    {
        int size = op->Size;
        if (!SlowOperands.Read(p, c, op, op->Reg1, size, out ulong value))
            return OpResult.Fault;
        SlowOperands.Set(c, op->Reg0, size, (ulong)BitOperations.PopCount(value));
        Flags.SetStatus(c, value == 0 ? Rflags.ZF : 0);
        return OpResult.Next;
    }

    /// <summary>Shift count: CL when the instruction has no immediate.</summary>
    private static int ShiftCount(CpuState* c, Op* op, int size)
    {
        bool cl = (Code)op->Code is Code.Shld_rm16_r16_CL or Code.Shld_rm32_r32_CL or Code.Shld_rm64_r64_CL or Code.Shrd_rm16_r16_CL or Code.Shrd_rm32_r32_CL or Code.Shrd_rm64_r64_CL;
        return (cl ? (byte)c->Gpr[1] : (byte)op->Imm) & (size == 8 ? 63 : 31);
    }

    private struct ShiftLeftDouble : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status)
        {
            int count = ShiftCount(c, op, size), bits = 8 * size;
            if (count == 0)
                return old;
            ulong fill = SlowOperands.Get(c, op->Reg1, size);
            // 16-bit operands with a count above 16 are undefined; processors shift the operand, the fill and the operand again.
            UInt128 wide = size == 2 ? (UInt128)(old << 32 | fill << 16 | old) << 16 : (UInt128)old << bits | fill;
            int width = size == 2 ? 64 : 2 * bits;
            UInt128 shifted = wide << count;
            ulong result = (ulong)(shifted >> (width - bits)) & SlowOperands.Mask(size);
            bool carry = (shifted >> width & 1) != 0;
            status = SlowOperands.ResultStatus(result, size) | (carry ? Rflags.CF : 0) | ((old ^ result) >> (bits - 1) != 0 ? Rflags.OF : 0) | status & Rflags.AF;
            return result;
        }
    }

    private struct ShiftRightDouble : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status)
        {
            int count = ShiftCount(c, op, size), bits = 8 * size;
            if (count == 0)
                return old;
            ulong fill = SlowOperands.Get(c, op->Reg1, size);
            UInt128 wide = size == 2 ? (UInt128)(old << 32 | fill << 16 | old) : (UInt128)fill << bits | old;
            ulong result = (ulong)(wide >> count) & SlowOperands.Mask(size);
            bool carry = (wide >> (count - 1) & 1) != 0;
            status = SlowOperands.ResultStatus(result, size) | (carry ? Rflags.CF : 0) | ((old ^ result) >> (bits - 1) != 0 ? Rflags.OF : 0) | status & Rflags.AF;
            return result;
        }
    }

    /// <summary>Rotate count of RCL and RCR before the reduction by the operand's width plus one.</summary>
    private static int RotateCount(CpuState* c, Op* op, int size)
    {
        bool cl = (Code)op->Code is Code.Rcl_rm8_CL or Code.Rcl_rm16_CL or Code.Rcl_rm32_CL or Code.Rcl_rm64_CL or Code.Rcr_rm8_CL or Code.Rcr_rm16_CL or Code.Rcr_rm32_CL or Code.Rcr_rm64_CL;
        bool one = (Code)op->Code is Code.Rcl_rm8_1 or Code.Rcl_rm16_1 or Code.Rcl_rm32_1 or Code.Rcl_rm64_1 or Code.Rcr_rm8_1 or Code.Rcr_rm16_1 or Code.Rcr_rm32_1 or Code.Rcr_rm64_1;
        return (one ? 1 : cl ? (byte)c->Gpr[1] : (byte)op->Imm) & (size == 8 ? 63 : 31);
    }

    private struct RotateLeftCarry : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status)
        {
            int bits = 8 * size, masked = RotateCount(c, op, size), count = masked % (bits + 1);
            if (masked == 0)
                return old;
            UInt128 wide = (UInt128)(status & 1) << bits | old;
            wide = count == 0 ? wide : wide << count | wide >> (bits + 1 - count);
            ulong result = (ulong)wide & SlowOperands.Mask(size), carry = (ulong)(wide >> bits) & 1;
            ulong overflow = result >> (bits - 1) ^ carry;
            status = status & ~(Rflags.CF | Rflags.OF) | carry | overflow << 11;
            return result;
        }
    }

    private struct RotateRightCarry : IReadModifyWrite
    {
        public static ulong Apply(CpuState* c, Op* op, int size, ulong old, ref ulong status)
        {
            int bits = 8 * size, masked = RotateCount(c, op, size), count = masked % (bits + 1);
            if (masked == 0)
                return old;
            UInt128 wide = (UInt128)(status & 1) << bits | old;
            wide = count == 0 ? wide : wide >> count | wide << (bits + 1 - count);
            ulong result = (ulong)wide & SlowOperands.Mask(size), carry = (ulong)(wide >> bits) & 1;
            ulong overflow = (result >> (bits - 1) ^ result >> (bits - 2)) & 1;
            status = status & ~(Rflags.CF | Rflags.OF) | carry | overflow << 11;
            return result;
        }
    }
}

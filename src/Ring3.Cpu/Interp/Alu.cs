using Iced.Intel;

namespace Ring3.Cpu;

internal struct AddOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a + b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsAdd<W>(c, a, b, r);
}

internal struct AdcOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a + b + (c->FlagsCarry >> 63);
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsAdd<W>(c, a, b, r);
}

internal struct SubOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a - b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsSub<W>(c, a, b, r);
}

internal struct SbbOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a - b - (c->FlagsCarry >> 63);
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsSub<W>(c, a, b, r);
}

internal struct AndOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a & b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsLogic<W>(c, r);
}

internal struct OrOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a | b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsLogic<W>(c, r);
}

internal struct XorOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a ^ b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsLogic<W>(c, r);
}

internal struct IncOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a + 1;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth
    {
        bool cf = Flags.CF(c);
        Width.FlagsAdd<W>(c, a, 1, r);
        Flags.SetCF(c, cf);
    }
}

internal struct DecOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a - 1;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth
    {
        bool cf = Flags.CF(c);
        Width.FlagsSub<W>(c, a, 1, r);
        Flags.SetCF(c, cf);
    }
}

internal struct NegOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => 0 - a;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth => Width.FlagsSub<W>(c, 0, a, r);
}

internal struct NotOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => ~a;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth { }
}

/// <summary>XADD: the destination's old value goes to the source register. Reg0 is a register destination, Reg1 the source.</summary>
internal struct XaddOp : IModify
{
    public static unsafe ulong Compute<W>(CpuState* c, ulong a, ulong b) where W : IWidth => a + b;
    public static unsafe void Finish<W>(CpuState* c, Op* op, ulong a, ulong b, ulong r) where W : IWidth
    {
        W.Set((byte*)c + op->Reg1, a);
        Width.FlagsAdd<W>(c, a, b, r);
    }
}

/// <summary>Two-operand arithmetic and logic of one operation in all widths and shapes.</summary>
/// <remarks>SAFETY: two operands of one width, each through <see cref="Shape"/>, which decides whether one of them is memory.</remarks>
internal static unsafe class Alu<O> where O : struct, IModify
{
    private static OpResult RegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, Shape.Reg1<W>(c, op));
    private static OpResult RegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => OnRegister<W>(c, op, op->Imm & Width.Mask<W>());
    private static OpResult MemReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Modify<W, O>(p, c, op, Shape.Reg1<W>(c, op));
    private static OpResult MemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Shape.Modify<W, O>(p, c, op, op->Imm & Width.Mask<W>());

    private static OpResult RegMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => Shape.Load<W>(p, c, op, out ulong b) ? OnRegister<W>(c, op, b) : OpResult.Fault;

    private static OpResult OnRegister<W>(CpuState* c, Op* op, ulong b) where W : IWidth
    {
        ulong a = Shape.Reg0<W>(c, op), r = O.Compute<W>(c, a, b) & Width.Mask<W>();
        O.Finish<W>(c, op, a, b, r);
        Shape.SetReg0<W>(c, op, r);
        return OpResult.Next;
    }

    /// <summary>The six encodings of one operation; codes of the widths follow each other.</summary>
    public static void Register(Code rmReg8, Code regRm8, Code accImm8, Code rmImm8, Code rmImm8Alias, Code rmImm16, Code rmSImm16)
    {
        HandlerTable.Set(rmReg8, &MemReg<W8>, &RegReg<W8>);
        HandlerTable.Set(rmReg8 + 1, &MemReg<W16>, &RegReg<W16>);
        HandlerTable.Set(rmReg8 + 2, &MemReg<W32>, &RegReg<W32>);
        HandlerTable.Set(rmReg8 + 3, &MemReg<W64>, &RegReg<W64>);
        HandlerTable.Set(regRm8, &RegMem<W8>, &RegReg<W8>);
        HandlerTable.Set(regRm8 + 1, &RegMem<W16>, &RegReg<W16>);
        HandlerTable.Set(regRm8 + 2, &RegMem<W32>, &RegReg<W32>);
        HandlerTable.Set(regRm8 + 3, &RegMem<W64>, &RegReg<W64>);
        HandlerTable.Set(accImm8, null, &RegImm<W8>);
        HandlerTable.Set(accImm8 + 1, null, &RegImm<W16>);
        HandlerTable.Set(accImm8 + 2, null, &RegImm<W32>);
        HandlerTable.Set(accImm8 + 3, null, &RegImm<W64>);
        HandlerTable.Set(rmImm8, &MemImm<W8>, &RegImm<W8>);
        HandlerTable.Set(rmImm8Alias, &MemImm<W8>, &RegImm<W8>);
        Immediates(rmImm16);
        Immediates(rmSImm16);
    }

    private static void Immediates(Code first)
    {
        HandlerTable.Set(first, &MemImm<W16>, &RegImm<W16>);
        HandlerTable.Set(first + 1, &MemImm<W32>, &RegImm<W32>);
        HandlerTable.Set(first + 2, &MemImm<W64>, &RegImm<W64>);
    }

    /// <summary>One-operand or register-source instructions of four widths.</summary>
    public static void RegisterWidths(Code rm8, Code rm16)
    {
        HandlerTable.Set(rm8, &MemReg<W8>, &RegReg<W8>);
        HandlerTable.Set(rm16, &MemReg<W16>, &RegReg<W16>);
        HandlerTable.Set(rm16 + 1, &MemReg<W32>, &RegReg<W32>);
        HandlerTable.Set(rm16 + 2, &MemReg<W64>, &RegReg<W64>);
    }

    /// <summary>The one-byte INC and DEC of 16- and 32-bit code.</summary>
    public static void RegisterShort(Code r16)
    {
        HandlerTable.Set(r16, null, &RegReg<W16>);
        HandlerTable.Set(r16 + 1, null, &RegReg<W32>);
    }
}

/// <summary>CMP and TEST: flags only.</summary>
/// <remarks>SAFETY: as the operation that it compares by, but nothing except flags is written.</remarks>
internal static unsafe class Compare<O> where O : struct, IModify
{
    private static OpResult Do<W>(CpuState* c, Op* op, ulong a, ulong b) where W : IWidth
    {
        O.Finish<W>(c, op, a, b, O.Compute<W>(c, a, b) & Width.Mask<W>());
        return OpResult.Next;
    }

    private static OpResult RegReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth => Do<W>(c, op, Shape.Reg0<W>(c, op), Shape.Reg1<W>(c, op));
    private static OpResult RegImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth =>
        Do<W>(c, op, Shape.Reg0<W>(c, op), op->Imm & Width.Mask<W>());
    private static OpResult MemReg<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => Shape.Load<W>(p, c, op, out ulong a) ? Do<W>(c, op, a, Shape.Reg1<W>(c, op)) : OpResult.Fault;
    private static OpResult MemImm<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => Shape.Load<W>(p, c, op, out ulong a) ? Do<W>(c, op, a, op->Imm & Width.Mask<W>()) : OpResult.Fault;
    private static OpResult RegMem<W>(LogicalProcessor p, CpuState* c, Op* op) where W : IWidth
        => Shape.Load<W>(p, c, op, out ulong b) ? Do<W>(c, op, Shape.Reg0<W>(c, op), b) : OpResult.Fault;

    public static void RmReg(Code rm8)
    {
        HandlerTable.Set(rm8, &MemReg<W8>, &RegReg<W8>);
        HandlerTable.Set(rm8 + 1, &MemReg<W16>, &RegReg<W16>);
        HandlerTable.Set(rm8 + 2, &MemReg<W32>, &RegReg<W32>);
        HandlerTable.Set(rm8 + 3, &MemReg<W64>, &RegReg<W64>);
    }

    public static void RegRm(Code r8)
    {
        HandlerTable.Set(r8, &RegMem<W8>, &RegReg<W8>);
        HandlerTable.Set(r8 + 1, &RegMem<W16>, &RegReg<W16>);
        HandlerTable.Set(r8 + 2, &RegMem<W32>, &RegReg<W32>);
        HandlerTable.Set(r8 + 3, &RegMem<W64>, &RegReg<W64>);
    }

    public static void AccImm(Code al)
    {
        HandlerTable.Set(al, null, &RegImm<W8>);
        HandlerTable.Set(al + 1, null, &RegImm<W16>);
        HandlerTable.Set(al + 2, null, &RegImm<W32>);
        HandlerTable.Set(al + 3, null, &RegImm<W64>);
    }

    public static void RmImm8(Code rm8) => HandlerTable.Set(rm8, &MemImm<W8>, &RegImm<W8>);

    public static void RmImm(Code rm16)
    {
        HandlerTable.Set(rm16, &MemImm<W16>, &RegImm<W16>);
        HandlerTable.Set(rm16 + 1, &MemImm<W32>, &RegImm<W32>);
        HandlerTable.Set(rm16 + 2, &MemImm<W64>, &RegImm<W64>);
    }
}

/// <summary>Registration of the arithmetic and logic family.</summary>
internal static class AluHandlers
{
    public static void Register()
    {
        Alu<AddOp>.Register(Code.Add_rm8_r8, Code.Add_r8_rm8, Code.Add_AL_imm8, Code.Add_rm8_imm8, Code.Add_rm8_imm8_82, Code.Add_rm16_imm16,
            Code.Add_rm16_imm8);
        Alu<OrOp>.Register(Code.Or_rm8_r8, Code.Or_r8_rm8, Code.Or_AL_imm8, Code.Or_rm8_imm8, Code.Or_rm8_imm8_82, Code.Or_rm16_imm16, Code.Or_rm16_imm8);
        Alu<AdcOp>.Register(Code.Adc_rm8_r8, Code.Adc_r8_rm8, Code.Adc_AL_imm8, Code.Adc_rm8_imm8, Code.Adc_rm8_imm8_82, Code.Adc_rm16_imm16,
            Code.Adc_rm16_imm8);
        Alu<SbbOp>.Register(Code.Sbb_rm8_r8, Code.Sbb_r8_rm8, Code.Sbb_AL_imm8, Code.Sbb_rm8_imm8, Code.Sbb_rm8_imm8_82, Code.Sbb_rm16_imm16,
            Code.Sbb_rm16_imm8);
        Alu<AndOp>.Register(Code.And_rm8_r8, Code.And_r8_rm8, Code.And_AL_imm8, Code.And_rm8_imm8, Code.And_rm8_imm8_82, Code.And_rm16_imm16,
            Code.And_rm16_imm8);
        Alu<SubOp>.Register(Code.Sub_rm8_r8, Code.Sub_r8_rm8, Code.Sub_AL_imm8, Code.Sub_rm8_imm8, Code.Sub_rm8_imm8_82, Code.Sub_rm16_imm16,
            Code.Sub_rm16_imm8);
        Alu<XorOp>.Register(Code.Xor_rm8_r8, Code.Xor_r8_rm8, Code.Xor_AL_imm8, Code.Xor_rm8_imm8, Code.Xor_rm8_imm8_82, Code.Xor_rm16_imm16,
            Code.Xor_rm16_imm8);

        Compare<SubOp>.RmReg(Code.Cmp_rm8_r8);
        Compare<SubOp>.RegRm(Code.Cmp_r8_rm8);
        Compare<SubOp>.AccImm(Code.Cmp_AL_imm8);
        Compare<SubOp>.RmImm8(Code.Cmp_rm8_imm8);
        Compare<SubOp>.RmImm8(Code.Cmp_rm8_imm8_82);
        Compare<SubOp>.RmImm(Code.Cmp_rm16_imm16);
        Compare<SubOp>.RmImm(Code.Cmp_rm16_imm8);
        Compare<AndOp>.RmReg(Code.Test_rm8_r8);
        Compare<AndOp>.AccImm(Code.Test_AL_imm8);
        Compare<AndOp>.RmImm8(Code.Test_rm8_imm8);
        Compare<AndOp>.RmImm8(Code.Test_rm8_imm8_F6r1);
        Compare<AndOp>.RmImm(Code.Test_rm16_imm16);
        Compare<AndOp>.RmImm(Code.Test_rm16_imm16_F7r1);

        Alu<IncOp>.RegisterWidths(Code.Inc_rm8, Code.Inc_rm16);
        Alu<IncOp>.RegisterShort(Code.Inc_r16);
        Alu<DecOp>.RegisterWidths(Code.Dec_rm8, Code.Dec_rm16);
        Alu<DecOp>.RegisterShort(Code.Dec_r16);
        Alu<NegOp>.RegisterWidths(Code.Neg_rm8, Code.Neg_rm16);
        Alu<NotOp>.RegisterWidths(Code.Not_rm8, Code.Not_rm16);
        Alu<XaddOp>.RegisterWidths(Code.Xadd_rm8_r8, Code.Xadd_rm16_r16);
    }
}

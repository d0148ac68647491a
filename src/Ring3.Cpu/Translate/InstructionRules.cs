using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Which instructions are re-encoded, and which need their handler.</summary>
/// <remarks>SAFETY: none; works on decoded instructions.</remarks>
internal static partial class InstructionRules
{
    private const RflagsBits Status = RflagsBits.OF | RflagsBits.SF | RflagsBits.ZF | RflagsBits.AF | RflagsBits.CF | RflagsBits.PF;

    /// <summary>By mnemonic: the instruction stays itself, with other registers.</summary>
    private static readonly bool[] s_plain = Marked(
    [
        Mnemonic.Mov, Mnemonic.Movzx, Mnemonic.Movsx, Mnemonic.Movsxd, Mnemonic.Lea, Mnemonic.Add, Mnemonic.Adc, Mnemonic.Sub, Mnemonic.Sbb, Mnemonic.And,
        Mnemonic.Or, Mnemonic.Xor, Mnemonic.Cmp, Mnemonic.Test, Mnemonic.Inc, Mnemonic.Dec, Mnemonic.Neg, Mnemonic.Not, Mnemonic.Shl, Mnemonic.Shr,
        Mnemonic.Sar, Mnemonic.Rol, Mnemonic.Ror, Mnemonic.Rcl, Mnemonic.Rcr, Mnemonic.Imul, Mnemonic.Mul, Mnemonic.Cdq, Mnemonic.Cqo, Mnemonic.Cwde,
        Mnemonic.Cdqe, Mnemonic.Cbw, Mnemonic.Cwd, Mnemonic.Bswap, Mnemonic.Bt, Mnemonic.Bts, Mnemonic.Btr, Mnemonic.Btc, Mnemonic.Bsf, Mnemonic.Bsr,
        Mnemonic.Tzcnt, Mnemonic.Lzcnt, Mnemonic.Popcnt, Mnemonic.Andn, Mnemonic.Bextr, Mnemonic.Blsi, Mnemonic.Blsr, Mnemonic.Blsmsk, Mnemonic.Bzhi,
        Mnemonic.Pdep, Mnemonic.Pext, Mnemonic.Mulx, Mnemonic.Shlx, Mnemonic.Shrx, Mnemonic.Sarx, Mnemonic.Rorx, Mnemonic.Xadd, Mnemonic.Xchg,
        Mnemonic.Cmpxchg, Mnemonic.Movbe, Mnemonic.Clc, Mnemonic.Stc, Mnemonic.Cmc, Mnemonic.Shld, Mnemonic.Shrd,
        Mnemonic.Lahf, Mnemonic.Sahf, Mnemonic.Cmpxchg8b, Mnemonic.Cmpxchg16b,
        Mnemonic.Cmova, Mnemonic.Cmovae, Mnemonic.Cmovb, Mnemonic.Cmovbe, Mnemonic.Cmove, Mnemonic.Cmovg, Mnemonic.Cmovge, Mnemonic.Cmovl, Mnemonic.Cmovle,
        Mnemonic.Cmovne, Mnemonic.Cmovno, Mnemonic.Cmovnp, Mnemonic.Cmovns, Mnemonic.Cmovo, Mnemonic.Cmovp, Mnemonic.Cmovs,
        Mnemonic.Seta, Mnemonic.Setae, Mnemonic.Setb, Mnemonic.Setbe, Mnemonic.Sete, Mnemonic.Setg, Mnemonic.Setge, Mnemonic.Setl, Mnemonic.Setle,
        Mnemonic.Setne, Mnemonic.Setno, Mnemonic.Setnp, Mnemonic.Setns, Mnemonic.Seto, Mnemonic.Setp, Mnemonic.Sets,
    ]);

    private static bool[] Marked(ReadOnlySpan<Mnemonic> mnemonics)
    {
        bool[] marks = new bool[VectorHandlers.CodeCount];
        foreach (Mnemonic m in mnemonics)
            marks[(int)m] = true;
        return marks;
    }

    /// <summary>Whether a block that contains the instruction is left to the interpreter, which is faster than calls.</summary>
    public static bool IsRefused(in Instruction i, bool is64)
    {
        if (i.Encoding is EncodingKind.EVEX or EncodingKind.XOP or EncodingKind.D3NOW)
            return true;
        if (!is64 && VectorRules.CanEmit(i) && HasMemory(i) && !IsFlatAddress(i, false))
            return true;
        return VectorHandlers.HasForm(i.Code) && !VectorRules.CanEmit(i);
    }

    /// <summary>
    /// Whether the address is computed with the mode's registers or half of them, and not in the code segment, which need not be readable. Where segments
    /// count, the others are flat, or looked at when the code runs (FS and GS).
    /// </summary>
    private static bool IsFlatAddress(in Instruction i, bool is64)
    {
        if (is64)
            return true;
        bool bare = i.MemoryBase == Register.None && i.MemoryIndex == Register.None;
        return i.MemorySegment != Register.CS && (bare ? i.MemoryDisplSize == 4 : i.MemoryBase.GetSize() == 4 || i.MemoryIndex.GetSize() == 4);
    }

    public static Lowering Classify(in Instruction i, bool endsBlock, bool is64)
    {
        bool memory = HasMemory(i);
        // A prefix on near branches is for a target of 16 bits; in 64-bit mode AMD's processors take it.
        bool narrow = i.OpCount == 0 || i.Op0Kind != (is64 ? Iced.Intel.OpKind.NearBranch64 : Iced.Intel.OpKind.NearBranch32);
        bool flat = !memory && i.Mnemonic != Mnemonic.Lea || IsFlatAddress(i, is64);
        if (is64 && i.Code is Code.Syscall or Code.Sysretq or Code.Iretq)
            return Lowering.Transition;
        switch (i.FlowControl)
        {
            case FlowControl.ConditionalBranch:
                return i.IsJccShortOrNear && !narrow ? Lowering.Branch : Lowering.HandlerEnds;
            case FlowControl.UnconditionalBranch:
                return i.IsJmpShortOrNear && !narrow ? Lowering.Jump : Lowering.HandlerEnds;
            case FlowControl.IndirectBranch:
                return i.Code == (is64 ? Code.Jmp_rm64 : Code.Jmp_rm32) && flat ? Lowering.JumpIndirect : Lowering.HandlerEnds;
            case FlowControl.Call:
                return i.Code is Code.Call_rel32_64 or Code.Call_rel32_32 ? Lowering.Call : Lowering.HandlerEnds;
            case FlowControl.IndirectCall:
                return i.Code == (is64 ? Code.Call_rm64 : Code.Call_rm32) && flat ? Lowering.CallIndirect : Lowering.HandlerEnds;
            case FlowControl.Return:
                return i.Code is Code.Retnq or Code.Retnq_imm16 or Code.Retnd or Code.Retnd_imm16 ? Lowering.Return : Lowering.HandlerEnds;
            case FlowControl.Next:
                break;
            default:
                return Lowering.HandlerEnds;
        }
        if (IsSystem(i) && flat)
            return Lowering.System;
        if (IsString(i, is64))
            return Lowering.String;
        if (IsComparison(i, is64))
            return Lowering.Compare;
        if (endsBlock)
            return Lowering.HandlerEnds;
        // Outside 64-bit mode these leave registers 8 to 15 as they are.
        if (VectorRules.CanEmit(i) && (is64 || i.Code is not (Code.VEX_Vzeroupper or Code.VEX_Vzeroall)))
            return Lowering.Vector;
        switch (i.Mnemonic)
        {
            case Mnemonic.Push:
                if (memory)
                    return i.Code == (is64 ? Code.Push_rm64 : Code.Push_rm32) && flat ? Lowering.PushMemory : Lowering.Handler;
                return (is64 ? i.Code is Code.Push_r64 or Code.Pushq_imm8 or Code.Pushq_imm32
                    : i.Code is Code.Push_r32 or Code.Pushd_imm8 or Code.Pushd_imm32) ? Lowering.Push : Lowering.Handler;
            case Mnemonic.Pop:
                return i.Code is Code.Pop_r64 or Code.Pop_r32 ? Lowering.Pop : Lowering.Handler;
            case Mnemonic.Leave:
                return i.Code is Code.Leaveq or Code.Leaved ? Lowering.Leave : Lowering.Handler;
            default:
                return ClassifyComputation(i, memory, flat);
        }
    }

    /// <summary>What is no transfer and has nothing to do with the stack. <paramref name="flat"/>: the address of an operand can be emitted.</summary>
    private static Lowering ClassifyComputation(in Instruction i, bool memory, bool flat)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Nop or Mnemonic.Endbr64 or Mnemonic.Endbr32 or Mnemonic.Lfence or Mnemonic.Sfence or Mnemonic.Prefetch or Mnemonic.Prefetchw
                or Mnemonic.Prefetchnta or Mnemonic.Prefetcht0 or Mnemonic.Prefetcht1 or Mnemonic.Prefetcht2 or Mnemonic.Prefetchwt1:
                return i.HasLockPrefix ? Lowering.Handler : Lowering.Nothing;
            case Mnemonic.Div or Mnemonic.Idiv:
                return !flat || i.Code is Code.Div_rm8 or Code.Idiv_rm8 || i.HasLockPrefix || i.HasRepPrefix || i.HasRepnePrefix
                    ? Lowering.Handler : Lowering.Divide;
        }
        if (!s_plain[(int)i.Mnemonic] || !flat || !IsDefined(i) || !IsEncodable(i, memory))
            return Lowering.Handler;
        return memory && IsBitString(i) ? Lowering.BitString : Lowering.Plain;
    }

    private static bool IsEncodable(in Instruction i, bool memory)
    {
        if (i.HasXacquirePrefix || i.HasXreleasePrefix || i.HasRepPrefix || i.HasRepnePrefix)
            return false;
        bool high = false;
        for (int n = 0; n < i.OpCount; n++)
        {
            Iced.Intel.OpKind kind = i.GetOpKind(n);
            if (kind == Iced.Intel.OpKind.Register)
            {
                Register r = i.GetOpRegister(n);
                if (!r.IsGPR())
                    return false;
                high |= r is >= Register.AH and <= Register.BH;
            }
            else if (kind is >= Iced.Intel.OpKind.MemorySegSI and <= Iced.Intel.OpKind.MemoryESRDI)
            {
                return false;
            }
        }
        if (high)
        {
            // Without a REX prefix only.
            if (memory)
                return false;
            for (int n = 0; n < i.OpCount; n++)
                if (i.GetOpKind(n) == Iced.Intel.OpKind.Register && (i.GetOpRegister(n).GetFullRegister() > Register.RBX || i.GetOpRegister(n).GetSize() == 8))
                    return false;
        }
        if (!memory)
            return true;
        if (i.Code is Code.Mov_AL_moffs8 or Code.Mov_AX_moffs16 or Code.Mov_EAX_moffs32 or Code.Mov_RAX_moffs64
            or Code.Mov_moffs8_AL or Code.Mov_moffs16_AX or Code.Mov_moffs32_EAX or Code.Mov_moffs64_RAX)
            return false;
        return true;
    }

    /// <summary>BT and its kin: a bit offset in a register reaches beyond the operand.</summary>
    private static bool IsBitString(in Instruction i) =>
        i.Mnemonic is Mnemonic.Bt or Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == Iced.Intel.OpKind.Register;

    /// <summary>REP MOVS and REP STOS with addresses of the mode's size in segments without a base.</summary>
    private static bool IsString(in Instruction i, bool is64)
    {
        if (!i.HasRepPrefix || i.HasRepnePrefix || i.Op0Kind != (is64 ? Iced.Intel.OpKind.MemoryESRDI : Iced.Intel.OpKind.MemoryESEDI))
            return false;
        return i.Mnemonic is Mnemonic.Stosb or Mnemonic.Stosw or Mnemonic.Stosd or Mnemonic.Stosq
            || i.Code is Code.Movsb_m8_m8 or Code.Movsw_m16_m16 or Code.Movsd_m32_m32 or Code.Movsq_m64_m64
                && i.Op1Kind == (is64 ? Iced.Intel.OpKind.MemorySegRSI : Iced.Intel.OpKind.MemorySegESI)
                && i.MemorySegment is not (Register.FS or Register.GS) && (is64 || i.MemorySegment != Register.CS);
    }

    /// <summary>REP CMPS and REP SCAS with addresses of the mode's size in segments without a base.</summary>
    private static bool IsComparison(in Instruction i, bool is64)
    {
        if (i.HasRepPrefix == i.HasRepnePrefix || i.Op1Kind != (is64 ? Iced.Intel.OpKind.MemoryESRDI : Iced.Intel.OpKind.MemoryESEDI))
            return false;
        return i.Mnemonic is Mnemonic.Scasb or Mnemonic.Scasw or Mnemonic.Scasd or Mnemonic.Scasq
            || i.Code is Code.Cmpsb_m8_m8 or Code.Cmpsw_m16_m16 or Code.Cmpsd_m32_m32 or Code.Cmpsq_m64_m64
                && i.Op0Kind == (is64 ? Iced.Intel.OpKind.MemorySegRSI : Iced.Intel.OpKind.MemorySegESI)
                && i.MemorySegment is not (Register.FS or Register.GS) && (is64 || i.MemorySegment != Register.CS);
    }

    private static bool IsSystem(in Instruction i) => i.Code is Code.Pushfq or Code.Popfq or Code.Pushfd or Code.Popfd or Code.Cli or Code.Sti or Code.Cld
        or Code.Std or Code.Swapgs or Code.Rdtsc or Code.Rdtscp or Code.Mfence or Code.Stac or Code.Clac
        or Code.Rdfsbase_r32 or Code.Rdfsbase_r64 or Code.Rdgsbase_r32 or Code.Rdgsbase_r64 or Code.Rdpkru
        or Code.Wrfsbase_r32 or Code.Wrfsbase_r64 or Code.Wrgsbase_r32 or Code.Wrgsbase_r64
        || i.Code == Code.Mov_r64_cr && !i.HasLockPrefix || i.Code == Code.Mov_rm16_Sreg
        || i.Code is Code.Mov_r32m16_Sreg or Code.Mov_r64m16_Sreg && !HasMemory(i);

    public static bool HasMemory(in Instruction i)
    {
        // Operands that are not there are registers.
        const Iced.Intel.OpKind memory = Iced.Intel.OpKind.Memory;
        return (i.Op0Kind == memory || i.Op1Kind == memory || i.Op2Kind == memory || i.Op3Kind == memory) && i.Mnemonic is not (Mnemonic.Lea or Mnemonic.Nop);
    }

    /// <summary>
    /// Whether an instruction reads status flags, writes some, and leaves some of them as they are. Follows from the code, but for shifts and rotations.
    /// </summary>
    public static (bool Reads, bool Writes, bool Keeps) StatusOf(in Instruction i)
    {
        RflagsBits modified = i.RflagsModified & Status;
        return ((i.RflagsRead & Status) != 0, modified != 0, modified != 0 && modified != Status);
    }

    /// <summary>By their count shifts and rotations keep all flags, or one at a time.</summary>
    public static bool IsShift(Mnemonic mnemonic) => mnemonic is Mnemonic.Shl or Mnemonic.Shr or Mnemonic.Sar or Mnemonic.Sal or Mnemonic.Shld
        or Mnemonic.Shrd or Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl or Mnemonic.Rcr;

    public static (bool Reads, bool Writes, bool Keeps) StatusOfShift(in Instruction i)
    {
        (bool reads, bool writes, bool keeps) = StatusOf(i);
        int last = i.OpCount - 1;
        if (!writes || keeps || i.GetOpKind(last) == Iced.Intel.OpKind.Register)
            return (reads, writes, writes);
        int mask = i.MemorySize.GetSize() == 8 || i.Op0Kind == Iced.Intel.OpKind.Register && i.Op0Register.GetSize() == 8 ? 63 : 31;
        return (reads, writes, (i.GetImmediate(last) & (ulong)mask) == 0);
    }

    /// <summary>Whether the flags of an instruction are what the host's processor gives for any processor model: SHLD and SHRD of 16 bits are not.</summary>
    public static bool IsDefined(in Instruction i) =>
        i.Code is not (Code.Shld_rm16_r16_imm8 or Code.Shld_rm16_r16_CL or Code.Shrd_rm16_r16_imm8 or Code.Shrd_rm16_r16_CL);
}

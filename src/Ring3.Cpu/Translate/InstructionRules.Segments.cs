using Iced.Intel;

namespace Ring3.Cpu;

// Code whose segments count.
internal static partial class InstructionRules
{
    /// <summary>By code: branches, calls, returns and instructions of the stack with operands of 16 bits.</summary>
    private static readonly bool[] s_wordForms = WordForms();

    private static bool[] WordForms()
    {
        bool[] marks = new bool[VectorHandlers.CodeCount];
        foreach (Code code in Enum.GetValues<Code>())
            if (code.ToOpCode() is { IsInstruction: true, OperandSize: 16 })
                marks[(int)code] = true;
        return marks;
    }

    /// <summary>Whether a branch has a target of 16 bits, or an instruction of the stack an operand.</summary>
    public static bool IsWordForm(Code code) => s_wordForms[(int)code];

    /// <summary>
    /// As <see cref="Classify"/>, for 16-bit code (<paramref name="isWord"/>) and 32-bit code in segments that are not flat. Addresses may be of either size
    /// and in any segment; direct branches that cut their targets are for pages in the first 64 KiB, where 16-bit code is.
    /// </summary>
    public static Lowering ClassifySegmented(in Instruction i, bool endsBlock, bool isWord)
    {
        bool memory = HasMemory(i), direct = isWord || !IsWordForm(i.Code);
        switch (i.FlowControl)
        {
            case FlowControl.ConditionalBranch:
                return i.IsJccShortOrNear && direct ? Lowering.Branch : Lowering.HandlerEnds;
            case FlowControl.UnconditionalBranch:
                return i.IsJmpShortOrNear && direct ? Lowering.Jump : Lowering.HandlerEnds;
            case FlowControl.IndirectBranch:
                return i.Code is Code.Jmp_rm16 or Code.Jmp_rm32 ? Lowering.JumpIndirect : Lowering.HandlerEnds;
            case FlowControl.Call:
                return i.Code is Code.Call_rel16 or Code.Call_rel32_32 && direct ? Lowering.Call : Lowering.HandlerEnds;
            case FlowControl.IndirectCall:
                return i.Code is Code.Call_rm16 or Code.Call_rm32 ? Lowering.CallIndirect : Lowering.HandlerEnds;
            case FlowControl.Return:
                return i.Code is Code.Retnw or Code.Retnw_imm16 or Code.Retnd or Code.Retnd_imm16 ? Lowering.Return : Lowering.HandlerEnds;
            case FlowControl.Next:
                break;
            default:
                return Lowering.HandlerEnds;
        }
        if (i.Code is Code.Cli or Code.Sti or Code.Cld or Code.Std or Code.Rdtsc or Code.Rdtscp or Code.Mfence or Code.Stac or Code.Clac
            || i.Code is Code.Mov_rm16_Sreg or Code.Mov_r32m16_Sreg && !memory)
            return Lowering.System;
        if (endsBlock)
            return Lowering.HandlerEnds;
        if (VectorRules.CanEmit(i) && i.Code is not (Code.VEX_Vzeroupper or Code.VEX_Vzeroall))
            return Lowering.Vector;
        switch (i.Mnemonic)
        {
            case Mnemonic.Push:
                if (memory)
                    return i.Code is Code.Push_rm16 or Code.Push_rm32 ? Lowering.PushMemory : Lowering.Handler;
                return i.Code is Code.Push_r16 or Code.Push_r32 or Code.Push_imm16 or Code.Pushw_imm8 or Code.Pushd_imm8 or Code.Pushd_imm32
                    or Code.Pushw_CS or Code.Pushw_SS or Code.Pushw_DS or Code.Pushw_ES or Code.Pushw_FS or Code.Pushw_GS ? Lowering.Push : Lowering.Handler;
            case Mnemonic.Pop:
                return i.Code is Code.Pop_r16 or Code.Pop_r32 ? Lowering.Pop : Lowering.Handler;
            case Mnemonic.Leave:
                return i.Code is Code.Leavew or Code.Leaved ? Lowering.Leave : Lowering.Handler;
            default:
                return ClassifyComputation(i, memory, true);
        }
    }
}

using Iced.Intel;

namespace Ring3.Cpu;

// Guest registers that have no host register, as operands in the state: the instruction takes them from there, and leaves them there.
// SAFETY: writes only to the assembler; the operand is the register's place in the state.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>
    /// Makes the only register that passes through a scratch register an operand in memory, where that is one instruction instead of two or three, and does
    /// the same. The registers that flags are made from again must be registers then.
    /// </summary>
    private void UseStateOperand(in GuestInstruction g, ref Instruction code)
    {
        if (_passing.Count != 1 || code.OpCount != 2 || g.Plan == FlagPlan.Recipe && (g.Recipe.A == InState || g.Recipe.B == InState))
            return;
        Passing p = _passing[0];
        bool first = Names(code, 0, p.Scratch), second = Names(code, 1, p.Scratch);
        if (first == second)
            return;
        Code made = second ? p.Store ? Code.INVALID : Loads(code) : p.Store ? Stores(code, p.Load) : Compares(code);
        if (made == Code.INVALID)
            return;
        code.Code = made;
        int operand = second ? 1 : 0;
        code.SetOpKind(operand, Iced.Intel.OpKind.Memory);
        code.MemoryBase = HostRegisters.Base;
        code.MemoryIndex = Register.None;
        code.MemoryIndexScale = 1;
        code.MemoryDisplacement64 = (ulong)StateLayout.Gpr(p.Guest);
        code.MemoryDisplSize = 8;
        code.SegmentPrefix = Register.None;
        _passing.Clear();
    }

    private static bool Names(in Instruction i, int operand, Register full) =>
        i.GetOpKind(operand) == Iced.Intel.OpKind.Register && i.GetOpRegister(operand).GetFullRegister() == full;

    /// <summary>The code that reads its second operand, a register now, from memory.</summary>
    private static Code Loads(in Instruction i) => i.Code switch
    {
        Code.Add_rm32_r32 => Code.Add_r32_rm32,
        Code.Add_rm64_r64 => Code.Add_r64_rm64,
        Code.Or_rm32_r32 => Code.Or_r32_rm32,
        Code.Or_rm64_r64 => Code.Or_r64_rm64,
        Code.Adc_rm32_r32 => Code.Adc_r32_rm32,
        Code.Adc_rm64_r64 => Code.Adc_r64_rm64,
        Code.Sbb_rm32_r32 => Code.Sbb_r32_rm32,
        Code.Sbb_rm64_r64 => Code.Sbb_r64_rm64,
        Code.And_rm32_r32 => Code.And_r32_rm32,
        Code.And_rm64_r64 => Code.And_r64_rm64,
        Code.Sub_rm32_r32 => Code.Sub_r32_rm32,
        Code.Sub_rm64_r64 => Code.Sub_r64_rm64,
        Code.Xor_rm32_r32 => Code.Xor_r32_rm32,
        Code.Xor_rm64_r64 => Code.Xor_r64_rm64,
        Code.Cmp_rm32_r32 => Code.Cmp_r32_rm32,
        Code.Cmp_rm64_r64 => Code.Cmp_r64_rm64,
        Code.Mov_rm32_r32 => Code.Mov_r32_rm32,
        Code.Mov_rm64_r64 => Code.Mov_r64_rm64,
        Code.Add_r32_rm32 or Code.Add_r64_rm64 or Code.Or_r32_rm32 or Code.Or_r64_rm64 or Code.Adc_r32_rm32 or Code.Adc_r64_rm64 or Code.Sbb_r32_rm32
            or Code.Sbb_r64_rm64 or Code.And_r32_rm32 or Code.And_r64_rm64 or Code.Sub_r32_rm32 or Code.Sub_r64_rm64 or Code.Xor_r32_rm32
            or Code.Xor_r64_rm64 or Code.Cmp_r32_rm32 or Code.Cmp_r64_rm64 or Code.Mov_r32_rm32 or Code.Mov_r64_rm64 or Code.Imul_r32_rm32
            or Code.Imul_r64_rm64 or Code.Movsxd_r64_rm32 or Code.Movzx_r32_rm16 or Code.Movzx_r32_rm8 or Code.Movsx_r32_rm8 or Code.Movsx_r64_rm8
            or Code.Movsx_r32_rm16 or Code.Movsx_r64_rm16 => i.Code,
        _ => Code.INVALID,
    };

    /// <summary>The code that compares its first operand, a register now, in memory.</summary>
    private static Code Compares(in Instruction i) => i.Code switch
    {
        Code.Cmp_r32_rm32 => Code.Cmp_rm32_r32,
        Code.Cmp_r64_rm64 => Code.Cmp_rm64_r64,
        Code.Cmp_rm32_r32 or Code.Cmp_rm64_r64 or Code.Cmp_rm32_imm8 or Code.Cmp_rm64_imm8 or Code.Cmp_rm32_imm32 or Code.Cmp_rm64_imm32
            or Code.Test_rm32_r32 or Code.Test_rm64_r64 or Code.Test_rm32_imm32 or Code.Test_rm64_imm32 or Code.Test_rm8_imm8 => i.Code,
        _ => Code.INVALID,
    };

    /// <summary>The code that leaves its result in memory: all 64 bits of it, since 32 would not clear the others.</summary>
    /// <param name="modifies">The operand is read as well.</param>
    private static Code Stores(in Instruction i, bool modifies) => (i.Code, modifies) switch
    {
        (Code.Mov_r64_rm64 or Code.Mov_rm64_r64, false) => Code.Mov_rm64_r64,
        (Code.Add_r64_rm64 or Code.Add_rm64_r64, true) => Code.Add_rm64_r64,
        (Code.Sub_r64_rm64 or Code.Sub_rm64_r64, true) => Code.Sub_rm64_r64,
        (Code.And_r64_rm64 or Code.And_rm64_r64, true) => Code.And_rm64_r64,
        (Code.Or_r64_rm64 or Code.Or_rm64_r64, true) => Code.Or_rm64_r64,
        (Code.Xor_r64_rm64 or Code.Xor_rm64_r64, true) => Code.Xor_rm64_r64,
        (Code.Mov_rm64_imm32, false) => i.Code,
        (Code.Add_rm64_imm8 or Code.Add_rm64_imm32 or Code.Sub_rm64_imm8 or Code.Sub_rm64_imm32 or Code.And_rm64_imm8 or Code.And_rm64_imm32
            or Code.Or_rm64_imm8 or Code.Or_rm64_imm32 or Code.Xor_rm64_imm8 or Code.Xor_rm64_imm32, true) => i.Code,
        _ => Code.INVALID,
    };
}

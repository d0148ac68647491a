using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Chooses the loop's inline form of an instruction, where there is one. The op's handler stays as the slow path of the inline form.</summary>
/// <remarks>SAFETY: writes one op.</remarks>
internal static unsafe class OpSpecializer
{
    /// <summary>
    /// Inline forms of a code: with register operands, with a memory operand whose address is base and displacement, and with any 64-bit address.
    /// </summary>
    private struct Forms { public OpKind Register, Base, Index; }

    private static readonly uint s_fsBase = OffsetOf(SegmentIndex.FS), s_gsBase = OffsetOf(SegmentIndex.GS);
    private static readonly Forms[] s_forms = new Forms[HandlerTable.Count];

    static OpSpecializer()
    {
        Moves();
        Arithmetic();
        Shifts();
        Flow();
        foreach (Code code in (Code[])[Code.Nopw, Code.Nopd, Code.Nopq, Code.Endbr32, Code.Endbr64, Code.Nop_rm16, Code.Nop_rm32, Code.Nop_rm64])
            s_forms[(int)code] = new Forms { Register = OpKind.Nop, Base = OpKind.Nop, Index = OpKind.Nop };
    }

    private static uint OffsetOf(int segment)
    {
        CpuState state;
        return (uint)((byte*)&CpuState.SegmentAt(&state, segment)->Base - (byte*)&state);
    }

    private static OpKind Kind(string name) => Enum.TryParse(name, out OpKind kind) ? kind : OpKind.Generic;

    private static void Set(Code code, OpKind register, OpKind memoryBase, OpKind memoryIndex) =>
        s_forms[(int)code] = new Forms { Register = register, Base = memoryBase, Index = memoryIndex };
    private static void Set(Code code, string register, string memory) =>
        Set(code, Kind(register), Kind(memory + "B") is var b and not OpKind.Generic ? b : Kind(memory),
            Kind(memory + "X") is var x and not OpKind.Generic ? x : Kind(memory));

    private static void Moves()
    {
        Set(Code.Mov_rm64_r64, "MovRR64", "Store64");
        Set(Code.Mov_rm32_r32, "MovRR32", "Store32");
        Set(Code.Mov_rm16_r16, "-", "Store16");
        Set(Code.Mov_rm8_r8, "MovRR8", "Store8");
        Set(Code.Mov_r64_rm64, "MovRR64", "Load64");
        Set(Code.Mov_r32_rm32, "MovRR32", "Load32");
        Set(Code.Mov_r8_rm8, "MovRR8", "Load8");
        Set(Code.Mov_r32_imm32, "MovRI", "-");
        Set(Code.Mov_r64_imm64, "MovRI", "-");
        Set(Code.Mov_rm32_imm32, "MovRI", "StoreI32");
        Set(Code.Mov_rm64_imm32, "MovRI", "StoreI64");
        Set(Code.Mov_rm8_imm8, "-", "StoreI8");
        Set(Code.Movzx_r32_rm8, "MovzxB", "LoadzxB");
        Set(Code.Movzx_r64_rm8, "MovzxB", "LoadzxB");
        Set(Code.Movzx_r32_rm16, "MovzxW", "LoadzxW");
        Set(Code.Movzx_r64_rm16, "MovzxW", "LoadzxW");
        Set(Code.Movsx_r64_rm8, "MovsxB64", "LoadsxB64");
        Set(Code.Movsx_r64_rm16, "MovsxW64", "LoadsxW64");
        Set(Code.Movsx_r32_rm8, "MovsxB32", "LoadsxB32");
        Set(Code.Movsx_r32_rm16, "MovsxW32", "LoadsxW32");
        Set(Code.Movsxd_r64_rm32, "MovsxD64", "LoadsxD64");
        Set(Code.Cdqe, "MovsxD64", "-");
        Set(Code.Cwde, "MovsxW32", "-");
        Set(Code.Cqo, "Cqo", "-");
        Set(Code.Cdq, "Cdq", "-");
        Set(Code.Push_r32, "Push32", "-");
        Set(Code.Pop_r32, "Pop32", "-");
        Set(Code.Mov_EAX_moffs32, "-", "Load32");
        Set(Code.Mov_moffs32_EAX, "-", "Store32");
        Set(Code.Push_r64, "Push64", "-");
        Set(Code.Pop_r64, "Pop64", "-");
    }

    private static void Arithmetic()
    {
        foreach (string name in (string[])["Add", "Sub", "And", "Or", "Xor", "Adc", "Sbb", "Cmp"])
        {
            foreach (int width in (int[])[32, 64])
            {
                Set(Parse($"{name}_rm{width}_r{width}"), $"{name}RR{width}", $"{name}MR{width}");
                Set(Parse($"{name}_r{width}_rm{width}"), $"{name}RR{width}", $"{name}RM{width}");
                Set(Parse($"{name}_rm{width}_imm32"), $"{name}RI{width}", $"{name}MI{width}");
                Set(Parse($"{name}_rm{width}_imm8"), $"{name}RI{width}", $"{name}MI{width}");
                Set(Parse(width == 64 ? $"{name}_RAX_imm32" : $"{name}_EAX_imm32"), $"{name}RI{width}", "-");
            }
        }
        foreach (int width in (int[])[32, 64])
        {
            Set(Parse($"Test_rm{width}_r{width}"), $"TestRR{width}", $"TestMR{width}");
            Set(Parse($"Test_rm{width}_imm32"), $"TestRI{width}", $"TestMI{width}");
            Set(Parse(width == 64 ? "Test_RAX_imm32" : "Test_EAX_imm32"), $"TestRI{width}", "-");
            Set(Parse($"Inc_rm{width}"), $"Inc{width}", $"IncM{width}");
            Set(Parse($"Dec_rm{width}"), $"Dec{width}", $"DecM{width}");
            Set(Parse($"Neg_rm{width}"), $"Neg{width}", "-");
            Set(Parse($"Not_rm{width}"), $"Not{width}", "-");
            Set(Parse($"Imul_r{width}_rm{width}"), $"ImulRR{width}", $"ImulRM{width}");
            Set(Parse($"Imul_r{width}_rm{width}_imm32"), $"ImulRRI{width}", "-");
            Set(Parse($"Imul_r{width}_rm{width}_imm8"), $"ImulRRI{width}", "-");
        }
        Set(Code.Inc_r32, "Inc32", "-");
        Set(Code.Dec_r32, "Dec32", "-");
        Set(Code.Cmp_rm8_r8, "CmpRR8", "CmpMR8");
        Set(Code.Cmp_r8_rm8, "CmpRR8", "CmpRM8");
        Set(Code.Cmp_rm8_imm8, "CmpRI8", "CmpMI8");
        Set(Code.Cmp_AL_imm8, "CmpRI8", "-");
        Set(Code.Test_rm8_r8, "TestRR8", "-");
        Set(Code.Test_rm8_imm8, "TestRI8", "TestMI8");
        Set(Code.Test_AL_imm8, "TestRI8", "-");
        Set(Code.Mul_rm64, "MulR64", "MulM64");
        Set(Code.VEX_Mulx_r64_r64_rm64, "MulxRR64", "MulxRM64");
        Set(Code.Adcx_r64_rm64, "AdcxRR64", "AdcxRM64");
        Set(Code.Adox_r64_rm64, "AdoxRR64", "AdoxRM64");
    }

    private static void Shifts()
    {
        foreach (string name in (string[])["Shl", "Shr", "Sar", "Rol", "Ror"])
            foreach (int width in (int[])[32, 64])
            {
                Set(Parse($"{name}_rm{width}_CL"), $"{name}Cl{width}", "-");
                Set(Parse($"{name}_rm{width}_imm8"), $"{name}RI{width}", "-");
                Set(Parse($"{name}_rm{width}_1"), $"{name}RI{width}", "-");
            }
    }

    private static void Flow()
    {
        for (int cc = 0; cc < 16; cc++)
        {
            Set(Code.Jo_rel8_64 + cc * 3, OpKind.JO + (ushort)cc, 0, 0);
            Set(Code.Jo_rel32_64 + cc * 3, OpKind.JO + (ushort)cc, 0, 0);
            Set(Code.Jo_rel8_32 + cc * 3, OpKind.JO + (ushort)cc, 0, 0);
            Set(Code.Jo_rel32_32 + cc * 3, OpKind.JO + (ushort)cc, 0, 0);
        }
        foreach (Code code in (Code[])[Code.Jmp_rel8_64, Code.Jmp_rel32_64, Code.Jmp_rel8_32, Code.Jmp_rel32_32])
            Set(code, "Jmp", "-");
        Set(Code.Call_rel32_32, "Call32", "-");
        Set(Code.Retnd, "Ret32", "-");
        Set(Code.Retnd_imm16, "Ret32", "-");
        Set(Code.Jmp_rm32, "JmpR32", "JmpM32");
        Set(Code.Call_rm32, "CallR32", "CallM32");
        Set(Code.Call_rel32_64, "Call64", "-");
        Set(Code.Retnq, "Ret64", "-");
        Set(Code.Retnq_imm16, "Ret64", "-");
        Set(Code.Jmp_rm64, "JmpR64", "JmpM64");
        Set(Code.Call_rm64, "CallR64", "CallM64");
    }

    private static Code Parse(string name) => Enum.Parse<Code>(name);

    /// <summary>Sets <c>Kind</c> of an encoded op. <paramref name="mode"/> is the decode mode without <see cref="BlockMode.Single"/>.</summary>
    public static void Run(Op* op, in Instruction i, uint mode)
    {
        ref Forms forms = ref s_forms[(int)i.Code];
        OpKind kind = forms.Register;
        if ((op->Flags & OpFlags.HasMemory) != 0 && kind != OpKind.Nop)
        {
            bool segmented = op->Seg >= SegmentIndex.FS;
            kind = !IsPlain(op, mode) ? OpKind.Generic : op->Index == OpEncoder.NoRegister && !segmented ? forms.Base : forms.Index;
            if (kind != OpKind.Generic)
                op->Aux = !segmented ? OpEncoder.NoRegister : op->Seg == SegmentIndex.FS ? s_fsBase : s_gsBase;
        }
        op->Kind = (ushort)Refine(op, in i, kind, mode);
    }

    /// <summary>Whether the loop can form the linear address of the memory operand: full-size addresses in 64-bit mode, and in flat segments.</summary>
    private static bool IsPlain(Op* op, uint mode)
    {
        if ((op->Flags & OpFlags.Lock) != 0)
            return false;
        if (mode == BlockMode.Code64)
            return op->AddressSize == 8;
        return BlockMode.IsFlat(mode) && op->AddressSize == 4 && op->Seg is SegmentIndex.DS or SegmentIndex.ES or SegmentIndex.SS;
    }

    private static OpKind Refine(Op* op, in Instruction i, OpKind kind, uint mode)
    {
        switch (kind)
        {
            case OpKind.Generic:
                return i.Code switch
                {
                    Code.Lea_r64_m when op->AddressSize == 8 => op->Index == OpEncoder.NoRegister ? OpKind.LeaBase64 : OpKind.Lea64,
                    Code.Lea_r32_m when op->AddressSize >= 4 => OpKind.Lea32,
                    _ => OpKind.Generic,
                };
            case OpKind.MovRI:
                if (i.Code is Code.Mov_r32_imm32 or Code.Mov_rm32_imm32)
                    op->Imm = (uint)op->Imm;
                return kind;
            case OpKind.ShlRI64 or OpKind.ShrRI64 or OpKind.SarRI64 or OpKind.RolRI64 or OpKind.RorRI64:
                op->Imm &= 63;
                return op->Imm != 0 ? kind : OpKind.Generic;
            case OpKind.ShlRI32 or OpKind.ShrRI32 or OpKind.SarRI32 or OpKind.RolRI32 or OpKind.RorRI32:
                op->Imm &= 31;
                return op->Imm != 0 ? kind : OpKind.Generic;
            case OpKind.Jmp or OpKind.Call64 or OpKind.Call32 or (>= OpKind.JO and <= OpKind.JG):
                op->Disp = (long)op->Imm;
                return BlockMode.IsFlat(mode) ? kind : OpKind.Generic;
            case OpKind.Push64 or OpKind.Pop64 or OpKind.Ret64 or OpKind.JmpR64 or OpKind.JmpM64 or OpKind.CallR64 or OpKind.CallM64:
                return mode == BlockMode.Code64 ? kind : OpKind.Generic;
            case OpKind.Push32 or OpKind.Pop32 or OpKind.Ret32 or OpKind.JmpR32 or OpKind.JmpM32 or OpKind.CallR32 or OpKind.CallM32:
                return mode == (BlockMode.Code32 | BlockMode.Flat) ? kind : OpKind.Generic;
            default:
                return kind;
        }
    }
}

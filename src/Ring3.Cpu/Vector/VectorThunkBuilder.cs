using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>What an operand of a vector form is.</summary>
internal enum OperandClass : byte { None, Xmm, Ymm, Mmx, Gpr32, Gpr64, Memory, Immediate }

/// <summary>
/// Emits the thunk of a vector form: load the register operands from the state, execute the very instruction, store what it writes.
/// Host registers: operand i is XMM/YMM(1+i), MM(i) or R9+i; its pointer is RDI, RSI, RDX, RCX; the state is R8; XMM0 is left for the implicit operand.
/// Everything used is caller-saved in the System V ABI.
/// </summary>
/// <remarks>SAFETY: emits code that touches only the operands passed to it, at the widths of the instruction it holds.</remarks>
internal static unsafe class VectorThunkBuilder
{
    private static readonly Register[] s_pointers = [Register.RDI, Register.RSI, Register.RDX, Register.RCX];
    private static readonly Register[] s_gpr32 = [Register.R9D, Register.R10D, Register.R11D, Register.EAX];
    private static readonly Register[] s_gpr64 = [Register.R9, Register.R10, Register.R11, Register.RAX];
    private const Register State = Register.R8;
    public const int YmmOffset = 160, X87Offset = 672;

    /// <summary>Builds the form. <paramref name="memory"/> chooses between the two meanings of an r/m operand.</summary>
    public static VectorForm Build(Code code, byte immediate, bool memory)
    {
        OpCodeInfo info = code.ToOpCode();
        bool vex = info.Encoding == EncodingKind.VEX;
        Span<OperandClass> classes = stackalloc OperandClass[4];
        VectorForm form = default;
        form.Code = (ushort)code;
        form.Immediate = immediate;
        form.MemoryIndex = 255;
        Instruction instruction = Compose(info, immediate, memory, classes, ref form);
        InstructionInfo used = new InstructionInfoFactory().GetInfo(instruction);
        Describe(instruction, info, classes, used, ref form);

        ThunkAssembler a = new();
        bool wide = false;
        for (int i = 0; i < info.OpCount; i++)
        {
            wide |= classes[i] == OperandClass.Ymm;
            if (Reads(used.GetOpAccess(i)))
                EmitLoad(a, classes[i], i, vex);
        }
        EmitImplicit(a, used, vex, before: true);
        a.Add(instruction);
        if ((form.Flags & VectorFormFlags.WritesFlags) != 0)
        {
            a.Plain(Code.Pushfq);
            a.Add(Instruction.Create(Code.Pop_r64, Register.RAX));
        }
        else if ((form.Flags & VectorFormFlags.StoresFlags) != 0)
        {
            EmitFlags(a, State, Register.AL, Register.EAX, Register.R9L, Register.R9D, Register.R10);
        }
        for (int i = 0; i < info.OpCount; i++)
            if (Writes(used.GetOpAccess(i)))
                EmitStore(a, classes[i], i, vex);
        EmitImplicit(a, used, vex, before: false);
        if ((form.Flags & VectorFormFlags.Mmx) != 0)
            a.Plain(Code.Emms);
        if (wide)
            a.Plain(Code.VEX_Vzeroupper);
        a.Plain(Code.Retnq);
        form.Entry = (delegate* unmanaged[SuppressGCTransition]<byte*, byte*, byte*, byte*, CpuState*, ulong>)a.Finish();
        form.Handler = VectorHandlers.Choose(&form);
        return form;
    }

    private static Instruction Compose(OpCodeInfo info, byte immediate, bool memory, Span<OperandClass> classes, ref VectorForm form)
    {
        Instruction instruction = new() { Code = info.Code };
        for (int i = 0; i < info.OpCount; i++)
        {
            classes[i] = Classify(info.GetOpKind(i), memory);
            switch (classes[i])
            {
                case OperandClass.Memory:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Memory);
                    instruction.MemoryBase = s_pointers[i];
                    form.MemoryIndex = (byte)i;
                    break;
                case OperandClass.Immediate:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Immediate8);
                    instruction.Immediate8 = immediate;
                    break;
                default:
                    instruction.SetOpKind(i, Iced.Intel.OpKind.Register);
                    instruction.SetOpRegister(i, HostRegister(classes[i], i));
                    break;
            }
        }
        return instruction;
    }

    public static OperandClass Classify(OpCodeOperandKind kind, bool memory) => kind switch
    {
        OpCodeOperandKind.mem => OperandClass.Memory,
        OpCodeOperandKind.imm8 => OperandClass.Immediate,
        OpCodeOperandKind.xmm_or_mem => memory ? OperandClass.Memory : OperandClass.Xmm,
        OpCodeOperandKind.ymm_or_mem => memory ? OperandClass.Memory : OperandClass.Ymm,
        OpCodeOperandKind.mm_or_mem => memory ? OperandClass.Memory : OperandClass.Mmx,
        OpCodeOperandKind.r32_or_mem => memory ? OperandClass.Memory : OperandClass.Gpr32,
        OpCodeOperandKind.r64_or_mem => memory ? OperandClass.Memory : OperandClass.Gpr64,
        OpCodeOperandKind.xmm_reg or OpCodeOperandKind.xmm_rm or OpCodeOperandKind.xmm_vvvv or OpCodeOperandKind.xmm_is4 => OperandClass.Xmm,
        OpCodeOperandKind.ymm_reg or OpCodeOperandKind.ymm_rm or OpCodeOperandKind.ymm_vvvv or OpCodeOperandKind.ymm_is4 => OperandClass.Ymm,
        OpCodeOperandKind.mm_reg or OpCodeOperandKind.mm_rm => OperandClass.Mmx,
        OpCodeOperandKind.r32_reg or OpCodeOperandKind.r32_rm => OperandClass.Gpr32,
        OpCodeOperandKind.r64_reg or OpCodeOperandKind.r64_rm => OperandClass.Gpr64,
        _ => throw new InvalidOperationException($"operand kind {kind} has no thunk"),
    };

    private static Register HostRegister(OperandClass cls, int i) => cls switch
    {
        OperandClass.Xmm => Register.XMM1 + i,
        OperandClass.Ymm => Register.YMM1 + i,
        OperandClass.Mmx => Register.MM0 + i,
        OperandClass.Gpr32 => s_gpr32[i],
        _ => s_gpr64[i],
    };

    private static void Describe(in Instruction instruction, OpCodeInfo info, ReadOnlySpan<OperandClass> classes, in InstructionInfo used, ref VectorForm form)
    {
        bool vex = info.Encoding == EncodingKind.VEX;
        VectorFormFlags flags = vex ? VectorFormFlags.Vex : 0;
        if (VectorFacts.UsesMxcsr(info.Code))
            flags |= VectorFormFlags.Fp;
        // Compares and tests write the lazy flags themselves; the string compares, whose SF and OF mean something, return RFLAGS.
        if (instruction.RflagsModified != 0)
            flags |= IsStringCompare(used) || info.Mnemonic is Mnemonic.Pcmpistri or Mnemonic.Pcmpistrm or Mnemonic.Vpcmpistri or Mnemonic.Vpcmpistrm
                ? VectorFormFlags.WritesFlags | VectorFormFlags.Mixed : VectorFormFlags.StoresFlags;
        for (int i = 0; i < info.OpCount; i++)
            flags |= classes[i] switch
            {
                OperandClass.Mmx => VectorFormFlags.Mmx | VectorFormFlags.Mixed,
                OperandClass.Gpr32 or OperandClass.Gpr64 => VectorFormFlags.Mixed,
                _ => 0,
            };
        if (form.MemoryIndex == 0)
            flags |= VectorFormFlags.StoresMemory;
        if ((flags & VectorFormFlags.Mmx) != 0 && classes.ToArray().AsEnumerable().Contains(OperandClass.Xmm))
            flags |= VectorFormFlags.NeedsSse;
        if (form.MemoryIndex != 255)
        {
            form.MemorySize = (byte)instruction.MemorySize.GetSize();
            form.AlignMask = VectorFacts.MustBeAligned(info.Code, vex) ? (byte)(form.MemorySize - 1) : (byte)0;
        }
        form.Flags = flags;
        form.ResultSize = !Writes(used.GetOpAccess(0)) ? (byte)0 : (byte)(classes[0] switch
        {
            OperandClass.Memory => form.MemorySize,
            OperandClass.Xmm or OperandClass.Ymm => vex ? 32 : 16,
            OperandClass.Mmx => 10,
            _ => 8,
        });
        (form.Base0, form.Shift0) = Place(classes[0]);
        (form.Base1, form.Shift1) = Place(classes[1]);
        (form.Base2, form.Shift2) = Place(classes[2]);
        (form.Base3, form.Shift3) = Place(classes[3]);
    }

    private static (ushort, byte) Place(OperandClass cls) => cls switch
    {
        OperandClass.Xmm or OperandClass.Ymm => (YmmOffset, 5),
        OperandClass.Mmx => (X87Offset, 4),
        _ => (0, 0),
    };

    public static bool Reads(OpAccess access) => access is OpAccess.Read or OpAccess.CondRead or OpAccess.ReadWrite or OpAccess.ReadCondWrite;
    public static bool Writes(OpAccess access) => access is OpAccess.Write or OpAccess.CondWrite or OpAccess.ReadWrite or OpAccess.ReadCondWrite;

    private static void EmitLoad(ThunkAssembler a, OperandClass cls, int i, bool vex)
    {
        switch (cls)
        {
            case OperandClass.Xmm: a.Load(vex ? Code.VEX_Vmovups_xmm_xmmm128 : Code.Movups_xmm_xmmm128, Register.XMM1 + i, s_pointers[i]); break;
            case OperandClass.Ymm: a.Load(Code.VEX_Vmovups_ymm_ymmm256, Register.YMM1 + i, s_pointers[i]); break;
            case OperandClass.Mmx: a.Load(Code.Movq_mm_mmm64, Register.MM0 + i, s_pointers[i]); break;
            case OperandClass.Gpr32 or OperandClass.Gpr64: a.Load(Code.Mov_r64_rm64, s_gpr64[i], s_pointers[i]); break;
        }
    }

    private static void EmitStore(ThunkAssembler a, OperandClass cls, int i, bool vex)
    {
        switch (cls)
        {
            case OperandClass.Xmm when !vex: a.Store(Code.Movups_xmmm128_xmm, s_pointers[i], Register.XMM1 + i); break;
            // A VEX.128 result has cleared the host register's upper half, which is what the guest's gets.
            case OperandClass.Xmm or OperandClass.Ymm: a.Store(Code.VEX_Vmovups_ymmm256_ymm, s_pointers[i], Register.YMM1 + i); break;
            case OperandClass.Mmx:
                a.Store(Code.Movq_mmm64_mm, s_pointers[i], Register.MM0 + i);
                a.Add(Instruction.Create(Code.Mov_rm16_imm16, ThunkAssembler.Memory(s_pointers[i], 8), 0xffff));
                break;
            case OperandClass.Gpr32 or OperandClass.Gpr64: a.Store(Code.Mov_rm64_r64, s_pointers[i], s_gpr64[i]); break;
        }
    }

    /// <summary>Writes ZF, PF and CF in the lazy form of <see cref="Flags"/>; OF, SF and AF are clear.</summary>
    public static void EmitFlags(ThunkAssembler a, Register state, Register zero8, Register zero, Register parity8, Register parity, Register carry)
    {
        CpuState c;
        byte* start = (byte*)&c;
        a.Add(Instruction.Create(Code.Setne_rm8, zero8));
        a.Add(Instruction.Create(Code.Setnp_rm8, parity8));
        a.Add(Instruction.Create(Code.Sbb_r64_rm64, carry, carry));
        a.Add(Instruction.Create(Code.Movzx_r32_rm8, zero, zero8));
        a.Add(Instruction.Create(Code.Movzx_r32_rm8, parity, parity8));
        // CF in bit 63, and bit 62 equal to it: OF clear.
        a.Add(Instruction.Create(Code.Shl_rm64_imm8, carry, 62));
        a.Store(Code.Mov_rm64_r64, state, zero.GetFullRegister(), (int)((byte*)&c.FlagsZero - start));
        a.Store(Code.Mov_rm64_r64, state, parity.GetFullRegister(), (int)((byte*)&c.FlagsSign - start));
        a.Store(Code.Mov_rm64_r64, state, carry, (int)((byte*)&c.FlagsCarry - start));
    }

    /// <summary>Implicit operands: XMM0 of the variable blends and SHA256RNDS2, EAX, EDX, ECX and XMM0 of the string compares.</summary>
    private static void EmitImplicit(ThunkAssembler a, in InstructionInfo used, bool vex, bool before)
    {
        foreach (UsedRegister r in used.GetUsedRegisters())
        {
            if (before ? !Reads(r.Access) : !Writes(r.Access))
                continue;
            switch (r.Register.GetFullRegister())
            {
                case Register.ZMM0 when before: a.Load(Code.Movups_xmm_xmmm128, Register.XMM0, State, YmmOffset); break;
                case Register.ZMM0 when vex: a.Store(Code.VEX_Vmovups_ymmm256_ymm, State, Register.YMM0, YmmOffset); break;
                case Register.ZMM0: a.Store(Code.Movups_xmmm128_xmm, State, Register.XMM0, YmmOffset); break;
                case Register.RAX when before: a.Load(Code.Mov_r64_rm64, Register.RAX, State); break;
                case Register.RDX when before && used.GetOpAccess(1) != OpAccess.None
                    && IsStringCompare(used): a.Load(Code.Mov_r64_rm64, Register.RDX, State, 16); break;
                case Register.RCX when !before: a.Store(Code.Mov_rm64_r64, State, Register.RCX, 8); break;
            }
        }
    }

    // RDX is otherwise the pointer of operand 2; only the explicit-length string compares use it as data.
    private static bool IsStringCompare(in InstructionInfo used)
    {
        foreach (UsedRegister r in used.GetUsedRegisters())
            if (r.Register.GetFullRegister() == Register.RAX && Reads(r.Access))
                return true;
        return false;
    }
}

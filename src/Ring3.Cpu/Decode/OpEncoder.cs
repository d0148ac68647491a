using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>Fills one <see cref="Op"/> from Iced's instruction.</summary>
/// <remarks>SAFETY: writes one op.</remarks>
internal static unsafe class OpEncoder
{
    /// <summary>Operand offset of "no register" in address fields, and of the block's RIP.</summary>
    public const byte NoRegister = 128, BlockRip = 136;

    /// <summary>An encoding that raises #UD, or #GP when it is longer than 15 bytes.</summary>
    public static void Invalid(Op* op, bool tooLong)
    {
        *op = default;
        op->Handler = tooLong ? &TooLong : &Undefined;
    }

    private static OpResult Undefined(LogicalProcessor p, CpuState* c, Op* op) => Outcome.Raise(c, Arch.Vector.UD);
    private static OpResult TooLong(LogicalProcessor p, CpuState* c, Op* op) => Outcome.Raise(c, Arch.Vector.GP, 0);

    /// <summary>Encodes the instruction; returns whether the block ends after it. Offset and Length are the caller's.</summary>
    public static bool Encode(Op* op, in Instruction i, ulong blockRip, uint mode)
    {
        uint size = mode & BlockMode.SizeMask;
        *op = default;
        Code code = i.Code;
        op->Handler = HandlerTable.Get(code);
        op->Code = (ushort)code;
        op->Base = op->Index = NoRegister;
        op->SegmentBase = NoRegister;
        op->AddressSize = (byte)(size == BlockMode.Code64 ? 8 : size == BlockMode.Code32 ? 4 : 2);
        op->Seg = SegmentIndex.DS;
        op->Flags = (i.HasLockPrefix ? OpFlags.Lock : 0) | (i.HasRepPrefix ? OpFlags.Rep : 0) | (i.HasRepnePrefix ? OpFlags.Repne : 0);
        if (op->Handler == null)
        {
            Invalid(op, tooLong: false);
            return true;
        }
        bool immediate = false;
        for (int n = 0; n < i.OpCount; n++)
            EncodeOperand(op, in i, n, blockRip, size, ref immediate);
        if (code is Code.Clzerow or Code.Clzerod or Code.Clzeroq)
            EncodeImplicit(op, in i, size, code == Code.Clzerow ? 2 : code == Code.Clzerod ? 4 : 8);
        op->Aux = HandlerTable.Aux(code);
        if ((op->Flags & OpFlags.HasMemory) == 0 && HandlerTable.GetRegisterForm(code) != null)
            op->Handler = HandlerTable.GetRegisterForm(code);
        if ((op->Flags & OpFlags.HasMemory) != 0)
            EncodeSegment(op, mode & ~BlockMode.Single);
        return HandlerTable.EndsBlock(code);
    }

    private static readonly ushort s_fsBase = BaseOffset(SegmentIndex.FS), s_gsBase = BaseOffset(SegmentIndex.GS);

    private static ushort BaseOffset(int segment)
    {
        CpuState state;
        return (ushort)((byte*)&CpuState.SegmentAt(&state, segment)->Base - (byte*)&state);
    }

    /// <summary>What the handlers need to know about the segment of the memory operand.</summary>
    private static void EncodeSegment(Op* op, uint mode)
    {
        if (mode == BlockMode.Code64)
        {
            op->Flags |= OpFlags.Plain;
            if (op->Seg >= SegmentIndex.FS)
                op->SegmentBase = op->Seg == SegmentIndex.FS ? s_fsBase : s_gsBase;
        }
        else if (BlockMode.IsFlat(mode) && op->Seg is SegmentIndex.DS or SegmentIndex.ES or SegmentIndex.SS)
            op->Flags |= OpFlags.Plain;
    }

    private static void EncodeOperand(Op* op, in Instruction i, int n, ulong blockRip, uint size, ref bool immediate)
    {
        Iced.Intel.OpKind kind = i.GetOpKind(n);
        switch (kind)
        {
            case Iced.Intel.OpKind.Register:
                Register register = i.GetOpRegister(n);
                (&op->Reg0)[n < 4 ? n : 3] = Number(register);
                if (n == 0)
                    op->Size = (byte)register.GetSize();
                if (n == 4)
                    op->Imm2 = Number(register);
                break;
            case Iced.Intel.OpKind.NearBranch16:
            case Iced.Intel.OpKind.NearBranch32:
            case Iced.Intel.OpKind.NearBranch64:
                op->Imm = i.NearBranchTarget - blockRip;
                op->Size = (byte)(kind == Iced.Intel.OpKind.NearBranch16 ? 2 : kind == Iced.Intel.OpKind.NearBranch32 ? 4 : 8);
                break;
            case Iced.Intel.OpKind.FarBranch16:
            case Iced.Intel.OpKind.FarBranch32:
                op->Imm = kind == Iced.Intel.OpKind.FarBranch16 ? i.FarBranch16 : i.FarBranch32;
                op->Imm2 = i.FarBranchSelector;
                op->Size = (byte)(kind == Iced.Intel.OpKind.FarBranch16 ? 2 : 4);
                break;
            case Iced.Intel.OpKind.Memory:
                EncodeMemory(op, in i, blockRip, size);
                if (n == 0)
                    op->Size = MemorySize(in i);
                break;
            case >= Iced.Intel.OpKind.MemorySegSI and <= Iced.Intel.OpKind.MemoryESRDI:
                op->Flags |= OpFlags.HasMemory;
                op->AddressSize = AddressSizeOf(kind);
                if (kind < Iced.Intel.OpKind.MemoryESDI)
                    op->Seg = size == BlockMode.Code64 && i.MemorySegment < Register.FS ? (byte)SegmentIndex.DS : Segment(i.MemorySegment);
                break;
            default:
                if (immediate)
                    op->Imm2 = (ushort)i.GetImmediate(n);
                else
                    op->Imm = i.GetImmediate(n);
                immediate = true;
                break;
        }
    }

    /// <summary>An address in a fixed register, which the instruction does not show as an operand.</summary>
    private static void EncodeImplicit(Op* op, in Instruction i, uint size, int addressSize)
    {
        op->AddressSize = (byte)addressSize;
        if (i.HasSegmentPrefix && (size != BlockMode.Code64 || i.SegmentPrefix >= Register.FS))
            op->Seg = Segment(i.SegmentPrefix);
    }

    private static byte AddressSizeOf(Iced.Intel.OpKind kind) => kind switch
    {
        Iced.Intel.OpKind.MemorySegSI or Iced.Intel.OpKind.MemorySegDI or Iced.Intel.OpKind.MemoryESDI => 2,
        Iced.Intel.OpKind.MemorySegESI or Iced.Intel.OpKind.MemorySegEDI or Iced.Intel.OpKind.MemoryESEDI => 4,
        _ => 8,
    };

    private static byte MemorySize(in Instruction i)
    {
        int bytes = i.MemorySize.GetSize();
        return (byte)Math.Min(bytes, 255);
    }

    private static void EncodeMemory(Op* op, in Instruction i, ulong blockRip, uint size)
    {
        op->Flags |= OpFlags.HasMemory;
        op->Seg = Segment(i.MemorySegment);
        Register b = i.MemoryBase, x = i.MemoryIndex;
        if (size == BlockMode.Code64 && op->Seg < SegmentIndex.FS)
            // Prefixes of the flat segments are ignored; the base register alone decides between #SS and #GP.
            op->Seg = b is Register.RSP or Register.RBP or Register.ESP or Register.EBP ? (byte)SegmentIndex.SS : (byte)SegmentIndex.DS;
        op->Disp = (long)i.MemoryDisplacement64;
        op->Shift = (byte)System.Numerics.BitOperations.Log2((uint)i.MemoryIndexScale);
        if (b == Register.RIP || b == Register.EIP)
        {
            op->Base = BlockRip;
            op->Disp = (long)(i.MemoryDisplacement64 - blockRip);
            op->AddressSize = (byte)(b == Register.RIP ? 8 : 4);
            return;
        }
        if (b != Register.None)
        {
            op->Base = Number(b);
            op->AddressSize = (byte)b.GetSize();
        }
        else if (x != Register.None && x.IsGPR())
            op->AddressSize = (byte)x.GetSize();
        else if (i.MemoryDisplSize is 2 or 4 or 8)
            op->AddressSize = AddressSizeOfDisplacement(in i, size);
        if (x.IsVectorRegister())
        {
            // VSIB: the handler reads the vector register's number here.
            op->Imm2 = Number(x);
            if (b == Register.None)
                op->AddressSize = AddressSizeOfDisplacement(in i, size);
        }
        else if (x == Register.AL)
            op->Index = NoRegister; // XLAT: the handler adds AL.
        else if (x != Register.None)
            op->Index = Number(x);
    }

    /// <summary>
    /// Address size of an operand without registers. Iced reports the displacement's size: 8 in 64-bit mode without the address-size prefix, else that of the
    /// address.
    /// </summary>
    private static byte AddressSizeOfDisplacement(in Instruction i, uint size)
    {
        if (size == BlockMode.Code64)
            return (byte)(i.MemoryDisplSize == 4 ? 4 : 8);
        return (byte)(i.MemoryDisplSize == 2 ? 2 : 4);
    }

    private static byte Segment(Register segment) => (byte)(segment - Register.ES);

    /// <summary>GPRs become byte offsets into <see cref="CpuState"/>; every other register its number.</summary>
    public static byte Number(Register r)
    {
        if (r is >= Register.AL and <= Register.BL)
            return (byte)((r - Register.AL) * 8);
        if (r is >= Register.AH and <= Register.BH)
            return (byte)((r - Register.AH) * 8 + 1);
        if (r is >= Register.SPL and <= Register.R15L)
            return (byte)((r - Register.SPL + 4) * 8);
        if (r.IsGPR())
            return (byte)(r.GetNumber() * 8);
        return (byte)r.GetNumber();
    }
}

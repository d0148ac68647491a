using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// Encodes what host code is made of, several times as fast as Iced's encoder, which does the rest: 64-bit code, legacy and VEX encodings, memory operands with
/// a 64-bit base register. Displacements take the least room.
/// </summary>
internal static class HostEncoder
{
    /// <summary>Longest instruction.</summary>
    public const int MaxBytes = 15;

    /// <summary>Where an operand is encoded.</summary>
    private enum Role : byte { None, Reg, Rm, Vvvv, Opcode, Is4, Byte, Word, Dword, Qword }

    private enum State : byte { Unknown, Refused, Legacy, Vex }

    /// <summary>How a code is encoded.</summary>
    private struct Form
    {
        public State State;
        public byte Opcode;
        /// <summary>0: none, 1: 0F, 2: 0F 38, 3: 0F 3A; the number that VEX has for it.</summary>
        public byte Map;
        /// <summary>66, F2, F3 or 0.</summary>
        public byte Prefix;
        /// <summary>Its number in VEX.</summary>
        public byte PrefixNumber;
        public byte Wide, Long;
        /// <summary>Bits 3-5 of ModRM when they are part of the opcode.</summary>
        public byte Group;
        public bool HasModRM;
        public byte Operands;
        public Role Role0, Role1, Role2, Role3;
    }

    private const byte NeedsRex = 0x40, ForbidsRex = 0x80, NoRegister = 0xff;

    // BENIGN-RACE: every thread computes the same form, and its state is stored last.
    private static readonly Form[] s_forms = new Form[VectorHandlers.CodeCount];
    private static readonly byte[] s_numbers = Numbers();

    private static byte[] Numbers()
    {
        byte[] numbers = new byte[256];
        numbers.AsSpan().Fill(NoRegister);
        for (int n = 0; n < 16; n++)
        {
            numbers[(int)(n < 4 ? Register.AL + n : Register.SPL + n - 4)] = (byte)(n is >= 4 and < 8 ? n | NeedsRex : n);
            numbers[(int)Register.AX + n] = numbers[(int)Register.EAX + n] = numbers[(int)Register.RAX + n] = (byte)n;
            numbers[(int)Register.XMM0 + n] = numbers[(int)Register.YMM0 + n] = (byte)n;
        }
        for (int n = 4; n < 8; n++)
            numbers[(int)Register.AH + n - 4] = (byte)(n | ForbidsRex);
        for (int n = 0; n < 8; n++)
            numbers[(int)Register.MM0 + n] = (byte)n;
        return numbers;
    }

    private static Role RoleOf(OpCodeOperandKind kind, ref bool known)
    {
        string name = kind.ToString();
        switch (name)
        {
            case "al" or "cl" or "ax" or "dx" or "eax" or "rax" or "imm8_const_1":
                return Role.None;
            case "imm8" or "imm8sex16" or "imm8sex32" or "imm8sex64":
                return Role.Byte;
            case "imm16":
                return Role.Word;
            case "imm32" or "imm32sex64":
                return Role.Dword;
            case "imm64":
                return Role.Qword;
            case "mem":
                return Role.Rm;
        }
        if (!name.StartsWith('r') && !name.StartsWith("xmm", StringComparison.Ordinal) && !name.StartsWith("ymm", StringComparison.Ordinal)
            && !name.StartsWith("mm_", StringComparison.Ordinal))
            known = false;
        int end = name.IndexOf('_', StringComparison.Ordinal);
        switch (end < 0 ? "" : name[end..])
        {
            case "_reg":
                return Role.Reg;
            case "_or_mem" or "_rm":
                return Role.Rm;
            case "_vvvv":
                return Role.Vvvv;
            case "_opcode":
                return Role.Opcode;
            case "_is4":
                return Role.Is4;
            default:
                known = false;
                return Role.None;
        }
    }

    private static State Learn(Code code, ref Form form)
    {
        OpCodeInfo info = code.ToOpCode();
        Form f = default;
        bool known = info.Encoding is EncodingKind.Legacy or EncodingKind.VEX && info.OpCodeLength == 1 && info.OpCount <= 4 && info.AddressSize == 0
            && info.Mode64 && (!info.IsRmGroup) && !info.Fwait;
        f.Opcode = (byte)info.OpCode;
        switch (info.Table)
        {
            case OpCodeTableKind.Normal: f.Map = 0; break;
            case OpCodeTableKind.T0F: f.Map = 1; break;
            case OpCodeTableKind.T0F38: f.Map = 2; break;
            case OpCodeTableKind.T0F3A: f.Map = 3; break;
            default: known = false; break;
        }
        (f.Prefix, f.PrefixNumber) = info.MandatoryPrefix switch
        {
            MandatoryPrefix.P66 => ((byte)0x66, (byte)1),
            MandatoryPrefix.PF3 => ((byte)0xf3, (byte)2),
            MandatoryPrefix.PF2 => ((byte)0xf2, (byte)3),
            _ => ((byte)0, (byte)0),
        };
        bool vex = info.Encoding == EncodingKind.VEX;
        if (vex)
        {
            f.Wide = (byte)info.W;
            f.Long = (byte)info.L;
        }
        else
        {
            f.Wide = info.OperandSize == 64 && !info.DefaultOpSize64 && !info.ForceOpSize64 ? (byte)1 : (byte)0;
            if (info.OperandSize == 16)
            {
                // With a mandatory prefix both are needed: left to Iced.
                known &= f.Prefix == 0;
                f.Prefix = 0x66;
            }
        }
        f.Operands = (byte)info.OpCount;
        f.Role0 = info.OpCount > 0 ? RoleOf(info.Op0Kind, ref known) : Role.None;
        f.Role1 = info.OpCount > 1 ? RoleOf(info.Op1Kind, ref known) : Role.None;
        f.Role2 = info.OpCount > 2 ? RoleOf(info.Op2Kind, ref known) : Role.None;
        f.Role3 = info.OpCount > 3 ? RoleOf(info.Op3Kind, ref known) : Role.None;
        f.Group = info.IsGroup ? (byte)info.GroupIndex : (byte)0;
        f.HasModRM = info.IsGroup || Has(f, Role.Reg) || Has(f, Role.Rm);
        // An encoding without operands that has ModRM all the same.
        known &= info.OpCount != 0 || !info.IsGroup;
        known &= code.FlowControl() == FlowControl.Next || code is Code.Jmp_rm64 or Code.Call_rm64 or Code.Retnq;
        // One of them is NOP.
        known &= code is not (Code.Xchg_r16_AX or Code.Xchg_r32_EAX or Code.Xchg_r64_RAX);
        f.State = State.Unknown;
        form = f;
        State state = !known ? State.Refused : vex ? State.Vex : State.Legacy;
        Volatile.Write(ref Unsafe.As<State, byte>(ref form.State), (byte)state);
        return state;
    }

    private static bool Has(in Form f, Role role) => f.Role0 == role || f.Role1 == role || f.Role2 == role || f.Role3 == role;

    /// <summary>As <see cref="Encode(in Instruction, ref byte)"/>.</summary>
    public static int Encode(in Instruction i, Span<byte> to) => Encode(i, ref to[..MaxBytes][0]);

    /// <summary>Bytes written, or 0: left to Iced. Behind <paramref name="b"/> there is room for <see cref="MaxBytes"/>.</summary>
    public static int Encode(in Instruction i, ref byte b)
    {
        ref Form f = ref s_forms[(int)i.Code];
        State state = (State)Volatile.Read(ref Unsafe.As<State, byte>(ref f.State));
        if (state == State.Unknown)
            state = Learn(i.Code, ref f);
        if (state == State.Refused || i.HasRepPrefix || i.HasRepnePrefix || i.SegmentPrefix != Register.None)
            return 0;
        Parts p = default;
        p.Group = f.Group;
        if (f.Role0 != Role.None && !Take(i, 0, i.Op0Kind, i.Op0Register, f.Role0, ref p)
            || f.Role1 != Role.None && !Take(i, 1, i.Op1Kind, i.Op1Register, f.Role1, ref p)
            || f.Role2 != Role.None && !Take(i, 2, i.Op2Kind, i.Op2Register, f.Role2, ref p)
            || f.Role3 != Role.None && !Take(i, 3, i.Op3Kind, i.Op3Register, f.Role3, ref p))
            return 0;
        int rex = f.Wide << 3 | (p.Group & 8) >> 1 | (p.Index & 8) >> 2 | (p.Rm & 8) >> 3;
        if ((p.Marks & ForbidsRex) != 0 && (rex != 0 || (p.Marks & NeedsRex) != 0))
            return 0;
        int n = 0;
        if (state == State.Legacy)
        {
            if (i.HasLockPrefix)
                Put(ref b, n++, 0xf0);
            if (f.Prefix != 0)
                Put(ref b, n++, f.Prefix);
            if (rex != 0 || (p.Marks & NeedsRex) != 0)
                Put(ref b, n++, 0x40 | rex);
            if (f.Map != 0)
                Put(ref b, n++, 0x0f);
            if (f.Map > 1)
                Put(ref b, n++, f.Map == 2 ? 0x38 : 0x3a);
            Put(ref b, n++, f.HasModRM ? f.Opcode : f.Opcode + (p.Rm & 7));
        }
        else
        {
            int last = (~p.Vvvv & 15) << 3 | f.Long << 2 | f.PrefixNumber;
            if (f.Map == 1 && (rex & ~4) == 0)
            {
                Put(ref b, n++, 0xc5);
                Put(ref b, n++, (~rex & 4) << 5 | last);
            }
            else
            {
                Put(ref b, n++, 0xc4);
                Put(ref b, n++, (~rex & 7) << 5 | f.Map);
                Put(ref b, n++, f.Wide << 7 | last);
            }
            Put(ref b, n++, f.Opcode);
        }
        if (f.HasModRM)
            n = p.IsMemory ? Memory(i, p, ref b, n) : Register3(p, ref b, n);
        switch (p.ImmediateBytes)
        {
            case 0:
                break;
            case 1:
                Put(ref b, n, (int)p.Immediate);
                break;
            case 2:
                Unsafe.WriteUnaligned(ref Unsafe.Add(ref b, n), (ushort)p.Immediate);
                break;
            case 4:
                Unsafe.WriteUnaligned(ref Unsafe.Add(ref b, n), (uint)p.Immediate);
                break;
            default:
                Unsafe.WriteUnaligned(ref Unsafe.Add(ref b, n), p.Immediate);
                break;
        }
        return n + p.ImmediateBytes;
    }

    /// <summary>The parts of one instruction.</summary>
    private struct Parts
    {
        /// <summary>Register numbers: in ModRM.reg (or the opcode's part), in ModRM.rm or the opcode or as a base, of the index, in VEX.vvvv.</summary>
        public int Group, Rm, Index, Vvvv;
        public int Marks, ImmediateBytes;
        public bool IsMemory;
        public ulong Immediate;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Put(ref byte at, int n, int value) => Unsafe.Add(ref at, n) = (byte)value;

    private static bool Take(in Instruction i, int n, Iced.Intel.OpKind kind, Register register, Role role, ref Parts p)
    {
        if (role >= Role.Byte)
        {
            // Two immediates (ENTER, is4 with one) are left to Iced.
            if (p.ImmediateBytes != 0)
                return false;
            p.ImmediateBytes = 1 << (role - Role.Byte);
            p.Immediate = i.GetImmediate(n);
            return true;
        }
        if (role == Role.Rm && kind == Iced.Intel.OpKind.Memory)
            return TakeMemory(i, ref p);
        byte number = s_numbers[(int)register];
        if (number == NoRegister)
            return false;
        p.Marks |= number;
        int r = number & 15;
        switch (role)
        {
            case Role.Reg:
                p.Group = r;
                return true;
            case Role.Vvvv:
                p.Vvvv = r;
                return true;
            case Role.Is4:
                p.ImmediateBytes = 1;
                p.Immediate = (ulong)r << 4;
                return true;
            default:
                p.Rm = r;
                return true;
        }
    }

    private static bool TakeMemory(in Instruction i, ref Parts p)
    {
        Register b = i.MemoryBase, x = i.MemoryIndex;
        if (b is < Register.RAX or > Register.R15 || x != Register.None && (x is < Register.RAX or > Register.R15 or Register.RSP))
            return false;
        p.IsMemory = true;
        p.Rm = b - Register.RAX;
        p.Index = x != Register.None ? x - Register.RAX : 0;
        return true;
    }

    private static int Register3(in Parts p, ref byte b, int n)
    {
        Put(ref b, n, 0xc0 | (p.Group & 7) << 3 | p.Rm & 7);
        return n + 1;
    }

    private static int Memory(in Instruction i, in Parts p, ref byte b, int n)
    {
        int displacement = (int)i.MemoryDisplacement64, low = p.Rm & 7;
        int mode = displacement == 0 && low != 5 ? 0 : displacement == (sbyte)displacement ? 0x40 : 0x80;
        bool indexed = i.MemoryIndex != Register.None;
        if (indexed || low == 4)
        {
            Put(ref b, n++, mode | (p.Group & 7) << 3 | 4);
            int scale = indexed ? int.Log2(i.MemoryIndexScale) : 0;
            Put(ref b, n++, scale << 6 | (indexed ? p.Index & 7 : 4) << 3 | low);
        }
        else
        {
            Put(ref b, n++, mode | (p.Group & 7) << 3 | low);
        }
        if (mode == 0x40)
        {
            Put(ref b, n, displacement);
            return n + 1;
        }
        if (mode == 0)
            return n;
        Unsafe.WriteUnaligned(ref Unsafe.Add(ref b, n), displacement);
        return n + 4;
    }
}

using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>
/// Chooses register values, displacements and memory contents so that the instruction does something interesting inside the sandbox: addresses land on
/// the data pages, on their edges, on unmapped or read-only
/// neighbours or are non-canonical; branches land on known bytes; counts are bounded. Cases that could touch anything else are refused.
/// </summary>
/// <remarks>SAFETY: writes only inside the given <see cref="CaseInput"/>; patches are bounded by <see cref="Sandbox.MaxPatch"/>.</remarks>
internal sealed unsafe partial class Placement(InstructionSource source, int bits)
{
    private const int Rax = 0, Rcx = 1, Rdx = 2, Rbx = 3, Rsp = 4, Rbp = 5, Rsi = 6, Rdi = 7;
    private const ulong DataEnd = Sandbox.DataAddress + Sandbox.DataSize, WritableEnd = Sandbox.DataAddress + Sandbox.DataWritable;

    private readonly InstructionInfoFactory _infoFactory = new();
    /// <summary>Linear address of the explicit memory operand, when there is one.</summary>
    private ulong _address;

    /// <summary>False: the case cannot be made safe; take another one. May change the instruction's displacement or immediate.</summary>
    internal bool TryPlace(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        ulong stack = r.Below(100) switch
        {
            < 84 => Interior(ref r, 64, 8),
            < 94 => Interior(ref r, 64, 1),
            < 99 => Target(ref r, 8),
            _ => bits != 64 ? Sandbox.WindowStart : NonCanonical(ref r),
        };
        s->Gpr[Rsp] = bits == 16 ? stack - Sandbox.WordDataBase : stack;
        _address = 0;
        Counts(ref r, ref i, s);
        if (!Implicit(ref r, ref i, s) || !Explicit(ref r, ref i, s) || !Branches(ref r, ref i, s))
            return false;
        if (bits != 64)
        {
            for (int n = 0; n < 16; n++)
                s->Gpr[n] = n < 8 ? (uint)s->Gpr[n] : 0;
        }
        return IsContained(i, s);
    }

    // ---- addresses

    private static ulong Interior(ref FuzzRandom r, int size, int alignment)
    {
        ulong at = Sandbox.DataAddress + 512 + (ulong)r.Below(Sandbox.DataWritable - 1024 - size);
        return at & ~((ulong)alignment - 1);
    }

    private static ulong NonCanonical(ref FuzzRandom r) => 0x0001_0000_0000_0000UL + (r.Next() & 0x7ffe_0000_ffff_ffff) | 1UL << 48;

    private static ulong Target(ref FuzzRandom r, int size)
    {
        int aligned = System.Numerics.BitOperations.IsPow2(size) ? size : 1;
        ulong inside = (ulong)r.Below(size + 1);
        return r.Below(100) switch
        {
            < 45 => Interior(ref r, size, Math.Min(aligned, 64)),
            < 80 => Interior(ref r, size, 1),
            < 86 => Sandbox.DataAddress + 4096 - inside,
            < 89 => WritableEnd - inside,
            < 91 => WritableEnd + (ulong)r.Below(4096 - 512) / 16 * 16,
            < 94 => DataEnd - inside,
            < 96 => Sandbox.DataAddress - inside,
            < 98 => DataEnd + (ulong)r.Below(4096),
            _ => NonCanonical(ref r),
        };
    }

    private static bool IsCanonical(ulong a) => (ulong)((long)a << 16 >> 16) == a;
    private static bool IsInWindow(ulong a) => a is >= Sandbox.WindowStart and < Sandbox.WindowEnd;

    private ulong SegmentBase(Register segment, CaseInput* s) => segment switch { Register.FS => s->FsBase, Register.GS => s->GsBase, _ => bits == 16
        ? Sandbox.WordDataBase : 0 };

    // ---- implicit operands

    private static void Counts(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        switch (i.Mnemonic)
        {
            case Mnemonic.Shl or Mnemonic.Sal or Mnemonic.Shr or Mnemonic.Sar or Mnemonic.Rol or Mnemonic.Ror or Mnemonic.Rcl
                or Mnemonic.Rcr or Mnemonic.Shld or Mnemonic.Shrd when r.Chance(60):
                s->Gpr[Rcx] = (s->Gpr[Rcx] & ~0xffUL) | (ulong)r.Below(72);
                break;
            case Mnemonic.Div or Mnemonic.Idiv when r.Chance(80):
                // Dividends that fit: sign extension, or a high half smaller than most divisors.
                s->Gpr[Rdx] = r.Below(3) switch { 0 => 0, 1 => (ulong)((long)s->Gpr[Rax] >> 63), _ => (ulong)r.Below(1000) };
                if (i.MemorySize.GetSize() == 1 || i.Op0Register.GetSize() == 1)
                    s->Gpr[Rax] = (s->Gpr[Rax] & ~0xffffUL) | (ulong)r.Below(4096);
                break;
            case Mnemonic.Loop or Mnemonic.Loope or Mnemonic.Loopne or Mnemonic.Jrcxz or Mnemonic.Jecxz when r.Chance(70):
                s->Gpr[Rcx] = (s->Gpr[Rcx] & 0xffff_ffff_0000_0000) | (ulong)r.Below(3);
                break;
            case Mnemonic.Pcmpestri or Mnemonic.Pcmpestrm or Mnemonic.Vpcmpestri or Mnemonic.Vpcmpestrm or Mnemonic.Pcmpestri64
                or Mnemonic.Pcmpestrm64 or Mnemonic.Vpcmpestri64 or Mnemonic.Vpcmpestrm64 when r.Chance(70):
                s->Gpr[Rax] = (ulong)(long)(r.Below(40) - 20);
                s->Gpr[Rdx] = (ulong)(long)(r.Below(40) - 20);
                break;
            case Mnemonic.Bextr or Mnemonic.Bzhi when r.Chance(60) && i.Op2Kind == OpKind.Register:
                s->Gpr[Number(i.Op2Register)] = (ulong)r.Below(72) | (ulong)r.Below(72) << 8;
                break;
        }
    }

    private static int Number(Register register) => register.GetFullRegister() - Register.RAX;

    private bool Implicit(ref FuzzRandom r, ref Instruction i, CaseInput* s)
    {
        bool narrow = UsesNarrowAddress(i);
        ulong high = narrow ? r.Next() << 32 : bits == 16 ? r.Next() << 16 : 0;
        switch (i.Mnemonic)
        {
            case Mnemonic.Enter:
                source.Patch(source.Offsets(i).ImmediateOffset, (ulong)r.Below(300), 2);
                i = source.Decode(i.IP);
                s->Gpr[Rbp] = (r.Chance(85) ? Interior(ref r, 300, 8) : Target(ref r, 8)) - SegmentBase(Register.SS, s);
                return true;
            case Mnemonic.Popa or Mnemonic.Popad:
                s->Gpr[Rsp] = Interior(ref r, 64, 1) - SegmentBase(Register.SS, s); // which registers survive a fault in the middle differs
                return true;
            case Mnemonic.Leave:
                s->Gpr[Rbp] = Target(ref r, 8) - SegmentBase(Register.SS, s);
                return true;
            case Mnemonic.Xlatb:
                s->Gpr[Rbx] = Resolve(ref r, 1, narrow, i.MemorySegment, s) - (byte)s->Gpr[Rax];
                if (narrow)
                    s->Gpr[Rbx] = (uint)s->Gpr[Rbx] | high;
                return true;
            case Mnemonic.Maskmovq or Mnemonic.Maskmovdqu or Mnemonic.Vmaskmovdqu:
                s->Gpr[Rdi] = Resolve(ref r, i.Mnemonic == Mnemonic.Maskmovq ? 8 : 16, narrow, i.MemorySegment, s) | high;
                return true;
            case Mnemonic.Clzero:
                narrow |= i.Code == Code.Clzerod;
                s->Gpr[Rax] = i.Code == Code.Clzerow && bits == 32 ? (ushort)r.Next() : Resolve(ref r, 64, narrow, i.SegmentPrefix, s);
                if (narrow || bits == 16)
                    s->Gpr[Rax] |= r.Next() << (bits == 16 && !narrow ? 16 : 32);
                return IsClzeroContained(i, s);
            case Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq:
                return PatchStack(s, r.Next() & ~Rflags.TF, 8);
        }
        if (i.IsStringInstruction)
        {
            int size = StringElement(i);
            bool repeated = i.HasRepPrefix || i.HasRepnePrefix;
            int span = repeated ? 40 * size : size;
            ulong from = Resolve(ref r, r.Chance(90) ? span : size, narrow, i.MemorySegment, s);
            ulong to = r.Chance(75) ? Resolve(ref r, r.Chance(90) ? span : size, narrow, Register.ES, s) : from + (ulong)(r.Below(64) - 32);
            s->Gpr[Rsi] = narrow ? (uint)from | high : from | high;
            s->Gpr[Rdi] = narrow ? (uint)to | high : to | high;
            if (repeated)
                s->Gpr[Rcx] = (ulong)r.Below(r.Chance(20) ? 3 : 40) | high;
            if ((s->Rflags & Rflags.DF) == 0 && r.Chance(30))
                s->Rflags |= Rflags.DF;
            if (i.Mnemonic is Mnemonic.Cmpsb or Mnemonic.Cmpsw or Mnemonic.Cmpsd or Mnemonic.Cmpsq
                or Mnemonic.Scasb or Mnemonic.Scasw or Mnemonic.Scasd or Mnemonic.Scasq)
                EqualRun(ref r, s, to + SegmentBase(Register.ES, s), size);
        }
        return true;
    }

    private static int StringElement(in Instruction i) => i.Mnemonic switch
    {
        Mnemonic.Movsw or Mnemonic.Cmpsw or Mnemonic.Stosw or Mnemonic.Lodsw or Mnemonic.Scasw => 2,
        Mnemonic.Movsd or Mnemonic.Cmpsd or Mnemonic.Stosd or Mnemonic.Lodsd or Mnemonic.Scasd => 4,
        Mnemonic.Movsq or Mnemonic.Cmpsq or Mnemonic.Stosq or Mnemonic.Lodsq or Mnemonic.Scasq => 8,
        _ => 1,
    };

    /// <summary>A run of equal bytes, so that comparisons go on for more than one element.</summary>
    private static void EqualRun(ref FuzzRandom r, CaseInput* s, ulong at, int size)
    {
        uint length = (uint)(size * r.Below(30));
        ulong start = at - ((s->Rflags & Rflags.DF) != 0 ? length : 0);
        if (length == 0 || !IsWritable(start, length) || r.Chance(30))
            return;
        byte fill = r.Chance(50) ? (byte)s->Gpr[Rax] : (byte)0;
        if (fill == (byte)s->Gpr[Rax])
            s->Gpr[Rax] = fill * 0x0101_0101_0101_0101UL;
        s->PatchOffset = (uint)(start - Sandbox.DataAddress);
        s->PatchLength = length;
        new Span<byte>(s->Patch, (int)length).Fill(fill);
    }

    /// <summary>Offset whose linear address is a <see cref="Target"/>.</summary>
    private ulong Resolve(ref FuzzRandom r, int size, bool narrow, Register segment, CaseInput* s)
    {
        ulong target = Target(ref r, size), b = SegmentBase(segment, s);
        if ((narrow || bits == 16) && !IsInWindow(target))
            target = Interior(ref r, size, 1);
        if (narrow && target < b)
        {
            s->FsBase = s->GsBase = 0;
            b = 0;
        }
        return target - b;
    }

    private static bool UsesNarrowAddress(in Instruction i)
    {
        if (i.MemoryBase.IsGPR32() || i.MemoryIndex.IsGPR32() || i.MemoryBase == Register.EIP)
            return true;
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) is OpKind.MemorySegESI or OpKind.MemorySegEDI or OpKind.MemoryESEDI)
                return true;
        }
        return false;
    }

    private bool PatchStack(CaseInput* s, ulong value, int size)
    {
        ulong at = bits == 16 ? Sandbox.WordDataBase + (ushort)s->Gpr[Rsp] : s->Gpr[Rsp];
        if (at + (ulong)size <= Sandbox.DataAddress || at >= DataEnd)
            return true; // faults
        return Patch(s, at, &value, size);
    }

    /// <summary>All bytes are on the writable data pages. The end of a range may wrap: a string that runs down from offset 12 begins below 2^64.</summary>
    internal static bool IsWritable(ulong at, ulong size) => size <= Sandbox.DataWritable && at - Sandbox.DataAddress <= Sandbox.DataWritable - size;

    private static bool Patch(CaseInput* s, ulong at, void* value, int size)
    {
        if (!IsWritable(at, (ulong)size) || size > Sandbox.MaxPatch)
            return false;
        s->PatchOffset = (uint)(at - Sandbox.DataAddress);
        s->PatchLength = (uint)size;
        Buffer.MemoryCopy(value, s->Patch, Sandbox.MaxPatch, size);
        return true;
    }

    // ---- containment

    /// <summary>Every access the instruction can make is in the sandbox's window or at a non-canonical address.</summary>
    private bool IsContained(in Instruction i, CaseInput* s)
    {
        if (i.IsVsib || bits == 16)
            return true; // 16-bit segments are inside the window
        InstructionInfo info = _infoFactory.GetInfo(i, InstructionInfoOptions.NoRegisterUsage);
        foreach (UsedMemory m in info.GetUsedMemory())
        {
            if (i.Mnemonic == Mnemonic.Lea)
                break;
            ulong at = Linear(m, s);
            if (bits == 32 ? !IsInWindow((uint)at) && (uint)at >= 0x10000 : IsCanonical(at) && !IsInWindow(at))
                return false;
        }
        return true;
    }

    /// <summary>The line is in the window, or no processor has it. The decoder's tables do not know CLZERO's operand.</summary>
    private bool IsClzeroContained(in Instruction i, CaseInput* s)
    {
        ulong at = ClzeroAddress(i, s);
        return bits == 16 || (bits == 32 ? IsInWindow(at) || at < 0x10000 : IsInWindow(at) || !IsCanonical(at));
    }

    /// <summary>First linear address of what CLZERO zeros.</summary>
    internal static ulong ClzeroAddress(in Instruction i, CaseInput* s)
    {
        ulong offset = i.Code switch { Code.Clzerow => (ushort)s->Gpr[Rax], Code.Clzerod => (uint)s->Gpr[Rax], _ => s->Gpr[Rax] };
        ulong at = offset + i.SegmentPrefix switch { Register.FS => s->FsBase, Register.GS => s->GsBase, _ => s->Bits == 16 ? Sandbox.WordDataBase : 0 };
        return (s->Bits == 64 ? at : (uint)at) & ~63UL;
    }

    /// <summary>Linear address of the instruction's explicit memory operand in the state of <paramref name="s"/>.</summary>
    internal static ulong ExplicitAddress(in Instruction i, CaseInput* s)
    {
        ulong offset = i.MemoryDisplacement64;
        if (i.MemoryBase is not (Register.None or Register.RIP or Register.EIP))
            offset += Value(i.MemoryBase, s);
        if (i.MemoryIndex != Register.None)
            offset += Value(i.MemoryIndex, s) * (ulong)i.MemoryIndexScale;
        if (i.MemoryBase.IsGPR16() || i.MemoryIndex.IsGPR16() || i.MemoryDisplSize == 2)
            offset = (ushort)offset;
        else if (UsesNarrowAddress(i) || i.MemoryBase == Register.None && i.MemoryIndex == Register.None && i.MemoryDisplSize == 4 && s->Bits != 64)
            offset = (uint)offset;
        ulong segment = i.MemorySegment switch { Register.FS => s->FsBase, Register.GS => s->GsBase, _ => s->Bits == 16 ? Sandbox.WordDataBase : 0 };
        return offset + segment;
    }

    private ulong Linear(in UsedMemory m, CaseInput* s)
    {
        ulong offset = m.Displacement;
        if (m.Base is not (Register.None or Register.RIP or Register.EIP))
            offset += Value(m.Base, s);
        if (m.Index != Register.None)
            offset += Value(m.Index, s) * (ulong)m.Scale;
        if (m.AddressSize == CodeSize.Code32)
            offset = (uint)offset;
        else if (m.AddressSize == CodeSize.Code16)
            offset = (ushort)offset;
        return offset + SegmentBase(m.Segment, s);
    }

    private static ulong Value(Register register, CaseInput* s)
    {
        ulong v = s->Gpr[Number(register)];
        return register.GetSize() switch { 1 => (byte)v, 2 => (ushort)v, 4 => (uint)v, _ => v };
    }
}

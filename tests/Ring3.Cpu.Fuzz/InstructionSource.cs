using Iced.Intel;

namespace Ring3.Differential;

/// <summary>
/// Random instruction bytes. For a chosen <see cref="Code"/> it writes opcode, mandatory prefix and operand-size prefixes as the opcode map says, and
/// leaves everything else (ModRM, SIB, displacement,
/// immediate, REX/VEX register bits, redundant prefixes) to chance; the decoder then says which instruction that is. So encodings that no assembler
/// writes are covered as well.
/// </summary>
internal sealed class InstructionSource
{
    private readonly int _bits;
    private readonly Code[] _codes;
    private readonly OpCodeInfo[] _info;
    private readonly bool[] _usesVvvv, _registerInOpcode;
    private readonly byte[] _bytes = new byte[32];
    private readonly ByteArrayCodeReader _reader;
    private readonly Decoder _decoder;

    internal InstructionSource(Code[] codes, int bits)
    {
        _bits = bits;
        _codes = codes;
        _info = [.. codes.Select(c => c.ToOpCode())];
        _usesVvvv = [.. _info.Select(i => AnyOperand(i, "vvvv"))];
        _registerInOpcode = [.. _info.Select(i => AnyOperand(i, "_opcode"))];
        _reader = new ByteArrayCodeReader(_bytes);
        _decoder = Decoder.Create(bits, _reader);
    }

    internal int Count => _codes.Length;
    /// <summary>Bytes of the last instruction; what follows its length is noise.</summary>
    internal ReadOnlySpan<byte> Bytes => _bytes;

    /// <summary>Every instruction that user code can run in 64-bit (or 32-bit) mode and that is not excluded.</summary>
    internal static Code[] AllCodes(Exclusions exclusions, Func<Code, bool> supported, int bits = 64) =>
    [
        .. Enum.GetValues<Code>().Where(c => c != Code.INVALID && exclusions.Reason(c, bits) is null && c.ToOpCode() is { IsInstruction: true } info
            && (bits switch { 64 => info.Mode64, 32 => info.Mode32, _ => info.Mode16 }) && supported(c)),
    ];

    /// <summary>Random bytes for the code at <paramref name="index"/>, decoded at <paramref name="rip"/>; any instruction may come out.</summary>
    internal Instruction Next(ref FuzzRandom r, int index, ulong rip)
    {
        OpCodeInfo info = _info[index];
        for (int i = 0; i < _bytes.Length; i += 8)
            BitConverter.TryWriteBytes(_bytes.AsSpan(i), r.Next());
        int n = info.Encoding == EncodingKind.VEX ? Vex(ref r, index) : Legacy(ref r, index);
        if (info.IsGroup)
            _bytes[n] = (byte)((_bytes[n] & 0xc7) | info.GroupIndex << 3);
        if (info.IsRmGroup)
            _bytes[n] = (byte)((_bytes[n] & 0xf8) | info.RmGroupIndex | 0xc0);
        else if (r.Chance(25))
            _bytes[n] |= 0xc0;
        return Decode(rip);
    }

    /// <summary>Plain random bytes, with a bias towards prefixes and the two-byte map.</summary>
    internal Instruction NextRaw(ref FuzzRandom r, ulong rip)
    {
        for (int i = 0; i < _bytes.Length; i += 8)
            BitConverter.TryWriteBytes(_bytes.AsSpan(i), r.Next());
        int n = 0;
        while (n < 14 && r.Chance(30))
            _bytes[n++] = r.Pick<byte>([0x66, 0xf2, 0xf3, 0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x67, 0xf0, 0x48, 0x41, 0x4f]);
        switch (r.Below(6))
        {
            case 0: _bytes[n] = 0x0f; break;
            case 1: _bytes[n] = 0x0f; _bytes[n + 1] = 0x38; break;
            case 2: _bytes[n] = 0x0f; _bytes[n + 1] = 0x3a; break;
            case 3: _bytes[n] = (byte)(0xc4 + r.Below(2)); break;
        }
        return Decode(rip);
    }

    /// <summary>Decodes the current bytes again, after the caller changed a displacement or immediate.</summary>
    internal Instruction Decode(ulong rip)
    {
        _reader.Position = 0;
        _decoder.IP = rip;
        _decoder.Decode(out Instruction instruction);
        return instruction;
    }

    /// <summary>
    /// A near branch in 64-bit mode with an operand-size prefix: ignored on Intel, 16-bit on AMD. LOOPE and LOOPNE with a REP prefix: the prefix is
    /// reserved, and chooses the condition on AMD.
    /// </summary>
    internal bool IsVendorSpecific(in Instruction instruction)
    {
        if (instruction.Mnemonic is Mnemonic.Loope or Mnemonic.Loopne && _bytes.AsSpan(0, instruction.Length).IndexOfAny((byte)0xf2, (byte)0xf3) >= 0)
            return true;
        if (_bits != 64 || instruction.FlowControl is FlowControl.Next or FlowControl.Exception)
            return false;
        for (int i = 0; i < instruction.Length; i++)
        {
            if (_bytes[i] == 0x66)
                return true;
            if (_bytes[i] is not (0x2e or 0x36 or 0x3e or 0x26 or 0x64 or 0x65 or 0x67 or 0xf2 or 0xf3 or 0xf0 or (>= 0x40 and <= 0x4f)))
                return false;
        }
        return false;
    }

    /// <summary>
    /// Replaces ModRM, SIB and displacement by a RIP-relative operand; the immediate moves behind it. False when the instruction has no displacement to
    /// find its place by.
    /// </summary>
    internal bool MakeRipRelative(ref Instruction instruction)
    {
        ConstantOffsets offsets = _decoder.GetConstantOffsets(instruction);
        // The displacement follows ModRM, or ModRM and SIB: ModRM is the byte with mod 1 or 2 and the matching rm.
        if (!offsets.HasDisplacement || instruction.MemoryBase == Register.None)
            return false;
        bool sib = (_bytes[offsets.DisplacementOffset - 1] & 0xc7)
            is not (0x40 or 0x41 or 0x42 or 0x43 or 0x45 or 0x46 or 0x47 or 0x80 or 0x81 or 0x82 or 0x83 or 0x85 or 0x86 or 0x87);
        int modrm = offsets.DisplacementOffset - (sib ? 2 : 1);
        if (_bytes[modrm] >> 6 is not (1 or 2) || (_bytes[modrm] & 7) == 4 != sib)
            return false;
        _bytes[modrm] = (byte)(_bytes[modrm] & 0x38 | 5);
        instruction = Decode(instruction.IP);
        return true;
    }

    internal ConstantOffsets Offsets(in Instruction instruction) => _decoder.GetConstantOffsets(instruction);

    internal void Patch(int offset, ulong value, int bytes)
    {
        for (int i = 0; i < bytes; i++)
            _bytes[offset + i] = (byte)(value >> (8 * i));
    }

    private int Legacy(ref FuzzRandom r, int index)
    {
        OpCodeInfo info = _info[index];
        int n = 0;
        if (r.Chance(8))
            _bytes[n++] = r.Pick<byte>([0x2e, 0x36, 0x3e, 0x26, 0x64, 0x65, 0x66, 0xf2, 0xf3, 0x67]);
        if (r.Chance(12))
            _bytes[n++] = (byte)(0x64 + r.Below(2));
        if (info.CanUseLockPrefix ? r.Chance(30) : r.Below(1000) < 3)
            _bytes[n++] = 0xf0;
        if ((info.CanUseRepPrefix || info.CanUseRepnePrefix) && r.Chance(60))
            _bytes[n++] = (byte)(0xf2 + r.Below(2));
        if (info.AddressSize != 0 && info.AddressSize != _bits || r.Chance(7))
            _bytes[n++] = 0x67;
        switch (info.MandatoryPrefix)
        {
            case MandatoryPrefix.P66: _bytes[n++] = 0x66; break;
            case MandatoryPrefix.PF3: _bytes[n++] = 0xf3; break;
            case MandatoryPrefix.PF2: _bytes[n++] = 0xf2; break;
        }
        if (info.OperandSize == (_bits == 16 ? 32 : 16))
            _bytes[n++] = 0x66;
        bool wide = info.OperandSize == 64 && !(info.DefaultOpSize64 || info.ForceOpSize64) || r.Chance(5);
        if (_bits == 64 && (wide || r.Chance(60)))
            _bytes[n++] = (byte)(0x40 | (wide ? 8 : 0) | r.Below(8));
        switch (info.Table)
        {
            case OpCodeTableKind.T0F: _bytes[n++] = 0x0f; break;
            case OpCodeTableKind.T0F38: _bytes[n++] = 0x0f; _bytes[n++] = 0x38; break;
            case OpCodeTableKind.T0F3A: _bytes[n++] = 0x0f; _bytes[n++] = 0x3a; break;
        }
        return OpCode(index, n);
    }

    private int Vex(ref FuzzRandom r, int index)
    {
        OpCodeInfo info = _info[index];
        int n = 0;
        if (r.Chance(8))
            _bytes[n++] = (byte)(0x64 + r.Below(2));
        if (r.Chance(5))
            _bytes[n++] = 0x67;
        if (r.Below(1000) < 3)
            _bytes[n++] = r.Pick<byte>([0x66, 0xf2, 0xf3, 0xf0, 0x48]);
        int pp = info.MandatoryPrefix switch { MandatoryPrefix.P66 => 1, MandatoryPrefix.PF3 => 2, MandatoryPrefix.PF2 => 3, _ => 0 };
        int vvvv = _usesVvvv[index] || r.Chance(1) ? r.Below(16) : 15;
        // In 32-bit mode the inverted high register bits must be ones: otherwise the bytes are LES or LDS.
        int high = _bits == 64 ? r.Below(8) : r.Below(2) | 6;
        if (_bits != 64)
            vvvv |= 8;
        int l = info.IsLIG ? r.Below(2) : (int)info.L & 1;
        int w = info.IsWIG ? r.Below(2) : (int)info.W;
        int map = info.Table switch { OpCodeTableKind.T0F => 1, OpCodeTableKind.T0F38 => 2, _ => 3 };
        if (map == 1 && w == 0 && r.Chance(40))
        {
            _bytes[n++] = 0xc5;
            _bytes[n++] = (byte)(high >> 2 << 7 | vvvv << 3 | l << 2 | pp);
        }
        else
        {
            _bytes[n++] = 0xc4;
            _bytes[n++] = (byte)(high << 5 | map);
            _bytes[n++] = (byte)(w << 7 | vvvv << 3 | l << 2 | pp);
        }
        return OpCode(index, n);
    }

    private static bool AnyOperand(OpCodeInfo info, string suffix)
    {
        for (int i = 0; i < info.OpCount; i++)
        {
            if (info.GetOpKind(i).ToString().EndsWith(suffix, StringComparison.Ordinal))
                return true;
        }
        return false;
    }

    private int OpCode(int index, int n)
    {
        OpCodeInfo info = _info[index];
        if (info.OpCodeLength == 2)
            _bytes[n++] = (byte)(info.OpCode >> 8);
        byte op = (byte)info.OpCode;
        _bytes[n] = _registerInOpcode[index] ? (byte)((op & 0xf8) | (_bytes[n] & 7)) : op;
        return n + 1;
    }
}

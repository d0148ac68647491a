using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>What the decoder's tables do not say about vector instructions. SPEC: SDM volume 2, "Exception Type" of each instruction.</summary>
internal static class VectorFacts
{
    /// <summary>Mnemonics (without the V of VEX) that read MXCSR or set its status flags, by prefix.</summary>
    private static readonly string[] s_fpPrefixes =
        ["ADDP", "ADDS", "SUBP", "SUBS", "MULP", "MULS", "DIVP", "DIVS", "SQRT", "MINP", "MINS", "MAXP", "MAXS", "CMPP", "CMPS", "COMIS", "UCOMIS", "CVT",
            "ROUND",
         "DPP", "HADDP", "HSUBP", "FMADD", "FMSUB", "FNMADD", "FNMSUB"];

    public static bool UsesMxcsr(Code code)
    {
        // Exact conversions.
        if (code is Code.Cvtsi2sd_xmm_rm32 or Code.VEX_Vcvtsi2sd_xmm_xmm_rm32 or Code.Cvtpi2pd_xmm_mmm64)
            return false;
        string name = code.Mnemonic().ToString().ToUpperInvariant();
        if (name is "CVTDQ2PD" or "VCVTDQ2PD")
            return false;
        ReadOnlySpan<char> stem = name[0] == 'V' ? name.AsSpan(1) : name;
        foreach (string prefix in s_fpPrefixes)
            if (stem.StartsWith(prefix, StringComparison.Ordinal))
                return true;
        return false;
    }

    /// <summary>Whether the last operand is an immediate byte.</summary>
    public static bool HasImmediate(Code code)
    {
        OpCodeInfo info = code.ToOpCode();
        return info.OpCount != 0 && info.GetOpKind(info.OpCount - 1) == OpCodeOperandKind.imm8;
    }

    /// <summary>
    /// Whether a misaligned memory operand is #GP: legacy 128-bit operands but for the explicitly unaligned ones, and the aligned moves of VEX.
    /// </summary>
    public static bool MustBeAligned(Code code, bool vex)
    {
        Mnemonic m = code.Mnemonic();
        if (m is Mnemonic.Movups or Mnemonic.Movupd or Mnemonic.Movdqu or Mnemonic.Lddqu or Mnemonic.Pcmpestri or Mnemonic.Pcmpestrm or Mnemonic.Pcmpistri
            or Mnemonic.Pcmpistrm
            or Mnemonic.Pcmpestri64 or Mnemonic.Pcmpestrm64)
            return false;
        if (vex)
            return IsAlignedMove(m);
        return code.ToOpCode().MemorySize.GetSize() == 16;
    }

    /// <summary>Moves whose purpose is an aligned operand.</summary>
    public static bool IsAlignedMove(Mnemonic m)
        => m is Mnemonic.Movaps or Mnemonic.Movapd or Mnemonic.Movdqa or Mnemonic.Movntps or Mnemonic.Movntpd or Mnemonic.Movntdq or Mnemonic.Movntdqa
            or Mnemonic.Vmovaps or Mnemonic.Vmovapd or Mnemonic.Vmovdqa or Mnemonic.Vmovntps or Mnemonic.Vmovntpd or Mnemonic.Vmovntdq or Mnemonic.Vmovntdqa;

    /// <summary>SHA instructions: the manuals ask for alignment; AMD's processors do not.</summary>
    public static bool IsSha(Mnemonic m)
        => m is Mnemonic.Sha1msg1 or Mnemonic.Sha1msg2 or Mnemonic.Sha1nexte or Mnemonic.Sha1rnds4 or Mnemonic.Sha256msg1 or Mnemonic.Sha256msg2
            or Mnemonic.Sha256rnds2;
}

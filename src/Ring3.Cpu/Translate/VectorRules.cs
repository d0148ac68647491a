using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>
/// What of the host's units holds the guest's state while translated code runs. A trace that needs some of them tests <see cref="CpuState.Units"/> where it
/// begins; callbacks bring the state up to date, and load the units again before they go on.
/// </summary>
[Flags]
internal enum Units : byte
{
    None = 0,
    /// <summary>Legacy SSE may be executed, and the low halves of the host's vector registers are the guest's.</summary>
    Sse = 1,
    /// <summary>VEX instructions may be executed, and all of the host's vector registers are the guest's.</summary>
    Avx = 2,
    /// <summary>MXCSR is the guest's, and masks every exception.</summary>
    Mxcsr = 4,
    /// <summary>
    /// The x87 unit holds the guest's registers, which are those of MMX too, and masks every exception (<see cref="X87Unit.Live"/>).
    /// </summary>
    X87 = 8,
}

/// <summary>Which vector, MMX and x87 instructions are part of translated code: those that have a thunk, which is the white list, and a few others.</summary>
/// <remarks>SAFETY: none; works on decoded instructions.</remarks>
internal static class VectorRules
{
    private const byte Unknown = 255;

    /// <summary>By code, without and with a memory operand.</summary>
    // BENIGN-RACE: every thread computes the same byte.
    private static readonly byte[] s_needs = CreateNeeds();

    private static byte[] CreateNeeds()
    {
        byte[] needs = new byte[2 * VectorHandlers.CodeCount];
        needs.AsSpan().Fill(Unknown);
        return needs;
    }

    /// <summary>Whether the instruction works on registers of the vector or the x87 unit, besides memory and general-purpose ones, and stays itself.</summary>
    public static bool CanEmit(in Instruction i)
    {
        if (i.Code is Code.VEX_Vzeroupper or Code.VEX_Vzeroall or Code.Emms || IsX87(i.Code))
            return true;
        return VectorHandlers.HasForm(i.Code) && !i.HasRepPrefix && !i.HasRepnePrefix && !i.HasLockPrefix;
    }

    /// <summary>Whether the unit's pointers follow the instruction.</summary>
    public static bool IsNoted(Code code) => X87Handlers.HasForm(code) && code != Code.Wait;

    /// <summary>With the unit live its words are the guest's, and no exception is pending that WAIT could raise.</summary>
    private static bool IsX87(Code code)
        => X87Handlers.HasForm(code) || code is Code.Fnstsw_AX or Code.Fnstsw_m2byte or Code.Fnstcw_m2byte or Code.Wait;

    /// <summary>Whether the instruction copies its operand, which faults then before anything else can.</summary>
    public static bool IsMove(in Instruction i) => i.Mnemonic is Mnemonic.Movups or Mnemonic.Movaps or Mnemonic.Movdqu or Mnemonic.Movdqa or Mnemonic.Movq
        or Mnemonic.Movd or Mnemonic.Movss or Mnemonic.Movsd or Mnemonic.Movhps or Mnemonic.Movlps or Mnemonic.Vmovups or Mnemonic.Vmovaps
        or Mnemonic.Vmovdqu or Mnemonic.Vmovdqa or Mnemonic.Vmovq or Mnemonic.Vmovd;

    /// <summary>Whether a misaligned memory operand is #GP.</summary>
    public static bool MustBeAligned(in Instruction i) => !IsX87(i.Code) && VectorFacts.MustBeAligned(i.Code, i.Encoding == EncodingKind.VEX);

    public static Units Needs(in Instruction i, bool memory)
    {
        ref byte known = ref s_needs[2 * (int)i.Code + (memory ? 1 : 0)];
        if (known == Unknown)
            known = (byte)Learn(i);
        return (Units)known;
    }

    private static Units Learn(in Instruction i)
    {
        if (IsX87(i.Code) || i.Code == Code.Emms)
            return Units.X87;
        // An operand in memory instead of an MMX register leaves the x87 unit alone.
        bool mmx = false, vector = false;
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) != Iced.Intel.OpKind.Register)
                continue;
            mmx |= i.GetOpRegister(n).IsMM();
            vector |= i.GetOpRegister(n).IsVectorRegister();
        }
        return (mmx ? Units.X87 : 0) | (i.Encoding == EncodingKind.VEX ? Units.Avx : mmx && !vector ? 0 : Units.Sse)
            | (VectorFacts.UsesMxcsr(i.Code) ? Units.Mxcsr : 0);
    }

    /// <summary>
    /// The instruction as it is emitted: stores around the caches become ordinary ones, because what orders them in the guest need not be what orders them
    /// here.
    /// </summary>
    public static Code Emitted(Code code) => code switch
    {
        Code.Movntq_m64_mm => Code.Movq_mmm64_mm,
        Code.Movntps_m128_xmm => Code.Movaps_xmmm128_xmm,
        Code.Movntpd_m128_xmm => Code.Movapd_xmmm128_xmm,
        Code.Movntdq_m128_xmm => Code.Movdqa_xmmm128_xmm,
        Code.VEX_Vmovntps_m128_xmm => Code.VEX_Vmovaps_xmmm128_xmm,
        Code.VEX_Vmovntpd_m128_xmm => Code.VEX_Vmovapd_xmmm128_xmm,
        Code.VEX_Vmovntdq_m128_xmm => Code.VEX_Vmovdqa_xmmm128_xmm,
        Code.VEX_Vmovntps_m256_ymm => Code.VEX_Vmovaps_ymmm256_ymm,
        Code.VEX_Vmovntpd_m256_ymm => Code.VEX_Vmovapd_ymmm256_ymm,
        Code.VEX_Vmovntdq_m256_ymm => Code.VEX_Vmovdqa_ymmm256_ymm,
        _ => code,
    };
}

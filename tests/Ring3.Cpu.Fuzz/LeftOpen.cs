using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>
/// Differences between processors that the manuals leave open, as far as two processors have shown them. On a family that a model describes they are
/// mismatches like any other; on one that no model knows they are reported by name and fail
/// nothing. What matches no rule here is defined, and fails everywhere. Models may differ in nothing else.
/// </summary>
/// <remarks>SAFETY: reads inside the given case and outputs.</remarks>
internal static unsafe class LeftOpen
{
    /// <summary>
    /// Name of the rule that covers the difference, or null. A sequence is covered when one of its instructions is: what follows it sees the
    /// difference.
    /// </summary>
    internal static string? Rule(in CaseMeta meta, CaseInput* s, ReadOnlySpan<byte> code, CaseOutput* native, CaseOutput* guest)
    {
        if (meta.Kind != CaseKind.Compare)
            return null;
        var decoder = Decoder.Create((int)s->Bits, code.ToArray(), s->Rip);
        bool aligned = (s->Rflags & Rflags.AC) != 0;
        while (decoder.IP < s->NextRip)
        {
            Instruction i = decoder.Decode();
            if (Rule(i, s, aligned, native, guest) is { } rule)
                return rule;
            aligned |= i.Mnemonic is Mnemonic.Popf or Mnemonic.Popfd or Mnemonic.Popfq;
        }
        return null;
    }

    /// <param name="aligned">RFLAGS.AC may be set.</param>
    private static string? Rule(in Instruction i, CaseInput* s, bool aligned, CaseOutput* native, CaseOutput* guest)
    {
        bool memory = HasMemory(i), fault = Faulted(native) || Faulted(guest);
        if (i.Code is Code.Shld_rm16_r16_CL or Code.Shrd_rm16_r16_CL or Code.Shld_rm16_r16_imm8 or Code.Shrd_rm16_r16_imm8)
            return ((i.Op2Kind == OpKind.Register ? s->Gpr[1] : i.Immediate8) & 31) > 16 || i.Op2Kind == OpKind.Register
                ? "SHLD, SHRD of 16 bits by more than 16" : null;
        if (i.Mnemonic == Mnemonic.Push && i.Op0Kind == OpKind.Register && i.Op0Register.IsSegmentRegister())
            return "bytes that PUSH of a segment register writes";
        if (i.Mnemonic == Mnemonic.Call && fault)
            return "stack of a CALL whose target faults";
        if (i.Mnemonic is Mnemonic.Cmpsb or Mnemonic.Cmpsw or Mnemonic.Cmpsd or Mnemonic.Cmpsq or Mnemonic.Bound && fault)
            return "which operand faults first";
        if ((i.HasRepPrefix || i.HasRepnePrefix) && i.IsStringInstruction && (s->Bits == 64 && UsesNarrowAddress(i) || fault))
            return "registers and flags of a string instruction that stops";
        if (!memory)
            return null;
        if (fault && i.Mnemonic is Mnemonic.Maskmovq or Mnemonic.Maskmovdqu or Mnemonic.Vmaskmovdqu or Mnemonic.Vmaskmovps or Mnemonic.Vmaskmovpd
            or Mnemonic.Vpmaskmovd or Mnemonic.Vpmaskmovq)
            return "address of a masked access that faults";
        if (i.Mnemonic is >= Mnemonic.Sha1msg1 and <= Mnemonic.Sha256rnds2 && fault)
            return "alignment of a SHA operand";
        if (i.IsVsib && fault)
            return "elements that a gather has loaded when it faults";
        if ((i.MemorySize.GetSize() >= 16 || i.Encoding == EncodingKind.VEX) && aligned
            && (native->Vector == Vector.AC || guest->Vector == Vector.AC) && !IsStateImage(i))
            return "alignment check of a vector access";
        if (i.Mnemonic == Mnemonic.Vcvtps2ph)
            return "exceptions of a conversion whose store faults";
        if (fault && UsesMmx(i))
            return "x87 state of an MMX instruction that faults";
        if (fault && i.Mnemonic is Mnemonic.Fst or Mnemonic.Fstp or Mnemonic.Fist or Mnemonic.Fistp or Mnemonic.Fisttp or Mnemonic.Fbstp)
            return "x87 exceptions of a store that faults";
        return null;
    }

    private static bool Faulted(CaseOutput* o) => o->Vector is Vector.PF or Vector.GP or Vector.SS or Vector.AC or Vector.XM or Vector.MF;

    private static bool HasMemory(in Instruction i)
    {
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) == OpKind.Memory)
                return true;
        }
        return i.Mnemonic is Mnemonic.Maskmovq or Mnemonic.Maskmovdqu or Mnemonic.Vmaskmovdqu;
    }

    private static bool IsStateImage(in Instruction i) => i.Mnemonic is Mnemonic.Fxsave or Mnemonic.Fxsave64 or Mnemonic.Fxrstor or Mnemonic.Fxrstor64;

    private static bool UsesMmx(in Instruction i)
    {
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) == OpKind.Register && i.GetOpRegister(n).IsMM())
                return true;
        }
        return false;
    }

    private static bool UsesNarrowAddress(in Instruction i)
    {
        for (int n = 0; n < i.OpCount; n++)
        {
            if (i.GetOpKind(n) is OpKind.MemorySegESI or OpKind.MemorySegEDI or OpKind.MemoryESEDI)
                return true;
        }
        return false;
    }
}

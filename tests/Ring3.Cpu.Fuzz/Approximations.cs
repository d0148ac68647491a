using System.Runtime.CompilerServices;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>
/// Instructions whose results each processor chooses within a bound. The machine takes them from the host's own unit, so another processor's recorded
/// result is compared by the manual's bound.
/// SPEC: SDM volume 2, "RCPPS", "RSQRTPS": the relative error is at most 1.5 * 2^-12; volume 1, "Transcendental Instruction Accuracy".
/// </summary>
/// <remarks>SAFETY: reads and writes inside the given outputs.</remarks>
internal static unsafe class Approximations
{
    /// <summary>Two results of the same bound on either side of the exact one.</summary>
    private const double Apart = 2 * 1.5 / 4096;

    /// <summary>One of the instructions is an approximation.</summary>
    internal static bool IsIn(in CaseMeta meta, CaseInput* s, ReadOnlySpan<byte> code)
    {
        if (meta.Kind != CaseKind.Compare)
            return false;
        var decoder = Decoder.Create((int)s->Bits, code.ToArray(), s->Rip);
        while (decoder.IP < s->NextRip)
        {
            if (IsApproximation(decoder.Decode().Mnemonic))
                return true;
        }
        return false;
    }

    private static bool IsApproximation(Mnemonic m) => m is Mnemonic.Rcpps or Mnemonic.Rcpss or Mnemonic.Vrcpps or Mnemonic.Vrcpss
        or Mnemonic.Rsqrtps or Mnemonic.Rsqrtss or Mnemonic.Vrsqrtps or Mnemonic.Vrsqrtss
        or Mnemonic.Fsin or Mnemonic.Fcos or Mnemonic.Fsincos or Mnemonic.Fptan or Mnemonic.Fpatan or Mnemonic.F2xm1 or Mnemonic.Fyl2x or Mnemonic.Fyl2xp1;

    /// <summary>Gives <paramref name="guest"/> the recorded value in each vector element where both are within the bound.</summary>
    internal static void Adopt(CaseOutput* native, CaseOutput* guest)
    {
        foreach (int part in (int[])[XsaveArea.Xmm, XsaveArea.YmmHigh])
        {
            for (int at = part; at < part + 256; at += 4)
            {
                float a = Unsafe.ReadUnaligned<float>(native->Xsave + at), b = Unsafe.ReadUnaligned<float>(guest->Xsave + at);
                if (float.IsNormal(a) && float.IsNormal(b) && Math.Abs((double)a - b) <= Apart * Math.Abs((double)a))
                    Unsafe.WriteUnaligned(guest->Xsave + at, a);
            }
        }
    }
}

using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>
/// Cases that this host cannot run as the processor would. Generation knows nothing of the host, so that a seed means the same cases everywhere; such
/// cases are passed over when they have been generated.
/// </summary>
/// <remarks>SAFETY: reads inside the given case.</remarks>
internal sealed unsafe class HostLimits(HostProbes probes)
{
    private const int Line = 64;

    /// <summary>Why this host cannot run the case, or null.</summary>
    internal string? Reason(in CaseMeta meta, CaseInput* input, ReadOnlySpan<byte> code)
    {
        if (!probes.SingleSteps && (input->Rflags & Rflags.TF) != 0)
            return "TF (probe single-step)";
        if (!probes.ChecksAlignment && (input->Rflags & Rflags.AC) != 0)
            return "AC (probe alignment-check)";
        if (!probes.RunsSplitLocks && meta.Kind != CaseKind.Invalid && HasSplitLock(input, code))
            return "locked access across a cache line (probe split-lock)";
        return null;
    }

    /// <summary>One of the instructions locks the bus for bytes on both sides of a line's end.</summary>
    internal static bool HasSplitLock(CaseInput* s, ReadOnlySpan<byte> code)
    {
        if (code.IndexOf((byte)0xf0) < 0 && code.IndexOfAny((byte)0x86, (byte)0x87) < 0)
            return false;
        var decoder = Decoder.Create((int)s->Bits, code.ToArray(), s->Rip);
        while (decoder.IP < s->Rip + (ulong)code.Length)
        {
            Instruction i = decoder.Decode();
            if (IsLocked(i) && Crosses(i, s))
                return true;
        }
        return false;
    }

    private static bool IsLocked(in Instruction i) => (i.HasLockPrefix || i.Mnemonic == Mnemonic.Xchg)
        && (i.Op0Kind == OpKind.Memory || i.Op1Kind == OpKind.Memory);

    /// <summary>Behind the first instruction of a sequence, memory operands are RIP-relative: the initial state gives every address.</summary>
    private static bool Crosses(in Instruction i, CaseInput* s)
    {
        int size = i.MemorySize.GetSize();
        ulong at = Placement.ExplicitAddress(i, s);
        if (i.Mnemonic is Mnemonic.Bts or Mnemonic.Btr or Mnemonic.Btc && i.Op1Kind == OpKind.Register)
        {
            ulong value = s->Gpr[i.Op1Register.GetFullRegister() - Register.RAX];
            long bit = size switch { 2 => (short)value, 4 => (int)value, _ => (long)value };
            at += (ulong)(bit >> (size switch { 2 => 4, 4 => 5, _ => 6 }) << (size switch { 2 => 1, 4 => 2, _ => 3 }));
        }
        return (at & (Line - 1)) + (ulong)size > Line;
    }
}

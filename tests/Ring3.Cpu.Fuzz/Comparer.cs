using System.Globalization;
using System.Runtime.CompilerServices;
using System.Text;
using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>Compares the outcome of one case on both sides. Finding a difference is cheap; describing it is for the rare mismatch.</summary>
/// <remarks>SAFETY: reads inside the given cases.</remarks>
internal sealed unsafe class Comparer(UndefinedFlags undefined, HostProbes? probes)
{
    /// <summary>FOP, FIP and FDP are compared.</summary>
    internal bool ComparesPointers { get; set; } = probes is { ReportsX87Pointers: true };
    /// <summary>RFLAGS bits that are not compared: RF and TF depend on how the case was left, NT is not seen on some hosts.</summary>
    private readonly ulong _ignoredFlags = Rflags.RF | Rflags.TF | (probes is { ReportsNestedTask: false } ? Rflags.NT : 0);
    private static readonly string[] s_gpr = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"];

    /// <summary>Brings what the native side reports about branches into the guest's form: the branch has retired, RIP is its target.</summary>
    internal static void NormalizeNative(CaseInput* input, CaseOutput* o)
    {
        if (o->Vector == CaseOutput.NoVector)
            return;
        if (o->Vector == Vector.BP && o->Rip - 1 != input->Rip)
        {
            o->Rip--;
            Retired(o);
        }
        else if (o->Rip != input->Rip && o->Vector == Vector.PF && (o->ErrorCode & PageFaultError.I) != 0)
        {
            Retired(o);
        }
        if (o->Vector != Vector.PF)
            o->Cr2 = 0;
    }

    private static void Retired(CaseOutput* o)
    {
        o->Vector = CaseOutput.NoVector;
        o->ErrorCode = 0;
        o->Cr2 = 0;
    }

    /// <summary>True when both sides agree.</summary>
    internal bool Same(in CaseMeta meta, CaseInput* input, ReadOnlySpan<byte> code, CaseOutput* native, CaseOutput* guest) =>
        Compare(meta, input, code, native, guest, null);

    /// <summary>What differs, one item for each register, flag or line.</summary>
    internal string Describe(in CaseMeta meta, CaseInput* input, ReadOnlySpan<byte> code, CaseOutput* native, CaseOutput* guest)
    {
        var text = new StringBuilder();
        Compare(meta, input, code, native, guest, text);
        return text.ToString().Trim();
    }

    /// <summary>
    /// MXCSR.MM, AMD's mask of misaligned exceptions: setting it is #GP(0) on Intel's processors. SPEC: APM volume 1, "Misaligned Exception Mask".
    /// </summary>
    private const uint MisalignedMask = 1 << 17;

    /// <summary>The two sides are of different vendors' models: whether MXCSR.MM exists is no difference.</summary>
    internal bool SparesMisalignedMask { get; set; }

    private bool Compare(in CaseMeta meta, CaseInput* input, ReadOnlySpan<byte> code, CaseOutput* native, CaseOutput* guest, StringBuilder? report)
    {
        if (SparesMisalignedMask && (SetsMisalignedMask(native) && guest->Vector == Vector.GP || SetsMisalignedMask(guest) && native->Vector == Vector.GP))
            return true;
        bool differ = false;
        // Images of many parts are accessed in pieces: which piece comes first, and so which of two pages faults, is the processor's own business.
        bool pieces = native->Vector == Vector.PF
            && meta.Instruction.Mnemonic is Mnemonic.Fnstenv or Mnemonic.Fnsave or Mnemonic.Fldenv or Mnemonic.Frstor or Mnemonic.Fxsave or Mnemonic.Fxsave64
            or Mnemonic.Fxrstor or Mnemonic.Fxrstor64;
        bool otherOperand = IsOtherOperandOfCmps(meta.Instruction, input, native, guest);
        pieces |= native->Vector == Vector.PF && probes is { ReportsPageFaults: false };
        if (native->Vector != guest->Vector && !otherOperand || !pieces && !otherOperand && (native->ErrorCode != guest->ErrorCode
            || native->Cr2 != guest->Cr2))
        {
            report?.Append(CultureInfo.InvariantCulture, $" exception native={Name(native)} guest={Name(guest)}");
            if (report is null && meta.Kind != CaseKind.Invalid)
                return false;
            differ = true;
        }
        if (meta.Kind == CaseKind.Invalid)
            return !differ || IsTooLong(native, guest, code) || IsReadProcessorRegister(code);
        bool same = !differ;
        ulong undefinedFlags = meta.Count > 1 ? native->Vector == CaseOutput.NoVector ? meta.UndefinedAtEnd : meta.UndefinedAnywhere
            : native->Vector == CaseOutput.NoVector ? undefined.Mask(meta.Instruction, input) : 0;
        same &= Check(report, "rip", native->Rip, guest->Rip);
        same &= Check(report, "rflags", native->Rflags & ~(undefinedFlags | _ignoredFlags), guest->Rflags & ~(undefinedFlags | _ignoredFlags));
        for (int n = 0; n < 16; n++)
        {
            // With a 16-bit stack segment the host's kernel leaves noise in the high half of RSP when an interrupt returns.
            ulong mask = n == 4 && input->Bits == 16 ? uint.MaxValue : ulong.MaxValue;
            same &= Check(report, s_gpr[n], native->Gpr[n] & mask, guest->Gpr[n] & mask);
        }
        same &= Check(report, "fs.base", native->FsBase, guest->FsBase);
        if (probes is null or { KeepsUpperGsBase: true } || native->Signal == 0 || native->GsBase != 0 || (long)guest->GsBase >= 0)
            same &= Check(report, "gs.base", native->GsBase, guest->GsBase);
        same &= CompareVectors(report, native->Vector == Vector.XM, native->Xsave, guest->Xsave);
        same &= CompareX87(report, native->Xsave, guest->Xsave);
        if (ComparesPointers)
            same &= ComparePointers(report, native->Xsave, guest->Xsave);
        return same & CompareMemory(meta, input, native, guest, report);
    }

    private static bool SetsMisalignedMask(CaseOutput* o) => (Unsafe.ReadUnaligned<uint>(o->Xsave + XsaveArea.Mxcsr) & MisalignedMask) != 0;

    /// <summary>More than 15 bytes are #GP before anything else; how long an undefined instruction is only the processor knows.</summary>
    private static bool IsTooLong(CaseOutput* native, CaseOutput* guest, ReadOnlySpan<byte> code)
    {
        int prefixes = 0;
        while (prefixes < code.Length
            && code[prefixes] is 0x26 or 0x2e or 0x36 or 0x3e or 0x64 or 0x65 or 0x66 or 0x67 or 0xf0 or 0xf2 or 0xf3 or (>= 0x40 and <= 0x4f))
            prefixes++;
        // VEX, XOP and EVEX lead in with as many bytes again.
        if (prefixes < code.Length && code[prefixes] is 0x62 or 0x8f or 0xc4 or 0xc5)
            prefixes += 3;
        return native->Vector is Vector.GP or Vector.UD && guest->Vector is Vector.GP or Vector.UD && prefixes > 3;
    }

    /// <summary>AMD's RDPRU, which guests are not offered, also takes prefixes that the decoder refuses.</summary>
    private static bool IsReadProcessorRegister(ReadOnlySpan<byte> code) => code.IndexOf((ReadOnlySpan<byte>)[0x0f, 0x01, 0xfd]) >= 0;

    /// <summary>When both operands of CMPS fault: Zen 5 takes the one at RSI first, but whether always has not been seen.</summary>
    private bool IsOtherOperandOfCmps(in Instruction i, CaseInput* input, CaseOutput* native, CaseOutput* guest) =>
        probes is not null && ProcessorModel.Host.Family == ProcessorModel.Zen5.Family
            && i.Mnemonic is Mnemonic.Cmpsb or Mnemonic.Cmpsw or Mnemonic.Cmpsd or Mnemonic.Cmpsq && i.IsStringInstruction && native->Rip == input->Rip
            && guest->Rip == input->Rip
        && IsMemoryFault(native->Vector) && IsMemoryFault(guest->Vector);

    private static bool IsMemoryFault(uint vector) => vector is Vector.PF or Vector.GP or Vector.SS or Vector.AC;

    private static string Name(CaseOutput* o) => o->Vector switch
    {
        CaseOutput.NoVector => "none",
        CaseOutput.TimeoutVector => "timeout",
        CaseOutput.NotEnteredVector => "not entered",
        _ => string.Create(CultureInfo.InvariantCulture, $"#{o->Vector}({o->ErrorCode:x}) cr2={o->Cr2:x} rip={o->Rip:x}"),
    };

    private static bool Check(StringBuilder? report, string name, ulong native, ulong guest)
    {
        if (native == guest)
            return true;
        report?.Append(CultureInfo.InvariantCulture, $" {name} native={native:x} guest={guest:x}");
        return false;
    }

    private static bool CompareVectors(StringBuilder? report, bool faulted, byte* native, byte* guest)
    {
        // An unmasked overflow or underflow also reports whether the unbounded result is inexact; the machine, which sees the masked result, always reports it.
        const uint overflow = 1 << 3, underflow = 1 << 4, inexact = 1 << 5;
        uint a0 = Unsafe.ReadUnaligned<uint>(native + XsaveArea.Mxcsr), b0 = Unsafe.ReadUnaligned<uint>(guest + XsaveArea.Mxcsr),
            unmasked = ~(a0 >> 7) & a0 & (overflow | underflow);
        bool same = Check(report, "mxcsr", faulted && unmasked != 0 ? a0 | inexact : a0, faulted && unmasked != 0 ? b0 | inexact : b0);
        foreach ((int at, string name) in ((int, string)[])[(XsaveArea.Xmm, "xmm"), (XsaveArea.YmmHigh, "ymmh")])
        {
            if (new ReadOnlySpan<byte>(native + at, 256).SequenceEqual(new ReadOnlySpan<byte>(guest + at, 256)))
                continue;
            same = false;
            for (int n = 0; report is not null && n < 16; n++)
            {
                var a = new ReadOnlySpan<byte>(native + at + 16 * n, 16);
                var b = new ReadOnlySpan<byte>(guest + at + 16 * n, 16);
                if (!a.SequenceEqual(b))
                    report.Append(CultureInfo.InvariantCulture, $" {name}{n} native={Hex(a)} guest={Hex(b)}");
            }
        }
        return same;
    }

    private static bool CompareX87(StringBuilder? report, byte* native, byte* guest)
    {
        bool same = Check(report, "fcw", Unsafe.ReadUnaligned<ushort>(native + XsaveArea.Fcw), Unsafe.ReadUnaligned<ushort>(guest + XsaveArea.Fcw))
            & Check(report, "fsw", Unsafe.ReadUnaligned<ushort>(native + XsaveArea.Fsw), Unsafe.ReadUnaligned<ushort>(guest + XsaveArea.Fsw))
            & Check(report, "ftw", native[XsaveArea.Ftw], guest[XsaveArea.Ftw]);
        for (int n = 0; n < 8; n++)
        {
            byte* a = native + XsaveArea.St + 16 * n, b = guest + XsaveArea.St + 16 * n;
            if (Unsafe.ReadUnaligned<ulong>(a) == Unsafe.ReadUnaligned<ulong>(b) && Unsafe.ReadUnaligned<ushort>(a + 8) == Unsafe.ReadUnaligned<ushort>(b + 8))
                continue;
            same = false;
            report?.Append(CultureInfo.InvariantCulture, $" st{n} native={Hex(new(a, 10))} guest={Hex(new(b, 10))}");
        }
        return same;
    }

    private static bool ComparePointers(StringBuilder? report, byte* native, byte* guest) =>
        Check(report, "fop", Unsafe.ReadUnaligned<ushort>(native + XsaveArea.Fop), Unsafe.ReadUnaligned<ushort>(guest + XsaveArea.Fop))
        & Check(report, "fip", Unsafe.ReadUnaligned<ulong>(native + XsaveArea.Fip), Unsafe.ReadUnaligned<ulong>(guest + XsaveArea.Fip))
        & Check(report, "fdp", Unsafe.ReadUnaligned<ulong>(native + XsaveArea.Fdp), Unsafe.ReadUnaligned<ulong>(guest + XsaveArea.Fdp));

    private bool CompareMemory(in CaseMeta meta, CaseInput* input, CaseOutput* native, CaseOutput* guest, StringBuilder? report)
    {
        bool same = native->Diffs == guest->Diffs;
        if (!same)
            report?.Append(CultureInfo.InvariantCulture, $" lines-written native={native->Diffs} guest={guest->Diffs}");
        uint count = Math.Min(Math.Min(native->Diffs, guest->Diffs), Sandbox.MaxDiffs);
        for (uint n = 0; n < count; n++)
        {
            if (native->DiffLine[n] != guest->DiffLine[n])
            {
                report?.Append(CultureInfo.InvariantCulture, $" line native={native->DiffLine[n]:x} guest={guest->DiffLine[n]:x}");
                return false;
            }
            var a = new ReadOnlySpan<byte>(native->DiffBytes + n * Sandbox.Line, Sandbox.Line);
            var b = new ReadOnlySpan<byte>(guest->DiffBytes + n * Sandbox.Line, Sandbox.Line);
            ulong address = Sandbox.DataAddress + native->DiffLine[n] * Sandbox.Line;
            if (a.SequenceEqual(b) || DiffersOnlyInMxcsrMask(meta.Instruction, input, address, a, b))
                continue;
            same = false;
            if (report is not null)
                DescribeLine(report, address, a, b);
        }
        return same;
    }

    /// <summary>FXSAVE reports which MXCSR bits exist: the misaligned-exception mask is AMD's alone.</summary>
    private bool DiffersOnlyInMxcsrMask(in Instruction i, CaseInput* input, ulong line, ReadOnlySpan<byte> native, ReadOnlySpan<byte> guest)
    {
        if (!SparesMisalignedMask || i.Mnemonic is not (Mnemonic.Fxsave or Mnemonic.Fxsave64))
            return false;
        ulong at = Placement.ExplicitAddress(i, input) + 30;
        for (int n = 0; n < native.Length; n++)
        {
            if (native[n] != guest[n] && (line + (ulong)n != at || (native[n] | guest[n]) != 2))
                return false;
        }
        return true;
    }

    private static void DescribeLine(StringBuilder report, ulong address, ReadOnlySpan<byte> native, ReadOnlySpan<byte> guest)
    {
        int first = native.CommonPrefixLength(guest), last = Sandbox.Line - 1;
        while (native[last] == guest[last])
            last--;
        string ofHost = Convert.ToHexStringLower(native[first..(last + 1)]), ofGuest = Convert.ToHexStringLower(guest[first..(last + 1)]);
        report.Append(CultureInfo.InvariantCulture, $" [{address + (ulong)first:x}] native={ofHost} guest={ofGuest}");
    }

    /// <summary>Most significant byte first, as registers are read.</summary>
    private static string Hex(ReadOnlySpan<byte> little)
    {
        Span<byte> big = stackalloc byte[little.Length];
        little.CopyTo(big);
        big.Reverse();
        return Convert.ToHexStringLower(big);
    }

    private static string Disassemble(in CaseMeta meta, CaseInput* input, ReadOnlySpan<byte> code)
    {
        if (meta.Kind == CaseKind.Invalid)
            return "(invalid)";
        if (meta.Count <= 1)
            return meta.Instruction.ToString();
        var decoder = Iced.Intel.Decoder.Create((int)input->Bits, code.ToArray(), input->Rip);
        var parts = new List<string>();
        while (decoder.IP < input->NextRip)
            parts.Add(decoder.Decode().ToString());
        return string.Join("; ", parts);
    }

    /// <summary>The case as one line: bytes, disassembly and the registers that it reads.</summary>
    internal static string Reproducer(in CaseMeta meta, CaseInput* s, ReadOnlySpan<byte> code)
    {
        var text = new StringBuilder();
        text.Append(CultureInfo.InvariantCulture, $"{Convert.ToHexStringLower(code)} {Disassemble(meta, s, code)} | rip={s->Rip:x} rflags={s->Rflags:x}");
        var info = new InstructionInfoFactory().GetInfo(meta.Instruction);
        var shown = new HashSet<string>();
        foreach (UsedRegister u in info.GetUsedRegisters())
        {
            Register full = u.Register.GetFullRegister();
            if (full.IsGPR64())
                Show(full.ToString().ToLowerInvariant(), s->Gpr[full - Register.RAX].ToString("x", CultureInfo.InvariantCulture));
            else if (full.IsYMM() || full.IsXMM() || full.IsZMM())
                ShowVector(full.IsZMM() ? full - Register.ZMM0 : full.IsYMM() ? full - Register.YMM0 : full - Register.XMM0);
            else if (full.IsSegmentRegister() && full is Register.FS or Register.GS)
                Show(full.ToString().ToLowerInvariant(), (full == Register.FS ? s->FsBase : s->GsBase).ToString("x", CultureInfo.InvariantCulture));
        }
        bool x87 = meta.Instruction.Code.ToString().Contains("_mm", StringComparison.Ordinal) || Disassemble(meta, s, code).Split("; ").Any(i =>
            i.StartsWith('f'));
        if (x87)
        {
            Show("fcw", Unsafe.ReadUnaligned<ushort>(s->Xsave).ToString("x", CultureInfo.InvariantCulture));
            Show("fsw", Unsafe.ReadUnaligned<ushort>(s->Xsave + 2).ToString("x", CultureInfo.InvariantCulture));
            Show("ftw", s->Xsave[4].ToString("x", CultureInfo.InvariantCulture));
            for (int n = 0; n < 8; n++)
                Show($"st{n}", Hex(new(s->Xsave + XsaveArea.St + 16 * n, 10)));
            Show("fop", Unsafe.ReadUnaligned<ushort>(s->Xsave + XsaveArea.Fop).ToString("x", CultureInfo.InvariantCulture));
            Show("fip", Unsafe.ReadUnaligned<ulong>(s->Xsave + XsaveArea.Fip).ToString("x", CultureInfo.InvariantCulture));
            Show("fdp", Unsafe.ReadUnaligned<ulong>(s->Xsave + XsaveArea.Fdp).ToString("x", CultureInfo.InvariantCulture));
        }
        Show("mxcsr", Unsafe.ReadUnaligned<uint>(s->Xsave + XsaveArea.Mxcsr).ToString("x", CultureInfo.InvariantCulture));
        if (s->PatchLength != 0)
            Show($"[{Sandbox.DataAddress + s->PatchOffset:x}]", Convert.ToHexStringLower(new ReadOnlySpan<byte>(s->Patch, (int)Math.Min(s->PatchLength, 64))));
        return text.ToString();

        void Show(string register, string value)
        {
            if (shown.Add(register))
                text.Append(' ').Append(register).Append('=').Append(value);
        }

        void ShowVector(int n) => Show($"ymm{n}", Hex(new(s->Xsave + XsaveArea.YmmHigh + 16 * n, 16)) + "_" + Hex(new(s->Xsave + XsaveArea.Xmm + 16 * n, 16)));
    }
}

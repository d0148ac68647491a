using Iced.Intel;
using Ring3.Arch;

namespace Ring3.Differential;

/// <summary>Status flags that the manuals leave undefined: tests/vectors/flags-undefined.csv (mnemonic, condition, flags).</summary>
internal sealed unsafe class UndefinedFlags
{
    private enum Condition : byte { Always, CountNonzero, CountAboveOne, CountNotOne, CountAtLeastSize, CountAboveSize }

    private readonly List<(Condition When, ulong Flags)>?[] _rules = new List<(Condition, ulong)>?[Enum.GetValues<Mnemonic>().Length];

    internal UndefinedFlags(string path)
    {
        foreach ((string[] fields, int line) in Vectors.ReadCsv(path))
        {
            if (fields.Length != 3 || !Enum.TryParse(fields[0], out Mnemonic mnemonic) || !TryCondition(fields[1], out Condition when))
                throw new InvalidDataException($"{path}:{line}: expected mnemonic,condition,flags");
            ulong flags = 0;
            foreach (string flag in fields[2].Split(' ', StringSplitOptions.RemoveEmptyEntries))
                flags |= flag switch { "CF" => Rflags.CF, "PF" => Rflags.PF, "AF" => Rflags.AF, "ZF" => Rflags.ZF, "SF" => Rflags.SF, "OF" => Rflags.OF, _ =>
                    throw new InvalidDataException($"{path}:{line}: flag {flag}") };
            (_rules[(int)mnemonic] ??= []).Add((when, flags));
        }
    }

    internal static UndefinedFlags Load() => new(Vectors.Path("flags-undefined.csv"));

    private static bool TryCondition(string text, out Condition when)
    {
        Condition? parsed = text switch
        {
            "always" => Condition.Always,
            "count!=0" => Condition.CountNonzero,
            "count>1" => Condition.CountAboveOne,
            "count!=1" => Condition.CountNotOne,
            "count>=size" => Condition.CountAtLeastSize,
            "count>size" => Condition.CountAboveSize,
            _ => null,
        };
        when = parsed ?? default;
        return parsed is not null;
    }

    /// <summary>Flags that are undefined after this instruction with these operands.</summary>
    internal ulong Mask(in Instruction i, CaseInput* s)
    {
        List<(Condition When, ulong Flags)>? rules = _rules[(int)i.Mnemonic];
        if (rules is null)
            return 0;
        ulong mask = 0;
        foreach ((Condition when, ulong flags) in rules)
        {
            if (when == Condition.Always || Holds(when, i, s))
                mask |= flags;
        }
        return mask;
    }

    /// <summary>The same when the registers are not known: a count in CL may be anything.</summary>
    internal ulong MaskOfFollower(in Instruction i)
    {
        ulong mask = 0;
        bool unknown = i.OpCount > 0 && i.GetOpKind(i.OpCount - 1) == OpKind.Register;
        foreach ((Condition when, ulong flags) in _rules[(int)i.Mnemonic] ?? [])
        {
            if (when == Condition.Always || unknown || Holds(when, i, null))
                mask |= flags;
        }
        return mask;
    }

    private static bool Holds(Condition when, in Instruction i, CaseInput* s)
    {
        int size = i.Op0Kind == OpKind.Register ? i.Op0Register.GetSize() : i.MemorySize.GetSize();
        int last = i.OpCount - 1;
        uint count = i.GetOpKind(last) == OpKind.Register ? (byte)s->Gpr[1] : (uint)i.GetImmediate(last);
        count &= size == 8 ? 63u : 31u;
        return when switch
        {
            Condition.CountNonzero => count != 0,
            Condition.CountAboveOne => count > 1,
            Condition.CountNotOne => count is not (0 or 1),
            Condition.CountAtLeastSize => count >= 8 * size,
            _ => count > 8 * size,
        };
    }
}

namespace Ring3.Differential;

/// <summary>
/// The machine as one model against the machine as another, over the generator's cases: what the models say differently, and nothing else, must differ.
/// Needs no native side.
/// </summary>
/// <remarks>SAFETY: pointers into the case memory, which lives as long as the run; indices are below <see cref="Sandbox.MaxCases"/>.</remarks>
internal static unsafe class Contrast
{
    /// <summary>A case in which the models differ.</summary>
    /// <param name="Key">Its instruction, or what else it is.</param>
    /// <param name="Rule">The rule of <see cref="LeftOpen"/> that covers the difference, or null.</param>
    /// <param name="Text">The difference, the case, and what repeats it.</param>
    internal readonly record struct Difference(string Key, string? Rule, string Text);

    /// <summary>Runs as many cases as the options say and yields those in which <see cref="FuzzOptions.Model"/> and <paramref name="other"/> differ.</summary>
    internal static List<Difference> Run(FuzzOptions options, Iced.Intel.Code[] codes, ProcessorModel other)
    {
        using var memory = new LocalCaseMemory();
        using var one = new GuestProcessor(memory, options.Bits, options.Model);
        using var two = new GuestProcessor(memory, options.Bits, other);
        UndefinedFlags undefined = UndefinedFlags.Load();
        var batch = new CaseBatch(memory, codes, options.Bits, options.Filter.Length == 0 ? options.Raw : 0, undefined);
        var comparer = new Comparer(undefined, null) { SparesMisalignedMask = options.Model.IsAmd != other.IsAmd };
        var differences = new List<Difference>();
        for (long number = 0; number * Sandbox.MaxCases < options.Cases; number++)
        {
            batch.Fill(options.Seed, (ulong)number);
            one.NextBatch();
            two.NextBatch();
            for (int i = 0; i < Sandbox.MaxCases; i++)
            {
                CaseMeta meta = batch.Meta[i];
                CaseInput* input = memory.Input(i);
                int offset = i * Sandbox.SlotSize + (int)(input->Rip % Sandbox.SlotSize);
                var code = new ReadOnlySpan<byte>(memory.Code + offset, Math.Min(meta.Length, Sandbox.CodeSize - offset));
                bool step = (i & 1) != 0 && meta.Count == 1;
                CaseOutput a, b;
                one.Run(input, meta, step, &a);
                two.Run(input, meta, step, &b);
                if (comparer.Same(meta, input, code, &a, &b))
                    continue;
                string key = meta.Kind switch { CaseKind.Compare when meta.Count > 1 => "(sequence)", CaseKind.Compare => meta.Instruction.Code.ToString(),
                    _ => $"({meta.Kind})" };
                string text = $"{comparer.Describe(meta, input, code, &a, &b)}\n      {Comparer.Reproducer(meta, input, code)}\n"
                    + $"      --seed {options.Seed} --bits {options.Bits} --batch {number} (case {i})";
                differences.Add(new Difference(key, LeftOpen.Rule(meta, input, code, &a, &b), text));
            }
        }
        return differences;
    }

    /// <summary>Prints the differences by instruction, most frequent first, each with its examples.</summary>
    internal static void Print(List<Difference> differences, int examples, TextWriter output)
    {
        foreach (IGrouping<string, Difference> group in differences.GroupBy(d => d.Key).OrderByDescending(g => g.Count()))
        {
            output.WriteLine($"{group.Count(),8} {group.Key}");
            foreach (Difference d in group.Take(examples))
                output.WriteLine($"      {d.Text}");
        }
    }
}

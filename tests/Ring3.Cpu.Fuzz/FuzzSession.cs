using System.Diagnostics;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>Mismatches of one instruction.</summary>
internal sealed class Finding
{
    internal long Count;
    internal readonly List<string> Examples = [];
}

/// <summary>Runs batches on worker threads until the number of cases is reached, and collects the mismatches by instruction.</summary>
internal sealed class FuzzSession(FuzzOptions options)
{
    private readonly Lock _lock = new();
    private readonly SortedDictionary<string, Finding> _findings = new(StringComparer.Ordinal);
    private readonly UndefinedFlags _undefined = UndefinedFlags.Load();
    private readonly Exclusions _exclusions = Exclusions.Load();
    private Code[] _codes = [];
    private readonly SortedDictionary<string, long> _passedOver = new(StringComparer.Ordinal), _leftOpen = new(StringComparer.Ordinal);
    private readonly long[] _outcomes = new long[256], _retired = new long[IcedConstants.CodeEnumCount], _ran = new long[IcedConstants.CodeEnumCount];
    private long _nextBatch, _cases, _mismatches;
    private ulong _instructions, _translated;

    internal long Cases => Volatile.Read(ref _cases);
    internal long Mismatches => Volatile.Read(ref _mismatches);
    internal IReadOnlyDictionary<string, Finding> Findings => _findings;

    /// <summary>Instructions that take part.</summary>
    internal Code[] SelectCodes() =>
        [.. InstructionSource.AllCodes(_exclusions, options.Self ? _ => true : c => GuestProcessor.Supports(c, options.Model), options.Bits).Where(Matches)];

    private bool Matches(Code c) => options.Filter.Length == 0 || options.Filter.Split(',').Any(f => Matches(c, f));

    private static bool Matches(Code c, string filter) => c.Mnemonic().ToString().Equals(filter, StringComparison.OrdinalIgnoreCase)
        || c.ToString().Contains(filter, StringComparison.OrdinalIgnoreCase) && !filter.All(char.IsLetter);

    /// <summary>Runs everything. Returns the seconds it took.</summary>
    internal double Run()
    {
        _codes = SelectCodes();
        if (_codes.Length == 0)
            throw new InvalidOperationException("no instruction matches");
        var clock = Stopwatch.StartNew();
        if (options.Batch >= 0)
        {
            _nextBatch = options.Batch;
            Work(1);
        }
        else
        {
            long batches = (options.Cases + Sandbox.MaxCases - 1) / Sandbox.MaxCases;
            Exception? failure = null;
            var threads = new Thread[Math.Min(options.Threads, batches)];
            for (int i = 0; i < threads.Length; i++)
            {
                threads[i] = new Thread(() =>
                {
                    try { Work(batches); }
                    catch (Exception e) { failure = e; }
                });
                threads[i].Start();
            }
            foreach (Thread t in threads)
                t.Join();
            if (failure is not null)
                throw new InvalidOperationException("a worker failed", failure);
        }
        return clock.Elapsed.TotalSeconds;
    }

    private unsafe void Work(long batches)
    {
        using var oracle = new NativeOracle();
        using GuestProcessor? guest = options.Self || options.Kvm is not null ? null : new GuestProcessor(oracle, options.Bits, options.Model,
            options.Translate, options.Limits);
        using KvmOracle? kvm = options.Kvm is { } launcher ? new KvmOracle(launcher) : null;
        var batch = new CaseBatch(oracle, _codes, options.Bits, options.Filter.Length == 0 ? options.Raw : 0, _undefined);
        var comparer = new Comparer(_undefined, oracle.Probes);
        var limits = new HostLimits(oracle.Probes);
        var copies = new CaseOutput[Sandbox.MaxCases];
        long first = options.Batch >= 0 ? options.Batch : 0;
        for (; ; )
        {
            long number = Interlocked.Increment(ref _nextBatch) - 1;
            if (number - first >= batches)
            {
                if (guest?.Progress is var (retired, translated))
                {
                    Interlocked.Add(ref _instructions, retired);
                    Interlocked.Add(ref _translated, translated);
                }
                return;
            }
            batch.Fill(options.Seed, (ulong)number);
            for (int i = 0; i < Sandbox.MaxCases && !oracle.Probes.ReportsX87Pointers; i++)
                CaseSimplifier.ClearPointers(oracle.Input(i));
            int passedOver = PassOver(batch, oracle, limits);
            int lost = oracle.Run(Sandbox.MaxCases);
            if (lost >= 0)
                Report(number, lost, batch, comparer, oracle, null, oracle.End);
            guest?.NextBatch();
            int count = lost < 0 ? Sandbox.MaxCases : lost;
            for (int i = 0; i < Sandbox.MaxCases; i++)
                oracle.Input(i)->Step = IsStepped(i, batch) ? 1u : 0;
            int lostGuest = kvm?.Run(oracle, count) ?? -1;
            if (lostGuest >= 0)
                Report(number, count = lostGuest, batch, comparer, oracle, null, kvm!.End);
            if (options.Self && lost < 0)
            {
                for (int i = 0; i < Sandbox.MaxCases; i++)
                    copies[i] = *oracle.Output(i);
                oracle.Run(Sandbox.MaxCases);
            }
            for (int i = 0; i < count; i++)
            {
                CaseOutput result;
                if (oracle.Input(i)->Skip != 0)
                    continue;
                if (options.Trace)
                    Console.Error.WriteLine(Comparer.Reproducer(batch.Meta[i], oracle.Input(i), CodeOf(i, batch, oracle)));
                if (kvm is not null)
                    result = *kvm.Output(i);
                else if (guest is null)
                    result = copies[i];
                else
                    guest.Run(oracle.Input(i), batch.Meta[i], IsStepped(i, batch), &result);
                CaseOutput* native = oracle.Output(i);
                Comparer.NormalizeNative(oracle.Input(i), native);
                Interlocked.Increment(ref _outcomes[Math.Min(native->Vector, 255)]);
                if (batch.Meta[i].Kind == CaseKind.Compare)
                    Interlocked.Increment(ref _ran[(int)batch.Meta[i].Instruction.Code]);
                if (native->Vector == CaseOutput.NoVector)
                    Interlocked.Increment(ref _retired[(int)batch.Meta[i].Instruction.Code]);
                if (options.Self)
                    Comparer.NormalizeNative(oracle.Input(i), &result);
                if (comparer.Same(batch.Meta[i], oracle.Input(i), CodeOf(i, batch, oracle), native, &result))
                    continue;
                if (options.Self || options.Model.IsKnown || LeftOpen.Rule(batch.Meta[i], oracle.Input(i), CodeOf(i, batch, oracle), native,
                    &result) is not { } rule)
                    Report(number, i, batch, comparer, oracle, &result, null);
                else
                    Count(_leftOpen, rule);
            }
            Interlocked.Add(ref _cases, count - passedOver);
        }
    }

    /// <summary>Every other case that is one instruction is stepped by the host of the machine.</summary>
    private static bool IsStepped(int index, CaseBatch batch) => (index & 1) != 0 && batch.Meta[index].Count == 1;

    /// <summary>Marks the cases that this host cannot run. Returns their number.</summary>
    private unsafe int PassOver(CaseBatch batch, NativeOracle oracle, HostLimits limits)
    {
        int count = 0;
        for (int i = 0; i < Sandbox.MaxCases; i++)
        {
            string? reason = limits.Reason(batch.Meta[i], oracle.Input(i), CodeOf(i, batch, oracle));
            oracle.Input(i)->Skip = reason is null ? 0u : 1;
            if (reason is null)
                continue;
            count++;
            Count(_passedOver, reason);
        }
        return count;
    }

    private void Count(SortedDictionary<string, long> counts, string reason)
    {
        lock (_lock)
            counts[reason] = counts.GetValueOrDefault(reason) + 1;
    }

    private unsafe void Report(long number, int index, CaseBatch batch, Comparer comparer, NativeOracle oracle, CaseOutput* guest, string? what)
    {
        Interlocked.Increment(ref _mismatches);
        CaseMeta meta = batch.Meta[index];
        string key = meta.Kind switch { CaseKind.Compare when meta.Count > 1 => "(sequence)", CaseKind.Compare => meta.Instruction.Code.ToString(),
            CaseKind.Invalid => "(invalid)", _ => "(truncated)" };
        lock (_lock)
        {
            if (!_findings.TryGetValue(key, out Finding? finding))
                _findings.Add(key, finding = new Finding());
            if (++finding.Count > options.Examples && options.Batch < 0)
                return;
            CaseInput* input = oracle.Input(index);
            what ??= comparer.Describe(meta, input, CodeOf(index, batch, oracle), oracle.Output(index), guest);
            finding.Examples.Add($"{what}\n      {Comparer.Reproducer(meta, input, CodeOf(index, batch, oracle))}"
                + $"\n      --seed {options.Seed} --bits {options.Bits} --batch {number} (case {index})");
        }
    }

    private static unsafe ReadOnlySpan<byte> CodeOf(int index, CaseBatch batch, NativeOracle oracle)
    {
        int offset = index * Sandbox.SlotSize + (int)(oracle.Input(index)->Rip % Sandbox.SlotSize);
        return new ReadOnlySpan<byte>(oracle.Code + offset, Math.Min(batch.Meta[index].Length, Sandbox.CodeSize - offset));
    }

    /// <summary>Share of the machine's instructions that retired in translated code.</summary>
    internal double Translated => (double)_translated / Math.Max(1, _instructions);

    /// <summary>How the cases ended natively: retired, or the exception's vector.</summary>
    internal string Outcomes() => string.Join(", ", Enumerable.Range(0, 256).Where(v => _outcomes[v] != 0).OrderByDescending(v => _outcomes[v])
        .Select(v => $"{(v == 255 ? "retired" : v == CaseOutput.TimeoutVector ? "timeout" : v == CaseOutput.NotEnteredVector ? "not entered" : $"#{v}")} "
            + $"{100.0 * _outcomes[v] / Math.Max(1, Cases):F2} %"));

    /// <summary>Cases that this host could not run, by reason.</summary>
    internal IReadOnlyDictionary<string, long> PassedOver => _passedOver;

    /// <summary>Differences that the manuals leave open, on a host whose family no model describes: their number by rule.</summary>
    internal IReadOnlyDictionary<string, long> LeftOpenDifferences => _leftOpen;

    /// <summary>Instructions that never retired natively in this run: privileged, refused by this host, or unlucky.</summary>
    internal Code[] NeverRetired() => [.. _codes.Where(c => _retired[(int)c] == 0)];

    /// <summary>Instructions of which no case ran.</summary>
    internal Code[] NeverRun() => [.. _codes.Where(c => _ran[(int)c] == 0)];

    /// <summary>Prints the mismatches, most frequent first.</summary>
    internal void Print(TextWriter output)
    {
        foreach ((string key, Finding finding) in _findings.OrderByDescending(f => f.Value.Count))
        {
            output.WriteLine($"{finding.Count,8} {key}");
            foreach (string example in finding.Examples)
                output.WriteLine($"      {example}");
        }
    }

    internal void List(TextWriter output)
    {
        foreach (Code c in SelectCodes())
            output.WriteLine($"+ {c}");
        foreach (Code c in Enum.GetValues<Code>())
        {
            if (c != Code.INVALID && Matches(c) && c.ToOpCode() is { IsInstruction: true } && _exclusions.Reason(c, options.Bits) is { } reason)
                output.WriteLine($"- {c}: {reason}");
        }
    }
}

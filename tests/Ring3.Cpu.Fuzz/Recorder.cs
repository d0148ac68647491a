using System.Globalization;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>Chooses cases of the generator, simplifies them, runs them on the host's processor and keeps them with the result.</summary>
/// <remarks>SAFETY: pointers into the two case memories, which live as long as this object; indices are below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class Recorder : IDisposable
{
    private readonly FuzzOptions _options;
    private readonly LocalCaseMemory _generated = new();
    private readonly NativeOracle _oracle = new();
    private readonly CaseBatch _batch;
    private readonly CaseSimplifier _simplifier = new();
    private readonly HostLimits _limits;
    private readonly Comparer _comparer;
    private readonly Dictionary<string, int> _kept = [];

    internal Recorder(FuzzOptions options, Code[] codes)
    {
        _options = options;
        UndefinedFlags undefined = UndefinedFlags.Load();
        _batch = new CaseBatch(_generated, codes, options.Bits, options.Filter.Length == 0 ? options.Raw : 0, undefined);
        _limits = new HostLimits(_oracle.Probes);
        _comparer = new Comparer(undefined, _oracle.Probes);
    }

    /// <summary>
    /// Looks at as many generated cases as the options say; keeps <see cref="FuzzOptions.Examples"/> for each instruction, and 128 times as many
    /// sequences.
    /// </summary>
    internal List<RecordedCase> Run()
    {
        var cases = new List<RecordedCase>();
        for (long number = 0; number * Sandbox.MaxCases < _options.Cases; number++)
        {
            _batch.Fill(_options.Seed, (ulong)number);
            for (int i = 0; i < Sandbox.MaxCases; i++)
            {
                if (Wanted(_batch.Meta[i]) && Record(i) is { } recorded)
                {
                    string key = Key(recorded.Meta);
                    _kept[key] = _kept.GetValueOrDefault(key) + 1;
                    cases.Add(recorded);
                }
            }
        }
        foreach ((ulong seed, ulong batch, int index) in _options.At)
        {
            _batch.Fill(seed, batch);
            cases.Add(Record(index) ?? throw new InvalidOperationException($"case {seed}:{batch}:{index} cannot be recorded on this host"));
        }
        foreach (string path in _options.From)
            Again(path, cases);
        return cases;
    }

    /// <summary>Where the cases come from, for the file.</summary>
    internal string Source => string.Join(", ", [
        "recorded natively: " + string.Create(CultureInfo.InvariantCulture, $"seed {_options.Seed}, {_options.Bits} bits"),
        .. _options.At.Count != 0 ? [$"{_options.At.Count} cases of mismatches"] : ReadOnlySpan<string>.Empty,
        .. _options.From.Select(f => "the cases of " + Path.GetFileNameWithoutExtension(f))]);

    /// <summary>What <see cref="Run"/> has found out about the files that it has run again, one line each.</summary>
    internal List<string> Notes { get; } = [];

    /// <summary>Runs another file's cases on this host.</summary>
    private void Again(string path, List<RecordedCase> cases)
    {
        (VectorHost host, List<RecordedCase> old) = VectorFile.Read(path);
        int differ = 0, left = 0;
        var comparer = new Comparer(UndefinedFlags.Load(), _oracle.Probes) { ComparesPointers = host.Pointers };
        foreach (RecordedCase c in old)
        {
            CaseOutput before = c.Native;
            bool runs;
            fixed (CaseInput* input = &c.Input)
                runs = _limits.Reason(c.Meta, input, c.Code) is null && !Approximations.IsIn(c.Meta, input, c.Code);
            if (!runs || !RunNative(c, out c.Native))
            {
                left++;
                continue;
            }
            fixed (CaseInput* input = &c.Input)
            fixed (CaseOutput* now = &c.Native)
            {
                if (!comparer.Same(c.Meta, input, c.Code, now, &before))
                {
                    differ++;
                    Notes.Add($"{comparer.Describe(c.Meta, input, c.Code, now, &before)}\n      {Comparer.Reproducer(c.Meta, input, c.Code)}");
                }
            }
            cases.Add(c);
        }
        Notes.Add($"{Path.GetFileName(path)}: {old.Count} cases run again, {differ} differ from the recorded results, {left} left out");
    }

    private string Key(in CaseMeta meta) => meta.Kind != CaseKind.Compare ? meta.Kind.ToString() : meta.Count > 1 ? "sequence"
        : _options.Mnemonics ? meta.Instruction.Mnemonic.ToString() : meta.Instruction.Code.ToString();

    private bool Wanted(in CaseMeta meta) => _kept.GetValueOrDefault(Key(meta)) < _options.Examples * (meta.Kind == CaseKind.Compare && meta.Count > 1 ? 128
        : meta.Kind == CaseKind.Compare ? 1 : 16);

    /// <summary>The case with the host's result; null when this host cannot run it, or does not give the same result twice.</summary>
    private RecordedCase? Record(int index)
    {
        CaseInput* from = _generated.Input(index);
        CaseMeta meta = _batch.Meta[index];
        int offset = index * Sandbox.SlotSize + (int)(from->Rip % Sandbox.SlotSize);
        var code = new ReadOnlySpan<byte>(_generated.Code + offset, Math.Min(meta.Length, Sandbox.CodeSize - offset));
        // Split locks are never run here: a recorded set must not depend on how the host treats them. Approximations say nothing on another host, whose
        // unit the machine uses.
        if (_limits.Reason(meta, from, code) is not null || meta.Kind != CaseKind.Invalid && HostLimits.HasSplitLock(from, code)
            || Approximations.IsIn(meta, from, code))
            return null;
        var c = new RecordedCase { Input = *from, Meta = meta, Slot = index, Code = code.ToArray() };
        new ReadOnlySpan<byte>(_generated.Data, Sandbox.DataSize).CopyTo(c.Data);
        fixed (CaseInput* input = &c.Input)
        fixed (byte* data = c.Data)
        {
            _simplifier.Simplify(meta, input, c.Code, data);
            if (!_oracle.Probes.ReportsX87Pointers)
                CaseSimplifier.ClearPointers(input);
        }
        if (!RunNative(c, out c.Native) || !RunNative(c, out CaseOutput again))
            return null;
        fixed (CaseInput* input = &c.Input)
        fixed (CaseOutput* first = &c.Native)
            return _comparer.Same(meta, input, c.Code, first, &again) ? c : null;
    }

    internal bool RunNative(RecordedCase c, out CaseOutput result)
    {
        CaseInput* input = RecordedCase.Place(c, _oracle, 0);
        bool ended = _oracle.Run(1) >= 0;
        CaseOutput* o = _oracle.Output(0);
        if (!ended)
            Comparer.NormalizeNative(input, o);
        result = *o;
        return !ended && o->Vector is not (CaseOutput.TimeoutVector or CaseOutput.NotEnteredVector);
    }

    public void Dispose()
    {
        _oracle.Dispose();
        _generated.Dispose();
    }
}

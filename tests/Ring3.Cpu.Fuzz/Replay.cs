using System.Globalization;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>
/// Runs recorded cases in the machine, each stepped and freely, and compares with the recorded results. Needs no native side.
/// Or runs them in a VM whose processor is <paramref name="kvmModel"/>.
/// </summary>
/// <remarks>SAFETY: pointers into the case memory, which lives as long as this object; slots are below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class Replay(KvmOracle? kvm = null, ProcessorModel? kvmModel = null) : IDisposable
{
    private readonly LocalCaseMemory _memory = new();
    private readonly Dictionary<(int Bits, ProcessorModel Model), GuestProcessor> _guests = [];
    private ProcessorModel? _model;
    /// <summary>The results are this host's own, so approximations must be exact.</summary>
    private bool _isOwn;
    private readonly Comparer _comparer = new(UndefinedFlags.Load(), null);

    internal int Cases { get; private set; }
    /// <summary>Cases whose instructions run on units that this host lacks, and so the machine.</summary>
    internal int LeftOut { get; private set; }
    /// <summary>Cases in which the recorded processor's model and that of the VM differ.</summary>
    internal int OfOtherModel { get; private set; }
    /// <summary>Instructions of the cases that have been run.</summary>
    internal HashSet<Code> Codes { get; } = [];
    /// <summary>One text for each case that differs in what the manuals define, or what the recorded processor's model describes.</summary>
    internal List<string> Mismatches { get; } = [];
    /// <summary>Differences that the manuals leave open, of processors that no model describes: their number by rule.</summary>
    internal SortedDictionary<string, int> LeftOpenDifferences { get; } = new(StringComparer.Ordinal);

    internal void Run(string path)
    {
        (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(path);
        _model = ProcessorModel.Find(host.Vendor, host.Family, host.Model);
        // How they follow is a family's own, and no rule of the manuals' gaps.
        _comparer.ComparesPointers = host.Pointers && _model is not null;
        _comparer.SparesMisalignedMask = ProcessorModel.VendorOf(host.Vendor) != (kvmModel ?? _model ?? ProcessorModel.Host).Vendor;
        _isOwn = (host.Vendor, host.Family, host.Model) == (HostProbes.Vendor, HostProbes.Family, HostProbes.Model);
        new Span<byte>(_memory.Code, Sandbox.CodeSize).Fill(0xcc);
        for (int n = 0; n < cases.Count; n++)
        {
            if (NeedsUnit(cases[n]))
            {
                LeftOut++;
                continue;
            }
            if (kvm is not null && IsOfOtherModel(cases[n]))
            {
                OfOtherModel++;
                continue;
            }
            Cases++;
            Codes.UnionWith(Instructions(cases[n]).Select(i => i.Code));
            if (Differs(cases[n], out string? rule) is not { } what)
                continue;
            if (rule is not null && _model is null)
                LeftOpenDifferences[rule] = LeftOpenDifferences.GetValueOrDefault(rule) + 1;
            else
                Mismatches.Add(string.Create(CultureInfo.InvariantCulture, $"{Path.GetFileName(path)} case {n} ({host.Vendor}): {what}"));
        }
    }

    private static bool NeedsUnit(RecordedCase c) => Instructions(c).SelectMany(i => i.Code.CpuidFeatures())
        .Any(f => f switch
        {
            CpuidFeature.GFNI => !VectorFeatures.Gfni,
            CpuidFeature.VAES => !VectorFeatures.Vaes,
            CpuidFeature.VPCLMULQDQ => !VectorFeatures.Vpclmulqdq,
            _ => false,
        });

    /// <summary>The instructions of a case that has any.</summary>
    private static IEnumerable<Instruction> Instructions(RecordedCase c)
    {
        if (c.Meta.Kind != CaseKind.Compare)
            yield break;
        var decoder = Decoder.Create((int)c.Input.Bits, c.Code, c.Input.Rip);
        while (decoder.IP < c.Input.NextRip)
            yield return decoder.Decode();
    }

    private bool IsOfOtherModel(RecordedCase c)
    {
        if (_model is null || _model == kvmModel)
            return false;
        CaseInput* input = RecordedCase.Place(c, _memory, 0);
        CaseOutput recorded, other;
        Guest((int)input->Bits, _model).Run(input, c.Meta, false, &recorded);
        Guest((int)input->Bits, kvmModel!).Run(input, c.Meta, false, &other);
        return !_comparer.Same(c.Meta, input, c.Code, &recorded, &other);
    }

    internal string? Differs(RecordedCase c) => Differs(c, out _);

    /// <summary>What differs, or null; and the rule of <see cref="LeftOpen"/> that covers it.</summary>
    private string? Differs(RecordedCase c, out string? rule)
    {
        rule = null;
        CaseInput* input = RecordedCase.Place(c, _memory, 0);
        ReadOnlySpan<byte> code = c.Code;
        fixed (CaseOutput* native = &c.Native)
        {
            for (int step = 0; step < (c.Meta.Count == 1 ? 2 : 1); step++)
            {
                CaseOutput result;
                input->Step = (uint)step;
                if (kvm is null)
                    Guest((int)input->Bits, _model ?? ProcessorModel.Host).Run(input, c.Meta, step != 0, &result);
                else if (kvm.Run(_memory, 1) < 0)
                    result = *kvm.Output(0);
                else
                    return $"{kvm.End}\n      {Comparer.Reproducer(c.Meta, input, code)}";
                if (!_isOwn && Approximations.IsIn(c.Meta, input, code))
                    Approximations.Adopt(native, &result);
                if (_comparer.Same(c.Meta, input, code, native, &result))
                    continue;
                rule = LeftOpen.Rule(c.Meta, input, code, native, &result);
                return $"{_comparer.Describe(c.Meta, input, code, native, &result)}\n      {Comparer.Reproducer(c.Meta, input, code)}";
            }
        }
        return null;
    }

    /// <summary>The machine's own result, as it runs freely.</summary>
    internal CaseOutput Result(RecordedCase c)
    {
        CaseInput* input = RecordedCase.Place(c, _memory, 0);
        CaseOutput result;
        Guest((int)input->Bits, _model ?? ProcessorModel.Host).Run(input, c.Meta, false, &result);
        return result;
    }

    /// <summary>The processor for this mode, which sees the code and data that have been placed.</summary>
    private GuestProcessor Guest(int bits, ProcessorModel model)
    {
        if (!_guests.TryGetValue((bits, model), out GuestProcessor? guest))
            _guests.Add((bits, model), guest = new GuestProcessor(_memory, bits, model));
        guest.NextBatch();
        return guest;
    }

    public void Dispose()
    {
        foreach (GuestProcessor guest in _guests.Values)
            guest.Dispose();
        _memory.Dispose();
    }
}

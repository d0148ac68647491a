using System.Globalization;

namespace Ring3.Differential;

/// <summary>Runs recorded cases in the machine, each stepped and freely, and compares with the recorded results. Needs no native side.</summary>
/// <remarks>SAFETY: pointers into the case memory, which lives as long as this object; slots are below <see cref="Sandbox.MaxCases"/>.</remarks>
internal sealed unsafe class Replay : IDisposable
{
    private readonly LocalCaseMemory _memory = new();
    private readonly Dictionary<int, GuestProcessor> _guests = [];
    private readonly Comparer _comparer = new(UndefinedFlags.Load(), null);

    internal int Cases { get; private set; }
    /// <summary>One text for each case that differs.</summary>
    internal List<string> Mismatches { get; } = [];

    internal void Run(string path)
    {
        (VectorHost host, List<RecordedCase> cases) = VectorFile.Read(path);
        new Span<byte>(_memory.Code, Sandbox.CodeSize).Fill(0xcc);
        for (int n = 0; n < cases.Count; n++)
        {
            Cases++;
            if (Differs(cases[n]) is { } what)
                Mismatches.Add(string.Create(CultureInfo.InvariantCulture, $"{Path.GetFileName(path)} case {n} ({host.Vendor}): {what}"));
        }
    }

    /// <summary>What differs, or null.</summary>
    internal string? Differs(RecordedCase c)
    {
        CaseInput* input = Place(c);
        ReadOnlySpan<byte> code = c.Code;
        fixed (CaseOutput* native = &c.Native)
        {
            for (int step = 0; step < (c.Meta.Count == 1 ? 2 : 1); step++)
            {
                CaseOutput result;
                Guest((int)input->Bits).Run(input, c.Meta, step != 0, &result);
                if (!_comparer.Same(c.Meta, input, code, native, &result))
                    return $"{_comparer.Describe(c.Meta, input, code, native, &result)}\n      {Comparer.Reproducer(c.Meta, input, code)}";
            }
        }
        return null;
    }

    /// <summary>The machine's own result, as it runs freely.</summary>
    internal CaseOutput Result(RecordedCase c)
    {
        CaseInput* input = Place(c);
        CaseOutput result;
        Guest((int)input->Bits).Run(input, c.Meta, false, &result);
        return result;
    }

    private GuestProcessor Guest(int bits)
    {
        if (!_guests.TryGetValue(bits, out GuestProcessor? guest))
            _guests.Add(bits, guest = new GuestProcessor(_memory, bits));
        guest.NextBatch();
        return guest;
    }

    private CaseInput* Place(RecordedCase c)
    {
        CaseInput* input = _memory.Input(c.Slot);
        *input = c.Input;
        c.Data.CopyTo(new Span<byte>(_memory.Data, Sandbox.DataSize));
        byte* slot = _memory.Code + c.Slot * Sandbox.SlotSize;
        new Span<byte>(slot, Sandbox.SlotSize).Fill(0xcc);
        int start = (int)(input->Rip % Sandbox.SlotSize);
        c.Code.CopyTo(new Span<byte>(slot + start, c.Code.Length));
        if (c.Meta.Kind == CaseKind.Compare)
            CaseBatch.EmitExit(slot + start + c.Meta.Length, input, _memory.ExitAddress);
        return input;
    }

    public void Dispose()
    {
        foreach (GuestProcessor guest in _guests.Values)
            guest.Dispose();
        _memory.Dispose();
    }
}

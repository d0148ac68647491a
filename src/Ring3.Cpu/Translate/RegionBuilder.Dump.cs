using StringBuilder = System.Text.StringBuilder;
using Iced.Intel;

namespace Ring3.Cpu;

// Guest and host code side by side.
// SAFETY: prints addresses of heads, which the region keeps alive.
internal sealed unsafe partial class RegionBuilder
{
    /// <summary>Where the host code of each guest instruction begins.</summary>
    private readonly List<(int Position, Trace Trace, int Instruction)> _marks = [];

    private void Mark(Trace t, int instruction)
    {
        if (_observed)
            _marks.Add((_a.Position, t, instruction));
    }

    /// <summary>The region: each guest instruction, by its offset in the page, with the host code made of it.</summary>
    public string Dump()
    {
        StringBuilder text = new();
        text.Append($"region of {_traces.Count} traces, {_marks.Count} instructions, {_a.Position} bytes\n");
        NasmFormatter formatter = new();
        StringOutput output = new();
        ByteArrayCodeReader reader = new(_a.Bytes.ToArray()) { Position = _traces[0].Entry };
        Decoder decoder = Decoder.Create(64, reader, (ulong)_traces[0].Entry);
        int next = 0;
        while (decoder.IP < (ulong)_a.Position)
        {
            foreach (Trace t in _traces)
            {
                if (t.Body == (int)decoder.IP)
                    text.Append($"  trace at {(nuint)t.Head->Host & 0xfff:x3}{(t.NeedsFlags ? ", flags wanted" : "")}\n");
                if (t.Entry == (int)decoder.IP)
                    text.Append($"  entry of {(nuint)t.Head->Host & 0xfff:x3}\n");
            }
            for (; next < _marks.Count && _marks[next].Position <= (int)decoder.IP; next++)
            {
                Instruction guest = _marks[next].Trace.Instructions[_marks[next].Instruction].Code;
                formatter.Format(guest, output);
                text.Append($"  {guest.IP:x3}  {output.ToStringAndReset()}\n");
            }
            decoder.Decode(out Instruction host);
            formatter.Format(host, output);
            text.Append($"            {host.IP:x4}  {output.ToStringAndReset()}\n");
        }
        return text.ToString();
    }
}

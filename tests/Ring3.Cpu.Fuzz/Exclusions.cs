using System.Globalization;
using System.Text.RegularExpressions;
using Iced.Intel;

namespace Ring3.Differential;

/// <summary>
/// Instructions that one host case cannot compare, with the reason: tests/vectors/fuzz-excluded.csv (pattern of Iced's Code names, reason, modes when
/// not all).
/// </summary>
internal sealed class Exclusions
{
    private readonly (string Reason, string Modes)?[] _rules = new (string, string)?[IcedConstants.CodeEnumCount];

    internal Exclusions(string path)
    {
        foreach ((string[] fields, int line) in Vectors.ReadCsv(path))
        {
            if (fields.Length is not (2 or 3))
                throw new InvalidDataException($"{path}:{line}: expected pattern,reason[,modes]");
            var pattern = new Regex($"^({fields[0]})$", RegexOptions.CultureInvariant);
            for (int code = 0; code < _rules.Length; code++)
            {
                if (_rules[code] is null && pattern.IsMatch(((Code)code).ToString()))
                    _rules[code] = (fields[1], fields.Length == 3 ? fields[2] : "16 32 64");
            }
        }
    }

    internal static Exclusions Load() => new(Vectors.Path("fuzz-excluded.csv"));

    /// <summary>Why this code is left out in the 16-, 32- or 64-bit mode, or null.</summary>
    internal string? Reason(Code code, int bits) => _rules[(int)code] is { } rule && rule.Modes.Contains(bits.ToString(CultureInfo.InvariantCulture),
        StringComparison.Ordinal) ? rule.Reason : null;
}

/// <summary>Text vectors in tests/vectors: comma-separated, '#' starts a comment line.</summary>
internal static class Vectors
{
    internal static string Path(string name) => System.IO.Path.Combine(NativeProgram.RepositoryRoot, "tests", "vectors", name);

    internal static IEnumerable<(string[] Fields, int Line)> ReadCsv(string path)
    {
        int number = 0;
        foreach (string line in File.ReadLines(path))
        {
            number++;
            if (line.Length != 0 && line[0] != '#')
                yield return (line.Split(',', StringSplitOptions.TrimEntries), number);
        }
    }
}

internal static class IcedConstants
{
    internal static readonly int CodeEnumCount = Enum.GetValues<Code>().Length;
}

using System.Diagnostics;
using System.Text;
using Iced.Intel;

namespace Ring3.Cpu;

/// <summary>What a processor's translated code has called back for. Owner thread.</summary>
internal sealed class TranslationCounters
{
    /// <summary>
    /// Times translated code was entered from managed code, instructions that retired in it (those of handlers that it called too), and calls back by kind.
    /// </summary>
    public long Entries;
    public ulong Translated;
    public readonly long[] Sites = new long[Enum.GetValues<SiteKind>().Length];

    /// <summary>Of those, the ones that left translated code.</summary>
    public readonly long[] Leaves = new long[Enum.GetValues<SiteKind>().Length];

    /// <summary>Handlers called, and instructions left to the interpreter, by code; only while there is a log.</summary>
    public readonly long[]? Handlers = ByCode(), Left = ByCode();

    private static long[]? ByCode() => Engine.Log is null ? null : new long[VectorHandlers.CodeCount];

    /// <summary>Ticks of <see cref="Stopwatch"/> spent on regions, and guest instructions in them.</summary>
    public long BuildTicks, BuiltInstructions;
}

/// <summary>The end of the translation log: how much ran translated, why the rest did not, and what translated code was left for.</summary>
/// <remarks>SAFETY: reads the arenas of a machine whose processors are outside the guest for good.</remarks>
internal static unsafe class TranslationReport
{
    private const int Lines = 40;

    public static string Of(Machine machine)
    {
        StringBuilder text = new("-- summary\n");
        foreach (LogicalProcessor p in machine.Processors)
        {
            TranslationCounters n = p.Translator.Counters;
            ulong retired = p.State->InstructionsRetired;
            string share = Percent(n.Translated, retired);
            text.Append($"processor: {retired} instructions, {n.Translated} in translated code ({share}), {n.Entries} entries\n");
            if (n.BuiltInstructions != 0)
            {
                double ns = Stopwatch.GetElapsedTime(0, n.BuildTicks).TotalNanoseconds / n.BuiltInstructions;
                text.Append($"built: {n.BuiltInstructions} guest instructions, {ns:F0} ns each\n");
            }
            for (int i = 0; i < n.Sites.Length; i++)
                if (n.Sites[i] != 0)
                    text.Append($"  callbacks {(SiteKind)i,-12} {n.Sites[i],10}, left {n.Leaves[i]}\n");
            Append(text, "handlers", n.Handlers!);
            Append(text, "left", n.Left!);
        }
        text.Append($"regions: {machine.Blocks.RegionsMade} made, {machine.Blocks.RegionsDropped} dropped, {machine.Blocks.RegionBytes} bytes\n");
        Interpreted(text, machine);
        return text.ToString();
    }

    private static string Percent(double part, double whole) => (part / Math.Max(whole, 1)).ToString("P1", System.Globalization.CultureInfo.InvariantCulture);

    private static void Append(StringBuilder text, string what, long[] byCode)
    {
        foreach (int code in Enumerable.Range(0, byCode.Length).Where(i => byCode[i] != 0).OrderByDescending(i => byCode[i]).Take(Lines))
            text.Append($"  {what} {(Code)code,-28} {byCode[code]}\n");
    }

    /// <summary>
    /// Instructions of the blocks that are still known, by why the interpreter executed them. A block counts its executions down, and what it counted is lost
    /// when it becomes hot.
    /// </summary>
    private static void Interpreted(StringBuilder text, Machine machine)
    {
        Dictionary<string, long> reasons = [];
        foreach (nint at in machine.Blocks.AllBlocks())
        {
            Block* b = (Block*)at;
            (string reason, int from) = !BlockMode.IsTranslatable(b->Mode) ? ($"mode {b->Mode:x}", int.MaxValue)
                : b->Heat > BlockCache.Retry ? ("never tried", int.MaxValue)
                : b->Heat > machine.Blocks.TranslationThreshold || b->Code == 0 && b->Heat < 0 ? ("refused", BlockCache.Retry)
                : b->Code != 0 ? ("translated", b->Heat) : ("cold", machine.Blocks.TranslationThreshold);
            if (b->HostNext != null)
                reason += ", crosses pages";
            reasons[reason] = reasons.GetValueOrDefault(reason) + (from - b->Heat) * (long)b->Instructions;
        }
        foreach ((string reason, long count) in reasons.OrderByDescending(r => r.Value))
            text.Append($"  interpreted {reason,-28} {count}\n");
    }
}

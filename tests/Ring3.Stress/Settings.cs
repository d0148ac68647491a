using Ring3.Memory;
using Ring3.Mmu;

namespace Ring3.Stress;

/// <summary>What one round varies.</summary>
/// <param name="Resident">The memory has a resident limit that changes all the time; it is never replaced.</param>
internal sealed record Settings(int Seed, int Cpus, bool Check, DirtyTracking Tracking, bool Rings, bool ManualProtect, bool ZapAll, bool Ranges,
    double Seconds, bool Resident)
{
    public static Settings Of(long seed, long round, string check, int cpus, bool resident)
    {
        var r = new Random(unchecked((int)(seed * 0x9e37_79b9 + round * 7919)));
        bool rings = r.Next(3) == 0;
        var tracking = (DirtyTracking)r.Next(4);
        return new Settings(r.Next(), cpus != 0 ? cpus : r.Next(2, Layout.MaxCpus + 1), check == "on" || check == "mixed" && round % 4 != 3, rings
            && tracking == DirtyTracking.DirtyScan ? DirtyTracking.DirtyLog : tracking,
            rings, !rings && r.Next(2) == 0, r.Next(2) == 0, r.Next(4) != 0, 5 + r.Next(6), r.Next(4) == 0 || resident);
    }
}

/// <summary>Resident memory must not grow from round to round, once the code is compiled and the pools are filled.</summary>
internal sealed class GrowthWatch
{
    private const int WarmUp = 4;
    private const long AllowedMiB = 96;
    private readonly List<long> _samples = [];

    public static long ResidentMiB()
    {
        foreach (string line in File.ReadLines("/proc/self/status"))
            if (line.StartsWith("VmRSS:", StringComparison.Ordinal))
                return long.Parse(line.AsSpan(6).Trim(" \tkB"), System.Globalization.CultureInfo.InvariantCulture) >> 10;
        return 0;
    }

    /// <summary>After a round, its machine still alive. A failure, or null.</summary>
    public string? Sample(Settings _)
    {
        GC.Collect();
        GC.WaitForPendingFinalizers();
        GC.Collect();
        _samples.Add(ResidentMiB());
        if (_samples.Count <= WarmUp)
            return null;
        long baseline = _samples.Take(WarmUp).Max();
        return _samples[^1] <= baseline + AllowedMiB ? null : $"resident memory grows: {string.Join(' ', _samples)} MiB";
    }
}

/// <summary>Sums over the rounds.</summary>
internal sealed class Tally
{
    public long Iterations, Checks, HostOperations, Flushes;

    public override string ToString() =>
        $"{Iterations} guest iterations, {HostOperations} host operations, {Flushes} remote flushes, {Checks} translations checked";
}

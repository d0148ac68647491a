using System.Globalization;
using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Names translated code for Linux's perf, which looks for /tmp/perf-PID.map: a line for each region, its host address, bytes, and the guest's address. Where
/// memory is used again the later line holds.
/// </summary>
/// <remarks>SAFETY: reads a region that its caller has just placed.</remarks>
internal static unsafe class PerfMap
{
    private static readonly RankedLock s_lock = new(LockRank.PerfMap);
    private static readonly StreamWriter? s_file = Open();

    private static StreamWriter? Open()
    {
        if (Environment.GetEnvironmentVariable(Engine.PerfMapVariable) != "1")
            return null;
        try
        {
            // Never through a link that somebody else has left there.
            string path = $"/tmp/perf-{Environment.ProcessId}.map";
            return new StreamWriter(new FileStream(path, FileMode.CreateNew, FileAccess.Write, FileShare.Read)) { AutoFlush = true };
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }

    /// <summary>Decode lock of the region's machine.</summary>
    public static void Add(Region* region)
    {
        if (s_file is null)
            return;
        string line = string.Create(CultureInfo.InvariantCulture, $"{region->Code:x} {region->CodeBytes:x} guest_{region->Address:x}");
        using (s_lock.Enter())
        {
            try { s_file.WriteLine(line); }
            catch (IOException) { /* A full disk costs names, not the guest. */ }
        }
    }
}

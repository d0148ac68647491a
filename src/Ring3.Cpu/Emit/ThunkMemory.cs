using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>
/// Executable memory of the process-wide thunks, known to <see cref="FaultGuard"/> by kind. Grows by regions; nothing is freed, because the number of different
/// thunks is bounded by the instruction set.
/// </summary>
internal static class ThunkMemory
{
    private const int RegionBytes = 1 << 20;
    private static readonly RankedLock s_lock = new(LockRank.ThunkMemory);
    private static readonly Dictionary<ThunkKind, ExecutableMemory> s_regions = [];

    /// <summary>Copies position-independent code in and returns its entry address. Any thread.</summary>
    public static nint Add(ReadOnlySpan<byte> code, ThunkKind kind)
    {
        using (s_lock.Enter())
        {
            // Room for the alignment of the start.
            if (!s_regions.TryGetValue(kind, out ExecutableMemory? region) || region.Free < (nuint)code.Length + 16)
            {
                s_regions[kind] = region = new ExecutableMemory(RegionBytes);
                FaultGuard.AddThunks(region.Next, RegionBytes, kind);
            }
            return region.Add(code);
        }
    }
}

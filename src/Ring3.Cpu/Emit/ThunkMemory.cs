using Ring3.Host;

namespace Ring3.Cpu;

/// <summary>Executable memory of the process-wide thunks. Grows by regions; nothing is freed, because the number of different thunks is bounded by the instruction set.</summary>
internal static class ThunkMemory
{
    private const int RegionBytes = 1 << 20;
    private static readonly Lock s_lock = new();
    private static ExecutableMemory? s_region;

    /// <summary>Copies position-independent code in and returns its entry address. Any thread.</summary>
    public static nint Add(ReadOnlySpan<byte> code)
    {
        lock (s_lock)
        {
            // Room for the alignment of the start.
            if (s_region is null || s_region.Free < (nuint)code.Length + 16)
                s_region = new ExecutableMemory(RegionBytes);
            return s_region.Add(code);
        }
    }
}

using System.Globalization;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary>The memory that a container leaves this process: beyond it the system ends the process without a word.</summary>
internal static class MemoryLimit
{
    /// <summary>What the hypervisor takes beside the guest's memory.</summary>
    private const ulong OwnBytes = 128UL << 20;
    /// <summary>No guest is made smaller than this by itself.</summary>
    private const ulong LeastGuestBytes = 128UL << 20;

    /// <summary>The least limit of this process's memory cgroup and those above it; null: none. A container may see its own as the root.</summary>
    public static ulong? Bytes { get; } = Read();

    /// <summary>The guest's memory: what is asked for, which has to fit unless less of it is resident, or else the usual size or as much as fits.</summary>
    /// <exception cref="BootException">It does not fit.</exception>
    public static ulong GuestBytes(ulong? asked, ulong usual, ulong? resident)
    {
        if (Bytes is not { } limit)
            return asked ?? usual;
        ulong fits = limit > OwnBytes ? (limit - OwnBytes) & ~((2UL << 20) - 1) : 0, needed = Math.Min(asked ?? ulong.MaxValue, resident ?? ulong.MaxValue);
        if (needed == ulong.MaxValue && fits >= LeastGuestBytes)
            return Math.Min(usual, fits);
        if (needed <= fits)
            return asked ?? usual;
        throw new BootException(ExitStatus.Resources, $"the memory limit of this container, {limit >> 20} MiB, leaves {fits >> 20} MiB for a guest: "
            + (fits >= LeastGuestBytes ? $"--memory {fits >> 20}M, or --resident {fits >> 20}M with a file on a disk" : "too little for one"));
    }

    private static ulong? Read()
    {
        ulong least = ulong.MaxValue;
        string[] lines;
        try
        {
            lines = File.ReadAllLines("/proc/self/cgroup");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
        foreach (string line in lines)
        {
            // "0::/path" in the unified hierarchy, "4:memory:/path" in the older one.
            if (line.Split(':', 3) is not [_, string controllers, string path])
                continue;
            if (controllers.Length == 0)
                Climb("/sys/fs/cgroup", path, "memory.max");
            else if (controllers.Split(',').Contains("memory"))
                Climb("/sys/fs/cgroup/memory", path, "memory.limit_in_bytes");
        }
        // The older hierarchy says "no limit" by the largest number of pages.
        return least < long.MaxValue / 2 ? least : null;

        void Climb(string mount, string path, string file)
        {
            for (string? at = path; at is not null; at = Path.GetDirectoryName(at))
            {
                try
                {
                    if (ulong.TryParse(File.ReadAllText($"{mount}{at}/{file}"), NumberStyles.AllowTrailingWhite, CultureInfo.InvariantCulture, out ulong bytes))
                        least = Math.Min(least, bytes);
                }
                catch (Exception e) when (e is IOException or UnauthorizedAccessException)
                {
                    // Not mounted, or a name of the host's.
                }
            }
        }
    }
}

namespace Ring3.Host;

/// <summary>What the kernel would let this process do.</summary>
public static class Privileges
{
    private const int CapSysBoot = 22;

    /// <summary>CAP_SYS_BOOT is effective.</summary>
    public static bool MayReboot => (EffectiveCapabilities() >> CapSysBoot & 1) != 0;

    /// <summary>The user and the group that the process acts as.</summary>
    public static (uint User, uint Group) Identity =>
        ((uint)Libc.syscall(107 /* geteuid */, 0, 0, 0, 0, 0, 0), (uint)Libc.syscall(108 /* getegid */, 0, 0, 0, 0, 0, 0));

    /// <summary>The other groups of the process; none where the system does not say.</summary>
    /// <remarks>SAFETY: the array has as many entries as the call is told.</remarks>
    public static unsafe uint[] Groups
    {
        get
        {
            const nint GetGroups = 115;
            int count = (int)Libc.syscall(GetGroups, 0, 0, 0, 0, 0, 0);
            var groups = new uint[Math.Max(count, 0)];
            fixed (uint* p = groups)
                count = groups.Length == 0 ? 0 : (int)Libc.syscall(GetGroups, groups.Length, (nint)p, 0, 0, 0, 0);
            return count == groups.Length ? groups : [];
        }
    }

    private static ulong EffectiveCapabilities()
    {
        try
        {
            foreach (string line in File.ReadLines("/proc/thread-self/status"))
                if (line.StartsWith("CapEff:", StringComparison.Ordinal))
                    return Convert.ToUInt64(line[7..].Trim(), 16);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or FormatException)
        {
        }
        return 0;
    }
}

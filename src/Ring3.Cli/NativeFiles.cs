namespace Ring3.Cli;

/// <summary>Where the files of the native builds are: next to this program, or in the repository that it was built in.</summary>
internal static class NativeFiles
{
    public const string Interposer = "libring3.so", Core = "libring3-core.so", Launcher = "ring3-exec", SelfTest = "ring3-selftest",
        Unavailable = "unavailable";

    /// <summary>Full path of a native file, or null.</summary>
    public static string? Find(string name)
    {
        for (DirectoryInfo? d = new(AppContext.BaseDirectory); d is not null; d = d.Parent)
        {
            foreach (string candidate in (string[])[Path.Combine(d.FullName, name), Path.Combine(d.FullName, "devkvm", name),
                Path.Combine(d.FullName, "native", name)])
            {
                if (File.Exists(candidate))
                    return candidate;
            }
        }
        return null;
    }
}

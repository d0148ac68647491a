namespace Ring3.Cli;

/// <summary>Where the files of the native builds are: in <c>lib/ring3</c> beside this program's <c>bin</c> when it is installed, else in the repository that
/// it was built in.</summary>
internal static class NativeFiles
{
    public const string Interposer = "libring3.so", Core = "libring3-core.so", Launcher = "ring3-exec", SelfTest = "ring3-selftest",
        Unavailable = "unavailable";

    private static readonly string s_library = Path.GetFullPath(Path.Combine(AppContext.BaseDirectory, "..", "lib", "ring3"));

    /// <summary>Whether this program is installed: it then uses what was installed with it, and nothing else.</summary>
    public static bool Installed { get; } = Directory.Exists(s_library);

    /// <summary>Full path of a native file, or null.</summary>
    public static string? Find(string name)
    {
        if (Installed)
        {
            string installed = Path.Combine(s_library, name);
            return File.Exists(installed) ? installed : null;
        }
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

    /// <summary>What to say about a file that <see cref="Find"/> does not find.</summary>
    public static string Missing(string name) => Installed
        ? $"{Path.Combine(s_library, name)} is missing: install Ring3 again"
        : $"{name} is not built: run ./ring3 exec in the repository once";
}

using System.Xml.Linq;

namespace Ring3.Architecture.Tests;

/// <summary>The source tree that the tests run in.</summary>
internal static class Repository
{
    public static readonly string Root = FindRoot();

    private static string FindRoot()
    {
        for (DirectoryInfo? d = new(AppContext.BaseDirectory); d is not null; d = d.Parent)
        {
            if (File.Exists(Path.Combine(d.FullName, "Ring3.slnx")))
                return d.FullName;
        }
        throw new DirectoryNotFoundException("no Ring3.slnx above the test binaries");
    }

    public static IEnumerable<string> ProductProjects() => Directory.EnumerateFiles(Path.Combine(Root, "src"), "*.csproj", SearchOption.AllDirectories);

    public static string NameOf(string project) => Path.GetFileNameWithoutExtension(project);

    public static string[] ReferencesOf(string project) =>
        [.. XDocument.Load(project).Descendants("ProjectReference").Select(r =>
            Path.GetFileNameWithoutExtension(r.Attribute("Include")!.Value.Replace('\\', '/')))];

    public static IEnumerable<string> Sources(params string[] folders) => folders
        .Where(f => Directory.Exists(Path.Combine(Root, f)))
        .SelectMany(f => Directory.EnumerateFiles(Path.Combine(Root, f), "*.cs", SearchOption.AllDirectories))
        .Where(f => !f.Contains("/obj/") && !f.Contains("/bin/"));

    public static string Relative(string path) => Path.GetRelativePath(Root, path);
}

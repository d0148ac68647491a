using System.Formats.Tar;
using System.Globalization;
using System.Text.RegularExpressions;

namespace Ring3.Vmm;

/// <summary>
/// Fetches files out of Debian packages with apt-get download and dpkg-deb: nothing is installed, no root is needed. The system's package lists are used when
/// they know the package; else lists are fetched into the cache directory.
/// </summary>
/// <param name="architecture">Debian's name of an architecture that is not the system's; null: the system's own. The system is not told of it: an apt
/// configuration beside its own serves.</param>
internal sealed class DebianPackages(string cacheDirectory, string? architecture, Action<string> progress)
{
    private string[]? _options;

    /// <summary>
    /// The kernel package of a flavour: what the meta package depends on, or, when that build is not published yet, the newest of the flavour that is,
    /// signed or not.
    /// </summary>
    public string ResolveKernel(string flavour)
    {
        const string Prefix = "linux-image-";
        string metaPackage = Prefix + flavour;
        EnsureLists(metaPackage);
        HostCommand.Result r = HostCommand.Run("apt-cache", [.. _options!, "depends", metaPackage]);
        foreach (string line in r.Output.Split('\n'))
        {
            string[] parts = line.Trim().Split(": ", 2);
            if (parts is ["Depends", var name] && name.StartsWith(Prefix, StringComparison.Ordinal) && IsPublished(name))
                return name;
        }
        HostCommand.Result names = HostCommand.Run("apt-cache",
            [.. _options!, "search", "--names-only", $"^{Prefix}[0-9.]+-[0-9]+-{Regex.Escape(flavour)}(-unsigned)?$"]);
        return names.Output.Split('\n').Select(l => l.Split(' ')[0]).Where(n => n.Length != 0).MaxBy(BuildNumber)
            ?? throw Unavailable(metaPackage, r.Ok ? "it names no kernel" : r.Error);
    }

    private bool IsPublished(string package) =>
        HostCommand.Run("apt-cache", [.. _options!, "show", "--no-all-versions", package]).Output.Contains("Filename:", StringComparison.Ordinal);

    /// <summary>Version and build of a kernel package's name as one comparable number: linux-image-6.1.0-50-amd64 is 6, 1, 0, 50.</summary>
    private static long BuildNumber(string package)
    {
        long number = 0;
        foreach (Match m in Regex.Matches(package, "(?<=[-.])[0-9]+(?=[-.])").Take(4))
            number = number * 10_000 + long.Parse(m.Value, CultureInfo.InvariantCulture) % 10_000;
        return number;
    }

    /// <summary>Downloads a package into <paramref name="directory"/> and returns the .deb's path.</summary>
    public string Download(string package, string directory)
    {
        EnsureLists(package);
        progress($"downloading Debian package {package}");
        HostCommand.Result r = HostCommand.Run("apt-get",
            [.. _options!, "-o", "APT::Sandbox::User=root", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1", "-q", "download", package],
            directory);
        string? file = Directory.EnumerateFiles(directory, "*.deb")
            .FirstOrDefault(f => Path.GetFileName(f).StartsWith(package + "_", StringComparison.Ordinal));
        if (!r.Ok || file is null)
        {
            if (r.Error.Contains("No space left", StringComparison.Ordinal))
                throw DiskFull(directory);
            throw Unavailable(package, r.Error);
        }
        return file;
    }

    /// <summary>Copies the first regular file of a package that <paramref name="wanted"/> accepts (path without leading "./") to
    /// <paramref name="destination"/>; returns its path in the package.</summary>
    public static string Extract(string deb, Func<string, bool> wanted, string destination)
    {
        string? found = null;
        HostCommand.Result r = HostCommand.Stream("dpkg-deb", ["--fsys-tarfile", deb], null, stream =>
        {
            using var tar = new TarReader(stream);
            while (found is null && tar.GetNextEntry() is { } entry)
            {
                string path = entry.Name.StartsWith("./", StringComparison.Ordinal) ? entry.Name[2..] : entry.Name;
                if (entry.EntryType is not (TarEntryType.RegularFile or TarEntryType.V7RegularFile) || !wanted(path))
                    continue;
                entry.ExtractToFile(destination, overwrite: true);
                if (new FileInfo(destination).Length != entry.Length)
                    throw new BootException(ExitStatus.NoInput, $"{Path.GetFileName(deb)}: {path} is truncated");
                found = path;
            }
            stream.CopyTo(Stream.Null);
        });
        if (found is null)
            throw new BootException(ExitStatus.NoInput, $"{Path.GetFileName(deb)}: {(r.Ok ? "the wanted file is not in the package" : r.Error)}");
        return found;
    }

    /// <summary>Copies every regular file of a package for which <paramref name="nameOf"/> has a name (path without leading "./") into a directory,
    /// under that name.</summary>
    public static void ExtractAll(string deb, Func<string, string?> nameOf, string directory)
    {
        HostCommand.Result r = HostCommand.Stream("dpkg-deb", ["--fsys-tarfile", deb], null, stream =>
        {
            using var tar = new TarReader(stream);
            while (tar.GetNextEntry() is { } entry)
            {
                string path = entry.Name.StartsWith("./", StringComparison.Ordinal) ? entry.Name[2..] : entry.Name;
                if (entry.EntryType is TarEntryType.RegularFile or TarEntryType.V7RegularFile && nameOf(path) is { } name)
                    entry.ExtractToFile(Path.Combine(directory, name), overwrite: true);
            }
            // What an archive is filled up with: dpkg-deb fails where nobody takes it.
            stream.CopyTo(Stream.Null);
        });
        if (!r.Ok)
            throw new BootException(ExitStatus.NoInput, $"{Path.GetFileName(deb)}: {r.Error}");
    }

    /// <summary>Chooses the system's package lists, or private ones when the system has none.</summary>
    private void EnsureLists(string package)
    {
        if (_options is not null)
            return;
        HostCommand.Result r = HostCommand.Run("apt-cache", ["show", "--no-all-versions", package]);
        if (r.Status == HostCommand.NotInstalled)
            throw new BootException(ExitStatus.NoInput, "this is not a Debian system (no apt-cache): pass --kernel FILE and --initrd FILE");
        if (architecture is null && r.Ok && r.Output.Contains("Filename:", StringComparison.Ordinal))
        {
            _options = [];
            return;
        }
        string state = Path.Combine(cacheDirectory, architecture is null ? "apt" : $"apt-{architecture}");
        Directory.CreateDirectory(Path.Combine(state, "lists", "partial"));
        Directory.CreateDirectory(Path.Combine(state, "archives", "partial"));
        string[] options = ["-o", $"Dir::State::Lists={state}/lists", "-o", $"Dir::Cache={state}", "-o", "APT::Sandbox::User=root", .. ForeignOptions()];
        progress("fetching Debian package lists");
        HostCommand.Result update = HostCommand.Run("apt-get", [.. options, "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1", "-q", "update"]);
        r = HostCommand.Run("apt-cache", [.. options, "show", "--no-all-versions", package]);
        if (!r.Ok || !r.Output.Contains("Filename:", StringComparison.Ordinal))
            throw Unavailable(package, update.Error.Length != 0 ? update.Error : r.Error);
        _options = options;
    }

    /// <summary>Makes the foreign architecture the only one, on a system where nothing is installed.</summary>
    private string[] ForeignOptions() => architecture is null ? []
        : ["-o", $"APT::Architecture={architecture}", "-o", $"APT::Architectures::={architecture}", "-o", "Dir::State::status=/dev/null"];

    internal static BootException DiskFull(string directory) =>
        new(ExitStatus.Resources, $"no space left on the disk of {directory}; set XDG_CACHE_HOME to a place with 128 MiB free");

    private BootException Unavailable(string package, string why) =>
        new(ExitStatus.NoInput, $"cannot download Debian package {package}{(architecture is null ? "" : $" for {architecture}")}"
            + $" ({(why.Length == 0 ? "no network?" : why.TrimEnd('.'))}); pass --kernel FILE and --initrd FILE");
}

namespace Ring3.Vmm;

/// <summary>
/// The default guest's files in the user's cache: Debian's kernel of a flavour, and busybox. Each is fetched once into a temporary directory and renamed into
/// place, so that an interrupted download leaves nothing behind and two processes do not disturb each other.
/// </summary>
public sealed class GuestCache
{
    private const long NeededBytes = 128L << 20;
    private const string VersionFile = "package", ModulesDirectory = KernelFiles.CachedModules, ModuleList = "list";
    private readonly Action<string> _progress;
    private readonly DebianPackages _packages, _i386Packages;

    /// <summary>$XDG_CACHE_HOME/ring3, else ~/.cache/ring3.</summary>
    public string Root { get; }

    public GuestCache(Action<string> progress, string? root = null)
    {
        _progress = progress;
        string? xdg = Environment.GetEnvironmentVariable("XDG_CACHE_HOME");
        string home = Environment.GetFolderPath(Environment.SpecialFolder.UserProfile, Environment.SpecialFolderOption.DoNotVerify);
        Root = root ?? Path.Combine(string.IsNullOrEmpty(xdg) || !Path.IsPathRooted(xdg) ? Path.Combine(home.Length == 0 ? "/tmp" : home, ".cache")
            : xdg, "ring3");
        _packages = new DebianPackages(Root, null, progress);
        _i386Packages = new DebianPackages(Root, "i386", progress);
    }

    /// <summary>Path of Debian's kernel image of a flavour ("cloud-amd64", "amd64", "686-pae"); downloaded when missing or when
    /// <paramref name="update"/>.</summary>
    /// <param name="flavour">Which kernel.</param>
    /// <param name="update">Also when it is there.</param>
    /// <param name="modules">Also when it is there without its modules, or without one, as an older cache has it.</param>
    public string Kernel(string flavour, bool update = false, bool modules = false) =>
        GetKernel(flavour, update || modules && !HasModules(Path.Combine(Root, $"linux-{flavour}")));

    /// <summary>Whether the modules were taken out of the package that are wanted now.</summary>
    private static bool HasModules(string place)
    {
        try { return File.ReadAllText(Path.Combine(place, ModulesDirectory, ModuleList)) == GuestModules.Kept; }
        catch (IOException) { return false; }
    }

    private string GetKernel(string flavour, bool update) => Get($"linux-{flavour}", "vmlinuz", IsI386(flavour), update, (packages, directory) =>
    {
        string deb = packages.Download(packages.ResolveKernel(flavour), directory);
        DebianPackages.Extract(deb, p => p.StartsWith("boot/vmlinuz", StringComparison.Ordinal), Path.Combine(directory, "vmlinuz"));
        string modules = Path.Combine(directory, ModulesDirectory);
        Directory.CreateDirectory(modules);
        DebianPackages.ExtractAll(deb, GuestModules.FileOf, modules);
        File.WriteAllText(Path.Combine(modules, ModuleList), GuestModules.Kept);
        return deb;
    });

    /// <summary>Whether a flavour's kernel is 32-bit.</summary>
    public static bool IsI386(string flavour) =>
        flavour.StartsWith("686", StringComparison.Ordinal) || flavour.EndsWith("-686", StringComparison.Ordinal)
        || flavour.EndsWith("-686-pae", StringComparison.Ordinal);

    /// <summary>Path of a static busybox, for the host's architecture or i386.</summary>
    public string Busybox(bool i386 = false, bool update = false) =>
        Get(i386 ? "busybox-static-i386" : "busybox-static", "busybox", i386, update, (packages, directory) =>
    {
        string deb = packages.Download("busybox-static", directory);
        string program = Path.Combine(directory, "busybox");
        DebianPackages.Extract(deb, p => p is "bin/busybox" or "usr/bin/busybox", program);
        File.SetUnixFileMode(program,
            UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute | UnixFileMode.GroupRead | UnixFileMode.OtherRead);
        HostCommand.Result list = HostCommand.Run(program, ["--list-full"]);
        // A host kernel may refuse 32-bit programs; Debian builds both with the same applets.
        if (!list.Ok && i386)
            list = HostCommand.Run(Busybox(), ["--list-full"]);
        if (!list.Ok || list.Output.Length == 0)
            throw new BootException(ExitStatus.NoInput, $"busybox-static: the program does not run on this host ({list.Error})");
        File.WriteAllText(Path.Combine(directory, "applets"), list.Output);
        return deb;
    });

    /// <summary>The base initramfs, built from the cached busybox.</summary>
    public byte[] BaseInitramfs(bool i386 = false)
    {
        string busybox = Busybox(i386);
        return Initramfs.BuildBase(ReadFile(busybox), File.ReadAllLines(Path.Combine(Path.GetDirectoryName(busybox)!, "applets")));
    }

    /// <summary>Reads a file whole; a file that cannot be read is a <see cref="BootException"/>.</summary>
    public static byte[] ReadFile(string path)
    {
        try
        {
            if (Directory.Exists(path))
                throw new BootException(ExitStatus.NoInput, $"{path}: is a directory");
            return File.ReadAllBytes(path);
        }
        catch (FileNotFoundException) { throw new BootException(ExitStatus.NoInput, $"{path}: no such file"); }
        catch (DirectoryNotFoundException) { throw new BootException(ExitStatus.NoInput, $"{path}: no such file"); }
        catch (UnauthorizedAccessException) { throw new BootException(ExitStatus.NoInput, $"{path}: permission denied"); }
        catch (Exception e) when (e is IOException or ArgumentException
            or NotSupportedException) { throw new BootException(ExitStatus.NoInput, $"{path}: {e.Message}"); }
    }

    private string Get(string name, string file, bool i386, bool update, Func<DebianPackages, string, string> fetch)
    {
        string place = Path.Combine(Root, name), path = Path.Combine(place, file);
        if (!update && File.Exists(path) && File.Exists(Path.Combine(place, VersionFile)))
            return path;
        string work = Path.Combine(Root, $"{name}.{Environment.ProcessId}.tmp");
        try
        {
            Directory.CreateDirectory(work);
            CheckSpace(work);
            string deb = fetch(i386 ? _i386Packages : _packages, work);
            File.WriteAllText(Path.Combine(work, VersionFile), Path.GetFileNameWithoutExtension(deb) + "\n");
            File.Delete(deb);
            Publish(work, place);
            _progress($"cached {path}");
            return path;
        }
        catch (UnauthorizedAccessException) { throw new BootException(ExitStatus.NoInput,
            $"cannot write to the cache directory {Root}: permission denied; set XDG_CACHE_HOME"); }
        catch (IOException e) when (IsDiskFull(e)) { throw DebianPackages.DiskFull(Root); }
        catch (IOException e) { throw new BootException(ExitStatus.NoInput, $"cannot write to the cache directory {Root}: {e.Message}"); }
        finally { TryDelete(work); }
    }

    /// <summary>Renames into place. When another process was faster, its files are as good.</summary>
    private static void Publish(string work, string place)
    {
        if (Directory.Exists(place))
        {
            string old = work + ".old";
            Directory.Move(place, old);
            TryDelete(old);
        }
        try { Directory.Move(work, place); }
        catch (IOException) when (Directory.Exists(place)) { }
    }

    private static void CheckSpace(string directory)
    {
        if (new DriveInfo(directory).AvailableFreeSpace < NeededBytes)
            throw DebianPackages.DiskFull(directory);
    }

    private static bool IsDiskFull(IOException e)
    {
        const int ENOSPC = 28, EDQUOT = 122;
        return (e.HResult & 0xffff) is ENOSPC or EDQUOT || e.Message.Contains("No space left", StringComparison.Ordinal);
    }

    private static void TryDelete(string directory)
    {
        try
        {
            if (Directory.Exists(directory))
                Directory.Delete(directory, recursive: true);
        }
        catch (IOException) { }
        catch (UnauthorizedAccessException) { }
    }
}

namespace Ring3.Vmm;

/// <summary>
/// Snapshots in the user's cache of default guests that wait for a command, by everything that went into them. The command, its streams and its directory come
/// later, so that one snapshot serves all.
/// </summary>
public sealed class WarmStart
{
    /// <summary>What the cache keeps at most: the snapshots used last.</summary>
    public const int MaxSnapshots = 8;
    public const long MaxBytes = 2L << 30;
    private const string Suffix = ".snapshot";

    private readonly string _directory, _key;

    private WarmStart(string directory, string key) => (_directory, _key) = (directory, key);

    /// <summary>Where they are.</summary>
    public static string DirectoryOf(GuestCache cache) => Path.Combine(cache.Root, "warm");

    /// <summary>What is kept: number and bytes.</summary>
    public static (int Count, long Bytes) Kept(string directory)
    {
        FileInfo[] files = Files(directory);
        return (files.Length, files.Sum(f => f.Length));
    }

    /// <summary>The cache for a machine with these options, or null: they have what a snapshot cannot have, or show how the guest starts.</summary>
    public static WarmStart? For(BootOptions options, GuestCache cache)
    {
        bool plain = options.HasCommand && !options.Cold && options.SnapshotFile is null && options is { Kernel: null, Initrd.Count: 0, Acpi: true }
            && options is { Protocol: BootProtocol.Auto, Serial: "stdio", Verbose: false, CheckTlb: false, Trace: TraceCategories.None }
            && (options.Run is not null || options.Shares.Count == 0) && options is { Disks.Count: 0, Net: null, Vsock: null }
            && Machine.SnapshotObstacle(options) is null;
        if (!plain)
            return null;
        string kernel = cache.Kernel("cloud-amd64", modules: true), busybox = cache.Busybox();
        MachineIdentity identity = MachineIdentity.Of(options.Processor);
        string[] parts =
        [
            identity.ToString(), MachineIdentity.FileMark(kernel), MachineIdentity.FileMark(busybox),
            MachineIdentity.FileMark(Path.Combine(Path.GetDirectoryName(kernel)!, KernelFiles.CachedModules)),
            $"{options.Cpus} processors, {options.MemoryBytes} bytes", options.Append, options.Run is null ? "boot" : "run",
            .. options.Shares.Select((s, i) => $"share {s.Tag} {s.ReadOnly}"),
        ];
        return new WarmStart(DirectoryOf(cache), string.Join('\n', parts));
    }

    /// <summary>A machine whose guest waits, and can be kept.</summary>
    public static BootOptions Waiting(BootOptions options) => options with { WaitsForScript = true, Streams = options.Streams ?? new CommandStreams() };

    private string FilePath => Path.Combine(_directory, $"{Hash(_key):x16}{Suffix}");

    /// <summary>The snapshot for these options, or null. One that cannot be used is gone afterwards.</summary>
    public SnapshotFile? Find()
    {
        if (!File.Exists(FilePath))
            return null;
        try
        {
            SnapshotFile file = SnapshotFile.Open(FilePath);
            if (file.Settings.Key == _key)
            {
                Touch(FilePath);
                return file;
            }
            file.Dispose();
        }
        catch (BootException) { }
        Delete(FilePath);
        return null;
    }

    /// <summary>Keeps a snapshot of a machine that waits. Not being able to is no failure: the next start is a cold one.</summary>
    public void Keep(Machine machine)
    {
        try
        {
            Directory.CreateDirectory(_directory, UnixFileMode.UserRead | UnixFileMode.UserWrite | UnixFileMode.UserExecute);
            machine.Snapshot(new SnapshotFolder(FilePath), _key);
            Trim(_directory);
        }
        catch (Exception e) when (e is BootException or IOException or UnauthorizedAccessException) { }
    }

    /// <summary>The oldest go, until the rest is within the bounds. Machines that use one keep it.</summary>
    private static void Trim(string directory)
    {
        long bytes = 0;
        foreach ((int i, FileInfo file) in Files(directory).OrderByDescending(f => f.LastWriteTimeUtc).Index())
        {
            bytes += file.Length;
            if (i >= MaxSnapshots || i > 0 && bytes > MaxBytes)
                Delete(file.FullName);
        }
    }

    private static FileInfo[] Files(string directory)
    {
        try { return Directory.Exists(directory) ? new DirectoryInfo(directory).GetFiles("*" + Suffix) : []; }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { return []; }
    }

    private static void Touch(string path)
    {
        try { File.SetLastWriteTimeUtc(path, DateTime.UnixEpoch.AddTicks(Host.HostClock.RealtimeNs() / 100)); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { }
    }

    private static void Delete(string path)
    {
        try { File.Delete(path); }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException) { }
    }

    /// <summary>FNV-1a. The key itself is in the file, and compared.</summary>
    private static ulong Hash(string key)
    {
        ulong hash = 0xcbf2_9ce4_8422_2325;
        foreach (char c in key)
            hash = (hash ^ c) * 0x100_0000_01b3;
        return hash;
    }
}

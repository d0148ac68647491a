using System.IO.Compression;
using System.Text;

namespace Ring3.Vmm;

/// <summary>A share of the host, and where the guest has it.</summary>
public sealed record GuestMount(string Tag, string Place, bool ReadOnly);

/// <summary>What the guest's init is told.</summary>
public sealed record InitOptions
{
    /// <summary>Command for /bin/sh -c; null = interactive shell.</summary>
    public string? Exec { get; init; }
    /// <summary>Command for the host's root; <see cref="Mounts"/> begin with that root.</summary>
    public RunCommand? Run { get; init; }
    /// <summary>The command's streams; null: serial ports, and no input.</summary>
    public CommandStreams? Streams { get; init; }
    /// <summary>Init waits for its script (<see cref="InitScript.Script"/>) where the guest has a virtio console.</summary>
    public bool WaitsForScript { get; init; }
    /// <summary>The shell talks to a terminal; otherwise it reads a script from the console until Ctrl-D.</summary>
    public bool Interactive { get; init; } = true;
    /// <summary>Size of the host's terminal, 0 = unknown.</summary>
    public int Rows { get; init; }
    public int Columns { get; init; }
    public string Console { get; init; } = "/dev/ttyS0";
    public string Terminal { get; init; } = "linux";
    /// <summary>The first network card: its address comes by DHCP, or it is only switched on; null: there is none.</summary>
    public bool? Dhcp { get; init; }
    /// <summary>The kernel's command line names a root, which the machine's own init is started in.</summary>
    public bool Root { get; init; }
    /// <summary>Shares of the host, mounted in this order.</summary>
    public IReadOnlyList<GuestMount> Mounts { get; init; } = [];
    /// <summary>Loaded before anything else runs, in this order.</summary>
    public IReadOnlyList<GuestModule> Modules { get; init; } = [];
}

/// <summary>
/// The initial RAM disk of the default guest: a busybox userland with an init script, and a small second archive with this boot's settings. Linux unpacks
/// archives one after the other, so the second also rides on a user's own initrd.
/// </summary>
public static class Initramfs
{
    /// <summary>Where init lives; passed as rdinit= so that a user's initrd keeps its own /init.</summary>
    public const string InitPath = "/.ring3/init";

    /// <summary>Ports of the exec channel: standard output, standard error, and the status line. COM1 stays the console.</summary>
    public const string OutputDevice = "/dev/ttyS1", ErrorDevice = "/dev/ttyS2", StatusDevice = "/dev/ttyS3";

    private static readonly string[] s_directories =
        ["bin", "sbin", "usr", "usr/bin", "usr/sbin", "dev", "proc", "sys", "run", "tmp", "root", "etc", "mnt", "var", "lib"];

    /// <summary>The userland: directories, busybox and its applet links (paths as <c>busybox --list-full</c> prints them).</summary>
    public static byte[] BuildBase(ReadOnlySpan<byte> busybox, IEnumerable<string> applets)
    {
        var bytes = new MemoryStream();
        var cpio = new CpioWriter(bytes);
        foreach (string d in s_directories)
            cpio.Directory(d, d == "tmp" ? 0x3ff : 0x1ed);
        cpio.CharDevice("dev/console", 5, 1);
        cpio.CharDevice("dev/null", 1, 3, 0x1b6);
        cpio.File("bin/busybox", busybox, 0x1ed);
        foreach (string applet in applets.Select(a => a.TrimStart('/')).Where(a => a.Length != 0
            && a != "bin/busybox").Distinct().Order(StringComparer.Ordinal))
            cpio.Symlink(applet, "/bin/busybox");
        cpio.File("etc/passwd", "root:x:0:0:root:/root:/bin/sh\n"u8);
        cpio.File("etc/group", "root:x:0:\ntty:x:5:\n"u8);
        cpio.Symlink("init", InitPath);
        cpio.Finish();
        return bytes.ToArray();
    }

    /// <summary>This boot's part: init, its settings, and busybox under its own path when the base is a user's initrd.</summary>
    public static byte[] BuildOverlay(InitOptions options, ReadOnlySpan<byte> privateBusybox)
    {
        var bytes = new MemoryStream();
        var cpio = new CpioWriter(bytes);
        cpio.Directory(".ring3");
        bool own = !privateBusybox.IsEmpty;
        if (own)
            cpio.File(".ring3/busybox", privateBusybox, 0x1ed);
        string shell = own ? "/.ring3/busybox" : "/bin/busybox";
        cpio.File(InitPath, Encoding.UTF8.GetBytes(InitScript.Build(shell, options)), 0x1ed);
        if (options.Exec is not null || options.Run is not null)
            cpio.File(".ring3/command", Encoding.UTF8.GetBytes(InitScript.Command(options)));
        if (options.WaitsForScript)
            cpio.File(ReseedProgram.Path[1..], ReseedProgram.Build(), 0x1ed);
        if (options.Dhcp == true)
            cpio.File(".ring3/dhcp", Encoding.UTF8.GetBytes(InitScript.Dhcp(shell)), 0x1ed);
        if (options.Modules.Count != 0)
            cpio.Directory(".ring3/modules");
        foreach (GuestModule module in options.Modules)
            cpio.File($".ring3/modules/{module.Name}.ko", module.Content);
        cpio.Finish();
        return bytes.ToArray();
    }

    /// <summary>Compresses an archive with gzip, which every Linux kernel unpacks.</summary>
    public static byte[] Gzip(ReadOnlySpan<byte> archive)
    {
        var bytes = new MemoryStream();
        using (var gzip = new GZipStream(bytes, CompressionLevel.SmallestSize, leaveOpen: true))
            gzip.Write(archive);
        return bytes.ToArray();
    }
}

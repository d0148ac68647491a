using Ring3.Host;

namespace Ring3.Vmm;

/// <summary>The host's terminal as the guest is told of it. Rows and columns: 0 = unknown.</summary>
public readonly record struct HostTerminal(bool Interactive, int Rows, int Columns);

/// <summary>The files and the command line of one boot, in memory and ready for a loader.</summary>
public sealed record GuestPlan(byte[] Kernel, string KernelName, BootRequest Request)
{
    private const string LinuxDefaults = "console=ttyS0 panic=-1";

    /// <summary>Reads or fetches what the options ask for.</summary>
    public static GuestPlan Prepare(BootOptions options, GuestCache cache, HostTerminal terminal)
    {
        IReadOnlyList<string> names = GuestModules.For(options);
        string kernelPath = options.Kernel is { } given ? KernelFiles.Image(given) : cache.Kernel("cloud-amd64", modules: names.Count != 0);
        string name = Path.GetFileName(kernelPath);
        byte[] kernel = KernelLoader.Unpack(GuestCache.ReadFile(kernelPath), name);
        bool linux = options.Protocol != BootProtocol.BootSector && KernelLoader.IsLinux(kernel, name);
        if (options.HasCommand && !linux)
            throw new BootException(ExitStatus.Usage, $"{(options.Run is null ? "--exec" : "ring3 run")} needs a Linux kernel, and {kernelPath} is not one");
        var request = new BootRequest
        {
            Protocol = options.Protocol,
            CommandLine = linux ? LinuxCommandLine(options) : options.Append,
            Modules = linux
                ? LinuxModules(options, cache, terminal, KernelFiles.Modules(kernelPath, kernel, names), i386: KernelLoader.IsI386(kernel, name))
                : [.. options.Initrd.Select(ReadModule)],
            RandomSeed = linux ? Entropy(options) : default,
        };
        return new GuestPlan(kernel, name, request);
    }

    /// <summary>A module's file and, behind it, its words: "FILE WORDS". A file whose name has spaces is found first.</summary>
    private static BootModule ReadModule(string option)
    {
        string file = option;
        while (!File.Exists(file) && file.LastIndexOf(' ') is var space and > 0)
            file = file[..space];
        if (!File.Exists(file))
            file = option.Split(' ')[0]; // for the message
        return new BootModule(Path.GetFileName(file) + option[file.Length..], GuestCache.ReadFile(file));
    }

    private static string LinuxCommandLine(BootOptions options)
    {
        var words = new List<string> { options.Xen ? LinuxDefaults.Replace("ttyS0", "hvc0", StringComparison.Ordinal) : LinuxDefaults };
        if (options.HasCommand || options.WaitsForScript)
            words.Add((options.Verbose ? "" : "quiet ") + "8250.nr_uarts=4");
        if (options.HasCommand || options.Initrd.Count == 0)
            words.Add("rdinit=" + Initramfs.InitPath);
        if (options.Seed is not null)
            words.Add("nokaslr");
        if (options.Append.Length != 0)
            words.Add(options.Append);
        return string.Join(' ', words);
    }

    private static IReadOnlyList<BootModule> LinuxModules(
        BootOptions options, GuestCache cache, HostTerminal terminal, IReadOnlyList<GuestModule> modules, bool i386)
    {
        InitOptions init = Init(options, terminal, modules);
        if (options.Initrd.Count == 0)
            return [new BootModule("initramfs", cache.BaseInitramfs(i386)), new BootModule("overlay", Initramfs.BuildOverlay(init, []))];
        var files = options.Initrd.Select(f => new BootModule(Path.GetFileName(f), GuestCache.ReadFile(f))).ToList();
        if (options.HasCommand)
            files.Add(new BootModule("overlay", Initramfs.BuildOverlay(init, GuestCache.ReadFile(cache.Busybox(i386)))));
        return files;
    }

    /// <summary>What a guest is sent that waits for it (<see cref="BootOptions.WaitsForScript"/>).</summary>
    /// <param name="options">What it is to do.</param>
    /// <param name="terminal">The host's.</param>
    /// <param name="clone">The guest has been copied while it waited.</param>
    public static byte[] Script(BootOptions options, HostTerminal terminal, bool clone) =>
        System.Text.Encoding.UTF8.GetBytes(InitScript.Script(Init(options, terminal, []), clone));

    private static InitOptions Init(BootOptions options, HostTerminal terminal, IReadOnlyList<GuestModule> modules) =>
        new()
        {
            Exec = options.Exec, Run = options.Run, Streams = options.Streams, WaitsForScript = options.WaitsForScript, Interactive = terminal.Interactive,
            Rows = terminal.Rows, Columns = terminal.Columns,
            Console = options.Xen ? "/dev/hvc0" : "/dev/ttyS0",
            Terminal = Environment.GetEnvironmentVariable("TERM") is { Length: > 0 } t ? t : "linux", Modules = modules,
            Mounts = modules.Count == 0 && options.Run is null ? []
                : [.. options.Shares.Select((s, i) => new GuestMount(s.Tag ?? $"share{i}", s.Place, s.ReadOnly))],
            Root = options.BootsRoot,
            // A root's own init does that.
            Dhcp = options.Net is null || modules.Count == 0 || options.BootsRoot ? null : options.Net.Tap is null,
        };

    /// <summary>Seed for the guest's random pool: the host's, or derived from --seed.</summary>
    private static byte[] Entropy(BootOptions options)
    {
        byte[] bytes = new byte[32];
        if (options.Seed is { } seed)
            new SeededRandom(seed).Fill(bytes);
        else
            HostRandom.Fill(bytes);
        return bytes;
    }
}

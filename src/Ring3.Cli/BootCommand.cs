using System.CommandLine;
using System.CommandLine.Parsing;
using System.Globalization;
using Ring3.Cpu;
using Ring3.Host;
using Ring3.Mmu;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 boot</c>: options to <see cref="BootOptions"/>.</summary>
internal static class BootCommand
{
    internal static readonly Option<string?> s_kernel = new("--kernel", "-k")
    {
        Description = "bzImage, vmlinux, Multiboot image or boot sector; may be compressed (default: Debian's cloud kernel, fetched once)",
        HelpName = "FILE",
    };
    private static readonly Option<string[]> s_initrd = new("--initrd", "-i")
    {
        Description = "initial RAM disk; repeatable (Multiboot: modules, 'FILE WORDS' with a command line)",
        HelpName = "FILE", Arity = ArgumentArity.OneOrMore, AllowMultipleArgumentsPerToken = false,
    };
    internal static readonly Option<string> s_append = new("--append", "-a")
    {
        Description = "added to the kernel's command line",
        HelpName = "WORDS", DefaultValueFactory = _ => "",
    };
    internal static readonly Option<int> s_cpus = new("--cpus", "-c")
    {
        Description = $"virtual processors, 1 to {BootOptions.MaxCpus}",
        HelpName = "N", DefaultValueFactory = _ => 2, CustomParser = ParseCpus,
    };
    internal static readonly Option<ProcessorModel> s_cpu = new("--cpu")
    {
        Description = "which processor the machine has: host (its vendor's behaviour and its identity), intel, amd (default: host)",
        HelpName = "host|intel|amd", DefaultValueFactory = _ => ProcessorModel.Host, CustomParser = ParseCpu,
    };
    internal static readonly Option<int> s_engine = new("--engine")
    {
        Description = "how guest code runs: translator (hot 64-bit code becomes host code) or interpreter",
        HelpName = "translator|interpreter", DefaultValueFactory = _ => Engine.Threshold, CustomParser = ParseEngine,
    };
    internal static readonly Option<ulong?> s_memory = new("--memory", "-m")
    {
        Description = "guest RAM, with suffix K, M or G (default: 512M)",
        HelpName = "SIZE", CustomParser = r => ParseSize(r, "--memory"),
    };
    private static readonly Option<string> s_serial = new("--serial")
    {
        Description = "where COM1 goes: stdio, or a file",
        HelpName = "FILE|stdio", DefaultValueFactory = _ => "stdio",
    };
    private static readonly Option<bool> s_noAcpi = new("--no-acpi") { Description = "no ACPI tables; the MP table stays" };
    private static readonly Option<ulong?> s_seed = new("--seed")
    {
        Description = "make the guest's random seed repeatable, and its kernel's address fixed",
        HelpName = "NUMBER", CustomParser = ParseSeed,
    };
    internal static readonly Option<string?> s_exec = new("--exec", "-e")
    {
        Description = "run CMD with sh in the guest, stream its output, and exit with its status",
        HelpName = "CMD",
    };
    private static readonly Option<BootProtocol> s_protocol = new("--protocol")
    {
        Description = "how the kernel is entered: auto, linux64, linux32, linux16, pvh, multiboot, bootsector (default: auto)",
        HelpName = "NAME", CustomParser = ParseProtocol,
    };
    private static readonly Option<TraceCategories> s_trace = new("--trace")
    {
        Description = "print to standard error: exits, io, mmio, interrupts, exceptions, blocks, translate, all; comma-separated",
        HelpName = "CATEGORIES", CustomParser = ParseTrace,
    };
    private static readonly Option<bool> s_xen = new("--xen") { Description = "be a Xen HVM guest's machine: event channels, PV timer and IPIs, console hvc0" };
    private static readonly Option<bool> s_xenFifo = new("--xen-fifo") { Description = "with --xen: offer FIFO event channels" };
    private static readonly Option<string?> s_check = new("--check")
    {
        Description = "check the hypervisor while it runs: tlb (every use of a cached translation; some ten times slower)",
        HelpName = "tlb", CustomParser = ParseCheck,
    };
    private static readonly Option<RootZapPolicy?> s_zap = new("--zap")
    {
        Description = "who zaps obsolete page tables: worker, sync (whoever makes them obsolete), inline (also vCPUs, without yielding; default: worker)",
        HelpName = "inline|sync|worker", CustomParser = ParseZap,
    };
    private static readonly Option<int> s_zapShare = new("--zap-share")
    {
        Description = "percent of one processor that the worker may take for it",
        HelpName = "PERCENT", DefaultValueFactory = _ => BootOptions.DefaultZapShare, CustomParser = ParseZapShare,
    };
    private static readonly Option<ulong?> s_resident = new("--resident")
    {
        Description = "keep at most SIZE of guest RAM in host memory; colder pages go to a file",
        HelpName = "SIZE", CustomParser = r => ParseSize(r, "--resident"),
    };
    private static readonly Option<string?> s_residentDir = new("--resident-dir")
    {
        Description = "where that file is made (default: /var/tmp)",
        HelpName = "DIR",
    };
    internal static readonly Option<DiskOption[]> s_disk = new("--disk")
    {
        Description = "a disk image or block device; repeatable",
        HelpName = "FILE[,ro][,direct][,serial=S][,format=raw|qcow2]", CustomParser = ParseDisks, Arity = ArgumentArity.OneOrMore,
        AllowMultipleArgumentsPerToken = false,
    };
    internal static readonly Option<ShareOption[]> s_share = new("--share")
    {
        Description = "a folder of the host (virtiofsd), which the default guest has at the same path; repeatable",
        HelpName = "DIR[:TAG][,ro]", CustomParser = ParseShares,
        Arity = ArgumentArity.OneOrMore, AllowMultipleArgumentsPerToken = false,
    };
    internal static readonly Option<NetOption?> s_net = new("--net")
    {
        Description = "a network card: user (passt, no privileges; forwards of ports of 127.0.0.1), tap=NAME, none (default)",
        HelpName = "user[,forward=HOST:GUEST]|tap=NAME|none", CustomParser = ParseNet,
    };
    internal static readonly Option<VsockOption?> s_vsock = new("--vsock")
    {
        Description = "streams: to the guest through this local socket (CONNECT PORT), from it to PATH_PORT",
        HelpName = "PATH[,cid=N]", CustomParser = ParseVsock,
    };
    private static readonly Option<string?> s_snapshot = new("--snapshot")
    {
        Description = "write the running guest to FILE, for ring3 restore: when Ctrl-^ is pressed, or when --snapshot-at says",
        HelpName = "FILE",
    };
    private static readonly Option<string?> s_snapshotAt = new("--snapshot-at")
    {
        Description = "make the snapshot, and end, when the console says TEXT; 'ready': when the default guest could run a command",
        HelpName = "TEXT|ready",
    };
    internal static readonly Option<bool> s_cold = new("--cold")
    {
        Description = "boot the guest of a command although the cache has a snapshot of one that waits for it, and keep none",
    };
    private static readonly Option<string?> s_heatmap = new("--heatmap")
    {
        Description = "write a picture of the working set over time (PNG)",
        HelpName = "FILE",
    };
    internal static readonly Option<bool> s_stats = new("--stats") { Description = "print KVM's counters to standard error at the end" };
    internal static readonly Option<string?> s_name = new("--name")
    {
        Description = "what ring3 ctl calls the machine (default: the number of its process)", HelpName = "NAME", CustomParser = ParseName,
    };
    internal static readonly Option<bool> s_noSandbox = new("--no-sandbox")
    {
        Description = "do not confine the process to what it has open (seccomp, Landlock) before the guest runs",
    };
    internal static readonly Option<bool> s_verbose = new("--verbose", "-v")
    {
        Description = "say how the kernel is loaded; with --exec, the kernel's log on standard error",
    };

    public static Command Build()
    {
        s_check.CompletionSources.Add("tlb");
        s_cpu.CompletionSources.Add("host", "intel", "amd");
        s_engine.CompletionSources.Add("translator", "interpreter");
        s_net.CompletionSources.Add("user", "none");
        s_zap.CompletionSources.Add("inline", "sync", "worker");
        s_trace.CompletionSources.Add("exits", "io", "mmio", "interrupts", "exceptions", "blocks", "translate", "all");
        s_protocol.CompletionSources.Add("auto", "linux64", "linux32", "linux16", "pvh", "multiboot", "bootsector");
        var command = new Command("boot", "Boot a kernel; without options, Debian's cloud kernel of this release and a busybox shell. Ctrl-] quits.")
        {
            s_kernel, s_initrd, s_append, s_cpus, s_cpu, s_engine, s_memory, s_serial, s_noAcpi, s_seed, s_exec, s_protocol, s_xen, s_xenFifo,
            s_disk, s_share, s_net, s_vsock, s_resident, s_residentDir, s_snapshot, s_snapshotAt, s_cold, s_heatmap, s_zap, s_zapShare, s_trace, s_check,
            s_stats, s_name, s_noSandbox, s_verbose,
        };
        command.SetAction(r => BootSession.Run(Checked(Options(r))));
        return command;
    }

    /// <summary>What the command's streams are: it gets standard input, unless that is nothing.</summary>
    private static CommandStreams? Streams(ParseResult r) => Streams(r.GetValue(s_exec));

    internal static CommandStreams? Streams(string? exec) =>
        exec is null || FileDescriptor.LinkTarget(0) is null or "/dev/null" ? null : new CommandStreams { HasInput = true };

    /// <summary>What --snapshot needs of the other options, and changes in them.</summary>
    private static BootOptions Checked(BootOptions options)
    {
        if (options.SnapshotFile is null)
            return options.SnapshotAt is null ? options : throw new BootException(ExitStatus.Usage, "--snapshot-at needs --snapshot FILE");
        Ring3.Vmm.Machine.CheckSnapshot(options);
        if (options.SnapshotAt != SnapshotRequest.AtReady)
            return options;
        if (options.HasCommand || options.Initrd.Count != 0)
            throw new BootException(ExitStatus.Usage, "--snapshot-at ready is the default guest's, before it has a command: not with --exec or --initrd");
        return WarmStart.Waiting(options);
    }

    private static BootOptions Options(ParseResult r) => new()
    {
        Streams = Streams(r),
        Kernel = r.GetValue(s_kernel),
        Initrd = r.GetValue(s_initrd) ?? [],
        Append = r.GetValue(s_append)!,
        Cpus = r.GetValue(s_cpus),
        Processor = r.GetValue(s_cpu)!,
        TranslationThreshold = r.GetValue(s_engine),
        MemoryBytes = MemoryLimit.GuestBytes(r.GetValue(s_memory), 512UL << 20, r.GetValue(s_resident)),
        Serial = r.GetValue(s_serial)!,
        Acpi = !r.GetValue(s_noAcpi),
        Seed = r.GetValue(s_seed),
        Exec = r.GetValue(s_exec),
        Protocol = r.GetValue(s_protocol),
        Trace = r.GetValue(s_trace),
        Xen = r.GetValue(s_xen) || r.GetValue(s_xenFifo),
        XenFifo = r.GetValue(s_xenFifo),
        CheckTlb = r.GetValue(s_check) is not null,
        Zap = r.GetValue(s_zap) ?? RootZapPolicy.Worker,
        ZapShare = r.GetValue(s_zapShare),
        Disks = r.GetValue(s_disk) ?? [],
        Shares = r.GetValue(s_share) ?? [],
        Net = r.GetValue(s_net),
        Vsock = r.GetValue(s_vsock),
        VsockConnector = r.GetValue(s_noSandbox) ? null : ConnectorCommand.Words,
        ResidentBytes = r.GetValue(s_resident),
        ResidentDirectory = r.GetValue(s_residentDir),
        SnapshotFile = r.GetValue(s_snapshot),
        SnapshotAt = r.GetValue(s_snapshotAt),
        Cold = r.GetValue(s_cold),
        Heatmap = r.GetValue(s_heatmap),
        Name = r.GetValue(s_name),
        Sandbox = !r.GetValue(s_noSandbox),
        Stats = r.GetValue(s_stats),
        Messages = Console.Error,
        Verbose = r.GetValue(s_verbose),
    };

    private static int ParseCpus(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n is >= 1 and <= BootOptions.MaxCpus)
            return n;
        r.AddError($"--cpus must be a number from 1 to {BootOptions.MaxCpus}, not '{text}'");
        return 0;
    }

    private static string? ParseName(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (ControlDirectory.IsName(text))
            return text;
        r.AddError($"a machine's --name has letters, digits, '.', '-' and '_', 64 at most, and is no number; not '{text}'");
        return null;
    }

    private static ProcessorModel? ParseCpu(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (ProcessorModel.TryParse(text, out ProcessorModel model))
            return model;
        r.AddError($"--cpu knows host, intel and amd, not '{text}'");
        return null;
    }

    private static int ParseEngine(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (Engine.TryParse(text, out int threshold))
            return threshold;
        r.AddError($"--engine knows translator and interpreter, not '{text}'");
        return 0;
    }

    private static RootZapPolicy? ParseZap(ArgumentResult r)
    {
        switch (r.Tokens.Count == 1 ? r.Tokens[0].Value : "")
        {
            case "inline": return RootZapPolicy.Inline;
            case "sync": return RootZapPolicy.Sync;
            case "worker": return RootZapPolicy.Worker;
            case var other:
                r.AddError($"--zap knows inline, sync and worker, not '{other}'");
                return null;
        }
    }

    private static int ParseZapShare(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int n) && n is >= 1 and <= 100)
            return n;
        r.AddError($"--zap-share must be a number from 1 to 100, not '{text}'");
        return BootOptions.DefaultZapShare;
    }

    private static DiskOption[] ParseDisks(ArgumentResult r)
    {
        var disks = new List<DiskOption>();
        foreach (Token token in r.Tokens)
        {
            if (DiskOption.Parse(token.Value, out string error) is { } disk)
                disks.Add(disk);
            else
                r.AddError(error);
        }
        return [.. disks];
    }

    private static ShareOption[] ParseShares(ArgumentResult r)
    {
        var shares = new List<ShareOption>();
        foreach (Token token in r.Tokens)
        {
            if (ShareOption.Parse(token.Value, out string error) is { } share)
                shares.Add(share);
            else
                r.AddError(error);
        }
        return [.. shares];
    }

    private static VsockOption? ParseVsock(ArgumentResult r)
    {
        VsockOption? vsock = VsockOption.Parse(r.Tokens.Count == 1 ? r.Tokens[0].Value : "", out string error);
        if (error.Length != 0)
            r.AddError(error);
        return vsock;
    }

    private static NetOption? ParseNet(ArgumentResult r)
    {
        NetOption? net = NetOption.Parse(r.Tokens.Count == 1 ? r.Tokens[0].Value : "", out string error);
        if (error.Length != 0)
            r.AddError(error);
        return net;
    }

    private static ulong? ParseSeed(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out ulong n))
            return n;
        r.AddError($"--seed must be a number from 0 to {ulong.MaxValue}, not '{text}'");
        return null;
    }

    private static ulong? ParseSize(ArgumentResult r, string option)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        int shift = text.Length == 0 ? 0 : char.ToUpperInvariant(text[^1]) switch { 'K' => 10, 'M' => 20, 'G' => 30, _ => 0 };
        string digits = shift == 0 ? text : text[..^1];
        if (ulong.TryParse(digits, NumberStyles.None, CultureInfo.InvariantCulture, out ulong n) && n << shift >> shift == n)
        {
            ulong bytes = n << (shift == 0 ? 20 : shift);
            if (bytes is >= 1 << 20 and <= 1UL << 40)
                return bytes;
        }
        r.AddError($"{option} must be a size between 1M and 1024G, such as 512M, not '{text}'");
        return 0;
    }

    private static BootProtocol ParseProtocol(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (Enum.TryParse(text, ignoreCase: true, out BootProtocol p) && Enum.IsDefined(p) && !char.IsDigit(text[0]))
            return p;
        r.AddError($"--protocol must be auto, linux64, linux32, linux16, pvh, multiboot or bootsector, not '{text}'");
        return default;
    }

    private static string? ParseCheck(ArgumentResult r)
    {
        string text = r.Tokens.Count == 1 ? r.Tokens[0].Value : "";
        if (text == "tlb")
            return text;
        r.AddError($"--check knows tlb, not '{text}'");
        return null;
    }

    private static TraceCategories ParseTrace(ArgumentResult r)
    {
        TraceCategories all = TraceCategories.None;
        foreach (string word in (r.Tokens.Count == 1 ? r.Tokens[0].Value : "").Split(','))
        {
            if (Enum.TryParse(word, ignoreCase: true, out TraceCategories one) && word.Length != 0 && !char.IsDigit(word[0]))
                all |= one;
            else
                r.AddError($"--trace knows exits, io, mmio, interrupts, exceptions, blocks, translate and all, not '{word}'");
        }
        return all;
    }
}

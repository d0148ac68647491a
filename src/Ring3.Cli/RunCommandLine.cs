using System.Collections;
using System.CommandLine;
using Ring3.Host;
using Ring3.Vmm;

namespace Ring3.Cli;

/// <summary><c>ring3 run</c>: a command in a guest that has the host's root, directory, user and streams.</summary>
internal static class RunCommandLine
{
    private const ulong DefaultMemory = 2048UL << 20;
    private const int Stdin = 0, Stdout = 1, Stderr = 2;

    private static readonly Option<string[]> s_writable = new("--rw")
    {
        Description = "a folder that the command may change; everything else it changes is gone afterwards; repeatable", HelpName = "DIR",
        Arity = ArgumentArity.OneOrMore,
        AllowMultipleArgumentsPerToken = false,
    };
    private static readonly Option<string?> s_kernel = new("--kernel", "-k")
    {
        Description = "a kernel's image, or the tree in which one was built; its modules are found (default: Debian's cloud kernel, fetched once)",
        HelpName = "FILE|DIR",
    };
    private static readonly Argument<string[]> s_words = new("command")
    {
        Description = "the command and its arguments", HelpName = "CMD [ARGS...]", Arity = ArgumentArity.OneOrMore,
    };

    public static Command Build()
    {
        var command = new Command("run",
            "Run a command in a guest whose root is the host's, read-only under a private layer: in this directory, as this user, with these streams.")
        {
            s_writable, s_kernel, BootCommand.s_append, BootCommand.s_cpus, BootCommand.s_cpu, BootCommand.s_engine, BootCommand.s_memory, BootCommand.s_net,
            BootCommand.s_vsock, BootCommand.s_cold, BootCommand.s_stats, BootCommand.s_name, BootCommand.s_noSandbox, BootCommand.s_verbose, s_words,
        };
        command.SetAction(r => BootSession.Run(Options(r)));
        return command;
    }

    private static BootOptions Options(ParseResult r)
    {
        (uint user, uint group) = Privileges.Identity;
        bool terminal = Terminal.IsTerminal(Stdin) && Terminal.IsTerminal(Stdout);
        return new BootOptions
        {
            Kernel = r.GetValue(s_kernel),
            Append = r.GetValue(BootCommand.s_append)!,
            Cpus = r.GetValue(BootCommand.s_cpus),
            Processor = r.GetValue(BootCommand.s_cpu)!,
            TranslationThreshold = r.GetValue(BootCommand.s_engine),
            MemoryBytes = MemoryLimit.GuestBytes(r.GetValue(BootCommand.s_memory), DefaultMemory, null),
            Net = r.GetValue(BootCommand.s_net),
            Vsock = r.GetValue(BootCommand.s_vsock),
            Cold = r.GetValue(BootCommand.s_cold),
            VsockConnector = r.GetValue(BootCommand.s_noSandbox) ? null : ConnectorCommand.Words,
            Name = r.GetValue(BootCommand.s_name),
            Sandbox = !r.GetValue(BootCommand.s_noSandbox),
            Stats = r.GetValue(BootCommand.s_stats),
            Verbose = r.GetValue(BootCommand.s_verbose),
            Messages = Console.Error,
            Shares = [new ShareOption { Directory = "/", Tag = "root", ReadOnly = true }, .. (r.GetValue(s_writable) ?? []).Select(Writable)],
            Streams = new CommandStreams { HasInput = !terminal, IsTerminal = terminal, ErrorIsTerminal = terminal && Terminal.IsTerminal(Stderr) },
            Run = new RunCommand
            {
                Words = r.GetValue(s_words)!,
                Directory = Environment.CurrentDirectory,
                Environment = [.. from DictionaryEntry e in Environment.GetEnvironmentVariables() select $"{e.Key}={e.Value}"],
                User = user,
                Group = group,
                Groups = Privileges.Groups,
                EnvProgram = Program("env", "coreutils"),
                SetprivProgram = Program("setpriv", "util-linux"),
            },
        };
    }

    private static ShareOption Writable(string directory, int index)
    {
        string full = Path.TrimEndingDirectorySeparator(Path.GetFullPath(directory));
        return full == "/" ? throw new BootException(ExitStatus.Usage, "--rw / would give the whole host away")
            : new ShareOption { Directory = full, Tag = $"rw{index}" };
    }

    /// <summary>A program of the host that the guest needs as well.</summary>
    private static string Program(string name, string package) =>
        ((string[])["/usr/bin/", "/bin/"]).Select(d => d + name).FirstOrDefault(File.Exists)
        ?? throw new BootException(ExitStatus.NoInput, $"ring3 run needs the program {name} (Debian package {package})");
}
